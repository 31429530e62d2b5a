"""Completions from a model in this process: causal or encoder-decoder, batched by length, prompts encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tiebreak import models
from tiebreak.progress import say
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import Completion, InputError, Prompt, content_hash

PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
PLAIN_WARPERS = {"typical_p": 1.0, "min_p": 0.0}
"""Switch off what a model's own generation_config may bring: draws follow from the recipe alone."""


class Local:
    """Draws n completions a prompt; the same prompts, settings and seed give the same draws, restarts included.

    Prompts are put into batches by length before anything is drawn, and every batch has its own seed; a batch that a
    crash left half-written is drawn again as a whole, and only what is missing comes out.
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
        tokenizer = models.load_tokenizer(self._model)
        device = models.device()
        model = models.load_model(self._model, torch.bfloat16 if models.has_bf16(device) else torch.float32)
        model.to(device).eval()  # type: ignore[arg-type]  # a decorator of transformers hides self
        encoded = self._encode(model, tokenizer, wanted)
        stops = _stops(model, tokenizer)
        sampling = self._sampling.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"}, mode="json")
        per_batch = max(1, self._sampling.batch_size // self.n)
        for start in range(0, len(encoded), per_batch):
            batch, ids = zip(*encoded[start : start + per_batch], strict=True)
            if not self._owed(batch, have):
                continue
            seed = int(content_hash(self._seed, self.label, [prompt.id for prompt in batch]), 16) % 2**63
            answers = iter(self._generate(model, ids, stops, tokenizer.pad_token_id, seed))
            for prompt in batch:
                for draw, answer in zip(range(self.n), answers, strict=False):
                    if (prompt.id, draw) in have:
                        continue
                    end = next((at for at, token in enumerate(answer) if token in stops), None)
                    yield Completion.of(
                        prompt.id,
                        str(tokenizer.decode(answer[:end], skip_special_tokens=True)),
                        sampler=self.label,
                        sampling=sampling,
                        draw=draw,
                        finish_reason="length" if end is None else "stop",
                        tokens=len(answer) if end is None else end + 1,
                    )

    def _owed(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]]) -> bool:
        return any((prompt.id, draw) not in have for prompt in prompts for draw in range(self.n))

    def _encode(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]
    ) -> list[tuple[Prompt, list[int]]]:
        """Return the prompts with their token ids, the shortest first, cut from the left to what the model can take."""
        apart = bool(model.config.is_encoder_decoder)
        encoded = [(prompt, models.prompt_ids(tokenizer, prompt.messages, encoder_decoder=apart)) for prompt in prompts]
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None:
            tokens = self._sampling.max_new_tokens
            if tokens >= longest:
                raise InputError(f"{self.label}: max_new_tokens {tokens} leaves no room for a prompt; the model takes {longest}")
            room = longest if apart else longest - tokens
            if cut := sum(len(ids) > room for _, ids in encoded):
                say(f"{self.label}: {cut} prompts are longer than the model's context; cut from the left to {room} tokens")
            encoded = [(prompt, ids[-room:]) for prompt, ids in encoded]
        return sorted(encoded, key=lambda item: (len(item[1]), item[0].id))

    @torch.inference_mode()
    def _generate(
        self, model: PreTrainedModel, prompts: Iterable[list[int]], stops: list[int], pad: int | None, seed: int
    ) -> list[list[int]]:
        """Draw n answers, as token ids, for each of the prompts, those of one prompt next to each other."""
        sampling, apart = self._sampling, bool(model.config.is_encoder_decoder)
        # A decoder goes on from the right edge; an encoder starts at the left one.
        input_ids, attention_mask = _pad(prompts, pad or 0, left=not apart)
        inputs: dict[str, Any] = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        if not apart:
            inputs = _share(model, inputs, self.n)
        warpers = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        config = GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=self.n if apart else 1,
            eos_token_id=stops or None,
            pad_token_id=pad,
            **PLAIN,
            **(warpers | PLAIN_WARPERS if sampling.temperature > 0 else {}),
        )
        with torch.random.fork_rng(), models.quiet():
            torch.manual_seed(seed)
            out = model.generate(**inputs, generation_config=config)  # type: ignore[operator]  # from a mixin of the subclasses
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
