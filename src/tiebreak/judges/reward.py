"""Reward models: any sequence classifier that scores a chat, with one output or several."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tiebreak import models
from tiebreak.judges import Answer
from tiebreak.progress import say
from tiebreak.recipe import Model, RewardJudge
from tiebreak.records import InputError, Message, Rating

WINDOW = 16
"""Batches of answers that are sorted by length at a time."""

T = TypeVar("T")
Row = dict[str, list[int]]
"""What the tokenizer makes of a chat: `input_ids`, `attention_mask` and what else the model takes, all of one length."""


class Reward:
    """A rater whose differences are log-odds; the model is loaded at the first answer."""

    def __init__(self, section: RewardJudge) -> None:
        self.name = section.name
        self.truncated = 0
        """Ratings of a chat that was cut."""
        self._section = section

    def rate(self, answers: Iterable[Answer]) -> Iterator[Rating]:
        """Yield a score for every answer, batch by batch, in the order of length within a window."""
        size, total, before = self._section.batch_size, 0, self.truncated
        for window in windows(answers, WINDOW * size):
            rows: list[tuple[Answer, Row]] = []
            for answer in window:
                try:
                    row, shortened = self._loaded.encode(answer)
                except TemplateError as error:
                    yield self._rating(answer, error=" ".join(f"the model's chat template refuses the chat: {error}".split()))
                    continue
                rows.append((answer, row))
                self.truncated += shortened
            total += len(rows)
            rows.sort(key=lambda row: len(row[1]["input_ids"]))
            for batch in windows(rows, size):
                outputs = self._loaded.score([row for _, row in batch], named=self._section.weights is None)
                for (answer, _), values in zip(batch, outputs, strict=True):
                    yield self._scored(answer, values)
        if cut := self.truncated - before:
            say(f"{self.name}: {cut} of {total} chats were longer than the model takes, and cut from the left")

    def _scored(self, answer: Answer, values: list[float]) -> Rating:
        weights = self._section.weights or (1.0,)
        if len(values) != len(weights):
            raise InputError(
                f"judges.{self.name}.weights: {len(self._section.weights or ()) or 'none'}, and the model gives {len(values)} "
                f"outputs; say how much each of them counts"
            )
        score = sum(weight * value for weight, value in zip(weights, values, strict=True))
        raw = json.dumps([round(value, 6) for value in values])
        if not math.isfinite(score):
            return self._rating(answer, raw=raw, error=f"the model's score is no number ({score})")
        return self._rating(answer, raw=raw, score=score)

    def _rating(self, answer: Answer, **fields: Any) -> Rating:
        return Rating(prompt_id=answer.prompt.id, completion_id=answer.completion.id, judge=self.name, logit=True, **fields)

    @cached_property
    def _loaded(self) -> Loaded:
        return Loaded(self._section)


class Loaded:
    """A classifier and its tokenizer.

    It runs in bf16 where its weights are stored in half precision and bf16 runs in hardware, else in fp32; its head
    always in fp32, for bf16 counts scores above 16 in steps of 1/8.
    """

    def __init__(self, section: RewardJudge) -> None:
        """Raise InputError where it cannot be loaded, or its head has no weights."""
        model = section.model
        name, options = models.locate(model)
        with models.loading(model):
            config = AutoConfig.from_pretrained(name, **options)
        half = str(config.dtype).removeprefix("torch.") in ("bfloat16", "float16")
        dtype = torch.bfloat16 if half and models.has_bf16(models.device()) else torch.float32
        self.tokenizer = models.load_tokenizer(model)
        self.model = load_scorer(model, AutoModelForSequenceClassification, config=config, dtype=dtype)
        for head in (getattr(self.model, part, None) for part in ("score", "classifier")):
            if isinstance(head, nn.Linear):
                head.float().register_forward_pre_hook(lambda _, states: (states[0].float(),))
        self.config = self.model.config.get_text_config()
        self.pad = self.config.pad_token_id
        limits = (self.tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None))
        self.longest = section.max_length or int(min(limit for limit in limits if limit))
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special = re.compile("|".join(map(re.escape, filter(None, special))) or r"(?!)")

    def encode(self, answer: Answer) -> tuple[Row, bool]:
        """Return the chat in the words of the template, else question and answer as a pair of texts; and whether it was cut.

        Special tokens that a text spells out become spaces, for they would end its turn. Raises TemplateError.
        """
        spoken = (*answer.prompt.messages, Message(role="assistant", content=answer.completion.text))
        turns = [Message(role=turn.role, content=self.special.sub(" ", turn.content)) for turn in spoken]
        if self.tokenizer.chat_template is None:
            return self._pair(models.plain(turns[:-1]), turns[-1].content)
        whole = models.chat_ids(self.tokenizer, turns)
        ids = whole[-self.longest :]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}, len(ids) < len(whole)

    def _pair(self, question: str, answer: str) -> tuple[Row, bool]:
        """Cut the question alone where that is enough."""
        row = self.tokenizer(question, answer, verbose=False)
        if len(row["input_ids"]) <= self.longest:
            return dict(row), False
        asked = len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        where = "only_first" if len(row["input_ids"]) - asked < self.longest else "longest_first"
        self.tokenizer.truncation_side = "left"
        return dict(self.tokenizer(question, answer, truncation=where, max_length=self.longest)), True

    @torch.inference_mode()
    def score(self, rows: list[Row], *, named: bool) -> list[list[float]]:
        """Return the outputs of every row; with `named`, the one score of a model that says which of its outputs that is."""
        if self.pad is None or self.pad < 0:
            # Such a model reads the state at the last token that is not padding: take one that is in no row.
            used = {token for row in rows for token in row["input_ids"]}
            self.config.pad_token_id = next((token for token in range(self.config.vocab_size) if token not in used), 0)
        inputs = {
            key: pad_sequence(
                [torch.tensor(row[key]) for row in rows],
                batch_first=True,
                padding_value=self.config.pad_token_id if key == "input_ids" else 0,
            ).to(self.model.device)
            for key in rows[0]
        }
        output = self.model(**inputs)
        scores = getattr(output, "score", None) if named else None
        outputs: list[list[float]] = (output.logits if scores is None else scores).float().reshape(len(rows), -1).tolist()
        return outputs


def load_scorer(model: Model, architecture: Any, **options: Any) -> PreTrainedModel:
    """Load a model whose head gives scores, safetensors only, on the accelerator where there is one.

    Raises InputError also where weights of the head are missing: transformers would draw new ones and go on.
    """
    name, where = models.locate(model)
    wanted: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    models.fast_products()
    with models.loading(model):
        loaded, info = architecture.from_pretrained(name, **wanted, **where, **options)
    if lacking := sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(f"model {model.name_or_path}: is no reward model: no weights fit {lacking[0]}{more}; name another one")
    scorer: PreTrainedModel = loaded.to(models.device()).eval()
    return scorer


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `size` items at a time, taken only then: enough to sort by length."""
    rest = iter(items)
    while window := list(islice(rest, size)):
        yield window
