"""Completions and replies from a model in this process: causal or encoder-decoder, batched by length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from tiebreak import models
from tiebreak.progress import say
from tiebreak.recipe import Endpoint, LocalSampling, Model
from tiebreak.records import Completion, InputError, Prompt, content_hash
from tiebreak.samplers import CallError, K, Question, Reply
from tiebreak.samplers.turns import completion, following

PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
PLAIN_WARPERS = {"typical_p": 1.0, "min_p": 0.0}
"""Switch off what a model's own generation_config may bring: draws follow from the recipe alone."""
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]
"""A model that is ready to answer, its tokenizer, and the ids that end an answer."""


class Local:
    """Draws n completions a prompt; the same prompts, settings and seed give the same draws, restarts included.

    Prompts are put into batches by length before anything is drawn, and every batch has its own seed; a batch that a
    crash left half-written is drawn again as a whole, and only what is missing comes out. Where a prompt has more turns,
    every draw goes on from its own answer, the whole batch side by side.
    """

    def __init__(self, label: str, model: Model, sampling: LocalSampling, seed: int) -> None:
        """`label` is the sampler's name in the records."""
        self.label, self.n, self.failures = label, sampling.n, list[str]()
        self._model, self._sampling, self._seed = model, sampling, seed

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        """Yield draws batch by batch; the model is loaded only if a draw is owed.

        Raises InputError where the model cannot be loaded or has no room for max_new_tokens.
        """
        wanted = list(prompts)
        if not self._owed(wanted, have):
            return
        model, tokenizer, stops = loaded = load(self._model)
        encoded = self._encode(model, tokenizer, wanted)
        sampling = self._sampling.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"}, mode="json")
        per_batch = max(1, self._sampling.batch_size // self.n)
        for start in range(0, len(encoded), per_batch):
            batch, ids = zip(*encoded[start : start + per_batch], strict=True)
            if not self._owed(batch, have):
                continue
            seed = int(content_hash(self._seed, self.label, [prompt.id for prompt in batch]), 16) % 2**63
            answers = iter(self._generate(model, ids, stops, tokenizer.pad_token_id, seed))
            said = [
                (one, draw, [_reply(loaded, answer)])
                for one in batch
                for draw, answer in zip(range(self.n), answers, strict=False)
            ]
            self._go_on(loaded, [(prompt, replies) for prompt, _, replies in said], seed)
            for prompt, draw, replies in said:
                if (prompt.id, draw) not in have:
                    yield completion(prompt, replies, sampler=self.label, sampling=sampling, draw=draw)

    def _go_on(self, loaded: Loaded, said: list[tuple[Prompt, list[Reply]]], seed: int) -> None:
        """Ask what comes next behind each draw's own answers, and append the replies, until every turn is answered."""
        (model, tokenizer, stops), once = loaded, self._sampling.model_copy(update={"n": 1})
        turn = 1
        while owed := [(replies, chat) for prompt, replies in said if (chat := following(prompt, [r.text for r in replies]))]:
            ids = self._fitting(model, [models.prompt_ids(tokenizer, chat, encoder_decoder=_apart(model)) for _, chat in owed])
            drawn = _draw(model, ids, once, stops, tokenizer.pad_token_id, seed=int(content_hash(seed, turn), 16) % 2**63)
            for (replies, _), answer in zip(owed, drawn, strict=True):
                replies.append(_reply(loaded, answer))
            turn += 1

    def _owed(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]]) -> bool:
        return any((prompt.id, draw) not in have for prompt in prompts for draw in range(self.n))

    def _encode(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
    ) -> list[tuple[Prompt, list[int]]]:
        """Return the prompts with their token ids, the shortest first, cut from the left to what the model can take."""
        ids = [models.prompt_ids(tokenizer, prompt.messages, encoder_decoder=_apart(model)) for prompt in prompts]
        encoded = list(zip(prompts, self._fitting(model, ids), strict=True))
        return sorted(encoded, key=lambda item: (len(item[1]), item[0].id))

    def _fitting(self, model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
        """Return token ids of prompts cut from the left to what the model can take, and say how many were."""
        room = room_for(model, self._sampling.max_new_tokens, self.label)
        if room is None:
            return prompts
        if cut := sum(len(ids) > room for ids in prompts):
            say(f"{self.label}: {cut} prompts are longer than the model's context; cut from the left to {room} tokens")
        return [ids[-room:] for ids in prompts]

    def _generate(
        self, model: PreTrainedModel, prompts: Iterable[list[int]], stops: list[int], pad: int | None, seed: int
    ) -> list[list[int]]:
        return _draw(model, prompts, self._sampling, stops, pad, seed=seed)


def load(model: Model) -> Loaded:
    """Return a model with what it takes to ask it. Raises InputError."""
    tokenizer = models.load_tokenizer(model)
    device = models.device()
    loaded = models.load_model(model, torch.bfloat16 if models.has_bf16(device) else torch.float32)
    loaded.to(device).eval()  # type: ignore[arg-type]  # a decorator of transformers hides self
    return loaded, tokenizer, _stops(loaded, tokenizer)


def _apart(model: PreTrainedModel) -> bool:
    return bool(model.config.is_encoder_decoder)


def _reply(loaded: Loaded, answer: list[int]) -> Reply:
    """Return what the tokens of an answer say, up to its end."""
    _, tokenizer, stops = loaded
    end = next((at for at, token in enumerate(answer) if token in stops), None)
    text = str(tokenizer.decode(answer[:end], skip_special_tokens=True))
    return Reply(text, "length" if end is None else "stop", tokens=len(answer) if end is None else end + 1)


def room_for(model: PreTrainedModel, new: int, label: str) -> int | None:
    """Return how many tokens a prompt may have, None where there is no end. Raises InputError."""
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    if longest is None:
        return None
    if new >= longest:
        raise InputError(f"{label}: max_new_tokens {new} leaves no room for a prompt; the model takes {longest}")
    return longest if _apart(model) else longest - new


@torch.inference_mode()
def _draw(
    model: PreTrainedModel,
    prompts: Iterable[list[int]],
    sampling: LocalSampling,
    stops: list[int],
    pad: int | None,
    *,
    seed: int,
    watch: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """Draw n answers, as token ids, for each of the prompts, those of one prompt next to each other.

    `watch` sees the model's own logits at each step.
    """
    apart = _apart(model)
    # A decoder goes on from the right edge; an encoder starts at the left one.
    input_ids, attention_mask = _pad(prompts, pad or 0, left=not apart)
    inputs: dict[str, Any] = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
    if not apart:
        inputs = _share(model, inputs, sampling.n)
    warpers = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    config = GenerationConfig(
        do_sample=sampling.temperature > 0,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.n if apart else 1,
        eos_token_id=stops or None,
        pad_token_id=pad,
        **PLAIN,
        **(warpers | PLAIN_WARPERS if sampling.temperature > 0 else {}),
    )
    with torch.random.fork_rng(), models.quiet():
        torch.manual_seed(seed)
        # Processors come before temperature and the like; `generate` is from a mixin of the subclasses.
        out = model.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList(watch))  # type: ignore[operator]
    skip = 1 if apart else input_ids.shape[1]  # a decoder of its own begins with a token that is no answer
    return out[:, skip:].tolist()  # type: ignore[no-any-return]


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer: the template's end of turn, and what the model itself names."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    return sorted({*models.end_ids(tokenizer)[-1:], *(own if isinstance(own, list) else [] if own is None else [own])})


def _pad(rows: Iterable[list[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (rows, longest)."""
    side, ids = "left" if left else "right", [torch.tensor(row) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    padded = (
        torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_side=side, padding_value=value)
        for each, value in ((ids, pad), (mask, 0))
    )
    return next(padded), next(padded)


def _share(model: PreTrainedModel, inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """Return the inputs of n draws a prompt, with a cache of the prompts: each is encoded once, but for its last token."""
    repeated = {name: value.repeat_interleave(n, 0) for name, value in inputs.items()}
    mask = inputs["attention_mask"]
    if mask.shape[1] == 1:
        return repeated
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]
    seen = model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    try:
        seen.past_key_values.batch_repeat_interleave(n)
    except AttributeError:  # the state of a recurrent layer: every draw encodes its prompt anew
        return repeated
    return {**repeated, "past_key_values": seen.past_key_values}


# --- replies -------------------------------------------------------------------------------------------------------

WINDOW = 64
"""Batches that are taken at once and sorted by length; what comes in lazily stays so."""
LIKELIEST = 20
"""Tokens whose log-probabilities are kept at each place, as many as servers give."""


class _Asked(NamedTuple):
    key: Any
    question: Question
    ids: list[int]

    @property
    def settings(self) -> tuple[float, float, int, bool]:
        """What a batch has in common."""
        question = self.question
        return question.temperature, question.top_p, question.max_tokens, question.logprobs


class LocalChat:
    """A model in this process that answers questions, in batches of `concurrency`; it loads at the first question.

    No schema holds it. A question too long for the model is an error and not cut: a judge would miss what it judges by.
    """

    schema, logprobs = False, True

    def __init__(self, section: Endpoint) -> None:
        """`section.model` is a Hub id, a folder or builtin:smollm2-135m-instruct."""
        self._section = section
        self._pieces: dict[int, str] = {}

    @cached_property
    def _loaded(self) -> Loaded:
        return load(Model(name_or_path=self._section.model))

    def ask(self, items: Iterable[tuple[K, Question]]) -> Iterator[tuple[K, Reply | CallError]]:
        """Yield the reply to every question with its key, the shortest of a window first; it costs nothing.

        Above temperature 0 the seeds of a batch's questions together seed it. Raises InputError where the model cannot
        be loaded or has no room for max_tokens.
        """
        batch_size = self._section.concurrency
        waiting = iter(items)
        while window := list(islice(waiting, WINDOW * batch_size)):
            model, tokenizer, _ = self._loaded
            apart = _apart(model)
            asked = []
            for key, question in window:
                ids = models.prompt_ids(tokenizer, question.messages, encoder_decoder=apart)
                room = room_for(model, question.max_tokens, self._section.model)
                if room is not None and len(ids) > room:
                    yield key, CallError(f"a question of {len(ids)} tokens; {self._section.model} takes {room}")
                else:
                    asked.append(_Asked(key, question, ids))
            asked.sort(key=lambda each: (each.settings, len(each.ids)))
            for _, alike in groupby(asked, key=lambda each: each.settings):
                while batch := list(islice(alike, batch_size)):
                    yield from zip((each.key for each in batch), self._answer(batch), strict=True)

    def _answer(self, batch: list[_Asked]) -> Iterator[Reply]:
        model, tokenizer, stops = self._loaded
        temperature, top_p, max_tokens, logprobs = batch[0].settings
        sampling = LocalSampling(temperature=temperature, top_p=top_p, max_new_tokens=max_tokens)
        seed = int(content_hash([(each.question.seed, each.question.draw) for each in batch]), 16) % 2**63
        likeliest = _Likeliest()
        watch, pad = [likeliest] if logprobs else [], tokenizer.pad_token_id
        answers = _draw(model, [each.ids for each in batch], sampling, stops, pad, seed=seed, watch=watch)
        silent = set(tokenizer.all_special_ids)
        for row, (each, answer) in enumerate(zip(batch, answers, strict=True)):
            end = next((at for at, token in enumerate(answer) if token in stops), None)
            said = answer[:end]
            places = [
                (self._piece(token), {self._piece(other): value for other, value in reversed(step[row])})
                for token, step in zip(said, likeliest.steps, strict=False)
                if token not in silent
            ]
            yield Reply(
                str(tokenizer.decode(said, skip_special_tokens=True)),
                "length" if end is None else "stop",
                tokens=len(answer) if end is None else end + 1,
                prompt_tokens=len(each.ids),
                cost=0.0,
                logprobs=tuple(places),
            )

    def _piece(self, token: int) -> str:
        """Return the text of one token; a SentencePiece tokenizer drops the space before it."""
        if token not in self._pieces:
            tokenizer = self._loaded[1]
            text, raw = str(tokenizer.decode([token])), str(tokenizer.convert_ids_to_tokens(token))
            self._pieces[token] = f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text
        return self._pieces[token]


class _Likeliest(LogitsProcessor):
    """Changes nothing, and keeps of every step the likeliest tokens of each row with their log-probabilities."""

    def __init__(self) -> None:
        self.steps: list[list[list[tuple[int, float]]]] = []

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take (rows, vocabulary) logits, and return them."""
        values, tokens = scores.float().log_softmax(-1).topk(min(LIKELIEST, scores.shape[-1]))
        self.steps.append([list(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)])
        return scores
