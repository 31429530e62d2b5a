"""What is measured without a judge: of texts, and of what tuning did to the model's probabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tiebreak import models
from tiebreak.metrics import behaviour, text
from tiebreak.metrics.behaviour import Scored
from tiebreak.metrics.versus import Draws, plain
from tiebreak.progress import say
from tiebreak.recipe import Model
from tiebreak.records import Completion, Prompt
from tiebreak.run import Run
from tiebreak.samplers.turns import transcript, turns


def of_texts(drawn: Mapping[str, Mapping[str, Draws]], prompts: Sequence[Prompt], reference: str | None) -> list[dict[str, Any]]:
    """Return a row for each measure of texts, with an estimate for every model; references are a field of the prompts."""
    rows: dict[str, dict[str, Any]] = {}
    for model, by_prompt in drawn.items():
        met = [prompt for prompt in prompts if prompt.id in by_prompt]
        texts = [[draw.text for draw in by_prompt[prompt.id].values()] for prompt in met]
        references = [[_reference(prompt, reference)] for prompt in met] if reference else None
        for name, found in text.describe(texts, references).items():
            rows.setdefault(name, {"name": name})[model] = plain(found, "mean" if name in text.UNBOUNDED else "rate")
    return list(rows.values())


def _reference(prompt: Prompt, field: str) -> str:
    """Return the reference answer of a prompt, one to several turns as a transcript, as its completions are."""
    value = prompt.meta.get(field)
    if isinstance(value, list) and len(value) == len(turns(prompt)):
        return transcript(prompt, [str(each) for each in value])
    return "" if value is None else str(value)


def of_models(run: Run, tuned: Model, drawn: Mapping[str, Draws], prompts: Collection[Prompt]) -> dict[str, Any]:
    """Return perplexity on held-out chosen completions, KL from the base, and how log-probs moved; loads both models."""
    import torch

    from tiebreak.training.scoring import score

    by_id = {prompt.id: prompt for prompt in prompts}
    own = [(by_id[prompt], draw) for prompt, draws in drawn.items() if prompt in by_id for draw in draws.values()]
    own = [(prompt, draw) for prompt, draw in own if draw.text.strip()]
    pairs = run.pairs(run.held_out_pairs_jsonl)
    sides: list[tuple[Prompt, Completion]] = []
    for pair in pairs:
        prompt = Prompt.of(pair.prompt, "test")
        sides += [
            (prompt, Completion.of(prompt.id, side[-1].content, sampler="held out")) for side in (pair.chosen, pair.rejected)
        ]
    asked = own + sides
    tokenizer = models.load_tokenizer(run.recipe.model)
    logps = []
    for name, model in (("tuned", tuned), ("base", run.recipe.model)):
        made = score(models.load_model(model, torch.float32), tokenizer, asked, f"log-probs {name}", run.recipe.max_length)
        logps.append(made.logps)
    if made.counts:
        say("log-probs: " + ", ".join(f"{count} completions {what}" for what, count in made.counts.items()))
    scored = behaviour.together([prompt.id for prompt, _ in asked], *logps)
    drawn_by_tuned = [each for each in scored[: len(own)] if each is not None]
    chosen, rejected = scored[len(own) :: 2], scored[len(own) + 1 :: 2]
    known = [(one, other) for one, other in zip(chosen, rejected, strict=True) if one and other]
    return _found([one for one in chosen if one], drawn_by_tuned, known) | {
        "unwarped": all(behaviour.unwarped(draw) for _, draw in own)
    }


def _found(chosen: list[Scored], drawn: list[Scored], pairs: list[tuple[Scored, Scored]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if perplexity := behaviour.perplexity(chosen):
        found |= {
            "perplexity": {name: plain(each, "mean") for name, each in zip(("base", "tuned", "ratio"), perplexity, strict=True)}
        }
    if kl := behaviour.divergence(drawn):
        found |= {"kl": plain(kl.k3, "mean"), "kl_k1": plain(kl.k1, "mean"), "kl_per_token": plain(kl.k3_per_token, "mean")}
    if moved := behaviour.displacement(pairs):
        found |= {
            "chosen_change": plain(moved.chosen.change, "mean"),
            "rejected_change": plain(moved.rejected.change, "mean"),
            "chosen_fell": plain(moved.chosen.fell),
            "both_fell": plain(moved.both_fell),
        }
    return found
