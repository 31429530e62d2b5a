"""A model in this process writes an answer: token by token, in turn with others, and it can be stopped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from tiebreak import models
from tiebreak.app.answers import Answer, Stop, Writer
from tiebreak.app.shelf import Loaded, Shelf
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import Message
from tiebreak.samplers.local import PLAIN, PLAIN_WARPERS, room_for


class Turns:
    """A lock that serves in the order of asking."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        me = object()
        with self._changed:
            self._queue.append(me)
            self._changed.wait_for(lambda: self._queue[0] is me)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()


TURNS = Turns()
"""Models write a token each in turn: at once they would fight over the same cores, and none could tell its speed."""


def local(shelf: Shelf, model: Model, messages: Sequence[Message], sampling: LocalSampling, seed: int) -> Writer:
    """Return who writes with a model in this process, which draws as `samplers.local` does for a batch of one."""

    def write(answer: Answer, stop: Stop) -> None:
        there = model in shelf
        with shelf.borrow(model) as loaded:
            answer.state = "writing"
            answer.notes = () if there else ("just loaded, which slows it",)
            ids = _prompt(loaded, messages, sampling, answer, model.name_or_path)
            with TURNS:
                pen = _Pen(answer, loaded)
                if not stop.is_set():
                    _generate(pen, ids, sampling, seed, stop)
                pen.end()
            ended = bool(pen.ids) and pen.ids[-1] in loaded.stops
            answer.finish = "stop" if ended else "length" if answer.tokens == sampling.max_new_tokens else "stopped"

    return write


def _prompt(loaded: Loaded, messages: Sequence[Message], sampling: LocalSampling, answer: Answer, name: str) -> list[int]:
    """Return a prompt's ids, cut from the left to what the model takes, which the answer then says. Raises InputError."""
    ids = models.prompt_ids(loaded.tokenizer, messages, encoder_decoder=bool(loaded.model.config.is_encoder_decoder))
    room = room_for(loaded.model, sampling.max_new_tokens, name)
    if room is not None and len(ids) > room:
        answer.notes += (f"the prompt of {len(ids):,} tokens was cut from the left to {room:,}",)
        ids = ids[-room:]
    return ids


@torch.inference_mode()
def _generate(pen: _Pen, ids: list[int], sampling: LocalSampling, seed: int, stop: Stop) -> None:
    model, tokenizer, stops = pen.loaded
    config = GenerationConfig(
        do_sample=True,  # from what _Draw leaves
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
        **PLAIN,
        **PLAIN_WARPERS,
    )
    prompt = torch.tensor([ids], device=model.device)
    model.generate(  # type: ignore[operator]  # from a mixin of the subclasses
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        logits_processor=LogitsProcessorList([_Draw(sampling, seed, model.device)]),
        stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
        streamer=pen,
    )


class _Pen(BaseStreamer):
    """Takes tokens from `generate` one by one, and lets others have their turn after each."""

    def __init__(self, answer: Answer, loaded: Loaded) -> None:
        self.loaded, self.ids = loaded, list[int]()
        self._answer, self._begun = answer, False
        self._since = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, or the next token."""
        if not self._begun:
            self._begun = True
            return
        answer = self._answer
        self.ids += value.tolist()
        answer.tokens = len(self.ids)
        answer.seconds += time.perf_counter() - self._since
        if answer.first is None:
            answer.first = answer.seconds
        answer.text = self._text().rstrip("\ufffd")  # half a character, whose other half is to come
        TURNS.__exit__()
        TURNS.__enter__()
        self._since = time.perf_counter()

    def end(self) -> None:
        """Write down the whole text."""
        self._answer.text = self._text()

    def _text(self) -> str:
        ids = self.ids[:-1] if self.ids and self.ids[-1] in self.loaded.stops else self.ids
        return str(self.loaded.tokenizer.decode(ids, skip_special_tokens=True))


class _Draw(LogitsProcessor):
    """Draws the next token and leaves only that: `generate` draws from the process's generator, which all streams share."""

    def __init__(self, sampling: LocalSampling, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Take (1, vocabulary) logits, and return them with all but one at minus infinity."""
        if self._greedy:
            chosen = scores.argmax(-1, keepdim=True)
        else:
            warped = self._warpers(input_ids, scores)
            chosen = torch.multinomial(warped.softmax(-1), 1, generator=self._generator)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)  # type: ignore[return-value]


class _Stopped(StoppingCriteria):
    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:  # noqa: ARG002
        """Tell whether the answer was stopped."""
        return torch.full(input_ids.shape[:1], self._stop.is_set(), device=input_ids.device)  # type: ignore[return-value]
