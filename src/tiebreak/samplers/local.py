"""Completions from a model in this process: causal or encoder-decoder, batched by length, prompts encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import GenerationConfig, PreTrainedModel

from tiebreak import models
from tiebreak.progress import say
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import Completion, Prompt, content_hash


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
        """Yield draws batch by batch; the model is loaded with the first batch that owes one."""
        wanted = list(prompts)
        if all((prompt.id, draw) in have for prompt in wanted for draw in range(self.n)):
            return
        tokenizer = models.load_tokenizer(self._model)
        device = models.device()
        model = models.load_model(self._model, torch.bfloat16 if models.has_bf16(device) else torch.float32).to(device).eval()
        encoder_decoder = bool(model.config.is_encoder_decoder)
        encoded = [(prompt, models.prompt_ids(tokenizer, prompt.messages, encoder_decoder=encoder_decoder)) for prompt in wanted]
        room = getattr(model.config, "max_position_embeddings", None)
        if room is not None and not encoder_decoder:
            room = max(room - self._sampling.max_new_tokens, 1)
            cut = sum(len(ids) > room for _, ids in encoded)
            if cut:
                say(f"{self.label}: {cut} prompts are longer than the model's context; cut from the left to {room} tokens")
                encoded = [(prompt, ids[-room:]) for prompt, ids in encoded]
        encoded.sort(key=lambda item: (len(item[1]), item[0].id))
        per_batch = max(1, self._sampling.batch_size // self.n)
        stops = set(models.end_ids(tokenizer)[-1:])
        own = model.generation_config.eos_token_id
        stops.update(own if isinstance(own, list) else [] if own is None else [own])
        for start in range(0, len(encoded), per_batch):
            batch = encoded[start : start + per_batch]
            if all((prompt.id, draw) in have for prompt, _ in batch for draw in range(self.n)):
                continue
            seed = int(content_hash(self._seed, self.label, [prompt.id for prompt, _ in batch]), 16) % 2**63
            drawn = self._generate(model, [ids for _, ids in batch], sorted(stops), tokenizer.pad_token_id, seed)
            for (prompt, _), answers in zip(batch, drawn, strict=True):
                for draw, answer in enumerate(answers):
                    if (prompt.id, draw) in have:
                        continue
                    end = next((at for at, token in enumerate(answer) if token in stops), None)
                    yield Completion.of(
                        prompt.id,
                        tokenizer.decode(answer[:end], skip_special_tokens=True),
                        sampler=self.label,
                        sampling=self._sampling.model_dump(
                            include={"temperature", "top_p", "top_k", "max_new_tokens"}, mode="json"
                        ),
                        draw=draw,
                        finish_reason="length" if end is None else "stop",
                        tokens=len(answer) if end is None else end + 1,
                    )

    @torch.inference_mode()
    def _generate(
        self, model: PreTrainedModel, prompts: list[list[int]], stops: list[int], pad: int, seed: int
    ) -> list[list[list[int]]]:
        """Draw n answers, as token ids, for each of the prompts."""
        width = max(map(len, prompts))
        # A decoder goes on from the right edge; an encoder starts at the left one.
        left = not model.config.is_encoder_decoder
        rows = [[pad] * (width - len(ids)) + ids if left else ids + [pad] * (width - len(ids)) for ids in prompts]
        mask = [[0] * (width - len(i)) + [1] * len(i) if left else [1] * len(i) + [0] * (width - len(i)) for i in prompts]
        device = model.device
        input_ids, attention_mask = torch.tensor(rows, device=device), torch.tensor(mask, device=device)
        greedy = self._sampling.temperature == 0
        warpers = {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p, "top_k": self._sampling.top_k}
        config = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=self._sampling.max_new_tokens,
            use_cache=True,
            num_return_sequences=self.n if model.config.is_encoder_decoder else 1,
            eos_token_id=stops,
            pad_token_id=pad,
            decoder_start_token_id=model.generation_config.decoder_start_token_id,
            **({} if greedy else warpers),
        )
        prefix = {}
        if not model.config.is_encoder_decoder:
            if width > 1:
                # Encode the prompts once, but for their last token, and let every draw share the cache.
                positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]
                seen = {"input_ids": input_ids[:, :-1], "attention_mask": attention_mask[:, :-1], "position_ids": positions}
                cache = model(**seen, use_cache=True, logits_to_keep=1).past_key_values
                cache.batch_repeat_interleave(self.n)
                prefix = {"past_key_values": cache}
            input_ids = input_ids.repeat_interleave(self.n, 0)
            attention_mask = attention_mask.repeat_interleave(self.n, 0)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **prefix)
        skip = 1 if model.config.is_encoder_decoder else width
        answers = out[:, skip:].tolist()
        return [answers[at * self.n : (at + 1) * self.n] for at in range(len(prompts))]
