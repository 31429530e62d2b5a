"""The cards of what is pushed: Markdown filled from the run's own files, so that the same run makes the same card."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from tiebreak.files import read_json, read_jsonl
from tiebreak.judges.llm import read_criteria
from tiebreak.judges.rules import label
from tiebreak.recipe import (
    GIVEN,
    CascadeJudge,
    Judge,
    LlmJudge,
    Optimisation,
    PairRmJudge,
    PanelJudge,
    Pretrain,
    RewardJudge,
    RulesJudge,
    Train,
)
from tiebreak.records import InputError, Logged
from tiebreak.reporting.figures import Cell, Table
from tiebreak.reporting.results import before_after, qualifications
from tiebreak.run import STAGES, TRAINING, Run
from tiebreak.samplers.ledger import spent
from tiebreak.stages import describe
from tiebreak.stages.audit import read_findings
from tiebreak.stages.trust import Panel, judge_table

HUB_NAMES = {"builtin:smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
"""What builtin models are called on the Hub, and their licences."""
UNKNOWN = "unknown"
"""What the Hub calls a licence that nobody named."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
CURVES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
MOST_STEPS = 12
"""Rows of the table of training."""
ALWAYS = ("loss_type", "beta", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "max_length", "lora")
"""Settings of training that are named even where they are the default."""
SIGNS = re.compile(r"([\\`*_{}\[\]<>|#~&$])")


class Markdown(str):
    """Text that is Markdown already; every other text is escaped."""

    __slots__ = ()


class Pushed(NamedTuple):
    """What a card is about: the ids, the licence, and in which form the model comes."""

    dataset: str | None
    model: str | None
    license: str | None
    adapter: bool = False
    encoder_decoder: bool = False


def dataset_card(run: Run, pushed: Pushed, sizes: Mapping[str, int], panel: Panel) -> str:
    """Return the card of the pairs; `sizes` are the pairs of each split."""
    total = sum(sizes.values())
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in sizes]
    front = DatasetCardData(
        license=pushed.license or UNKNOWN,
        pretty_name=str(pushed.dataset).rpartition("/")[2],
        task_categories=["text-generation"],
        size_categories=[next((name for most, name in SIZES if total < most), "n>10M")],
        tags=["preference", "dpo", "trl", "tiebreak"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    return _filled(
        "card_dataset.md.j2", front.to_yaml(), {**_common(run, pushed, panel), "sizes": sizes, "license": pushed.license}
    )


def model_card(run: Run, pushed: Pushed, panel: Panel, figures: Sequence[str]) -> str:
    """Return the card of the model; `figures` are the charts that lie beside it, by file name."""
    summary = read_json(run.summary_json) if run.summary_json.exists() else {}
    base, license = known_as(run.recipe.model.name_or_path)
    license, kind = pushed.license or license, "Seq2SeqLM" if pushed.encoder_decoder else "CausalLM"
    front = ModelCardData(
        license=license or UNKNOWN,
        base_model=base,
        base_model_relation=("adapter" if pushed.adapter else "finetune") if base else None,
        datasets=[pushed.dataset] if pushed.dataset else None,
        library_name="peft" if pushed.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "preference", "tiebreak"],
        model_name=pushed.model if (results := _results(run, pushed, summary)) else None,
        eval_results=results or None,
    )
    values = {
        "license": license,
        "summary": summary,
        "sentence": (summary.get("verdict") or {}).get("sentence") or "The tuned model was not compared with its base.",
        "qualified": qualifications(summary) if summary else [],
        "measured": _table(before_after(summary, [])[1]) if summary else "",
        "trained": run.counts("train"),
        "steps": [(name, describe(name, found)) for name in TRAINING if (found := run.counts(name))],
        "settings": _settings(run.recipe.train),
        "logged": _logged(run),
        "warned": [told for line in read_jsonl(run.metrics_jsonl, Logged) if (told := getattr(line, "sentence", None))],
        "figures": [Markdown(name) for name in figures],
        "auto": Markdown(f"AutoModelFor{kind}"),
        "peft": Markdown(f"AutoPeftModelFor{kind}"),
    }
    return _filled("card_model.md.j2", front.to_yaml(), {**_common(run, pushed, panel), **values})


def known_as(name: str) -> tuple[str | None, str | None]:
    """Return what a model is called on the Hub and its licence, None where nobody else has it or nobody said so."""
    if name in HUB_NAMES:
        return HUB_NAMES[name]
    local = name.startswith((".", "/", "~", "builtin:")) or name.count("/") > 1 or os.path.isdir(name)  # noqa: PTH112
    return (None, None) if local else (name, None)


def _common(run: Run, pushed: Pushed, panel: Panel) -> dict[str, Any]:
    """Return what both cards say: how the pairs were made and judged, what the audit found, how to cite."""
    done = [stage for stage in STAGES if stage in run.stages and stage != "report" and run.counts(stage)]
    findings = read_findings(run) if run.audit_json.exists() else None
    heads, *lines = judge_table(panel)
    finished = [entry["finished"] for entry in run.manifest["stages"].values() if "finished" in entry]
    prompts = run.recipe.prompts
    return {
        "run": run.recipe.name,
        "pushed": pushed,
        "ids": {kind: Markdown(name) for kind in ("dataset", "model") if (name := getattr(pushed, kind))},
        "version": run.manifest["tiebreak"],
        "year": datetime.fromtimestamp(max(finished, default=0), UTC).year,
        "writer": prompts.write.sampler.label if prompts.write else None,
        "source": Path(prompts.source).name if prompts.source and os.path.isabs(prompts.source) else prompts.source,  # noqa: PTH117
        "template": prompts.template,
        "samplers": [sampler.label for sampler in run.recipe.generate],
        "base": known_as(run.recipe.model.name_or_path)[0] or f"a local model, {Path(run.recipe.model.name_or_path).name}",
        "builtin": run.recipe.model.name_or_path in HUB_NAMES,
        "made": [(stage, describe(stage, run.counts(stage))) for stage in done if stage not in (*TRAINING, "evaluate")],
        "labelled": None if run.recipe.labelling_judge == GIVEN else run.recipe.labelling_judge,
        "judges": [_judge(run, section) for section in run.recipe.judges],
        "trusted": _rows(("measure", *heads[1]), [[name, *cells] for name, cells in lines]) if lines else "",
        "failed": [own.name for own in panel.judges if own.canaries and own.canaries.failed],
        "together": panel.together,
        "costs": [f"{part}: {used}" for part, used in spent(run.calls_sqlite).items()],
        "findings": None if findings is None else [each for each in findings if each.severity != "note"],
    }


def _judge(run: Run, section: Judge) -> dict[str, Any]:
    """Return who decides, and by what."""
    how, by = "", ""
    match section:
        case RulesJudge():
            how = "passes the weighted share of these checks: " + "; ".join(map(label, section.checks))
        case LlmJudge():
            how = f"the language model {Path(section.model).name if os.path.isabs(section.model) else section.model}"  # noqa: PTH117
            how += f" ({section.provider}), asked {section.ask}, orders: {section.orders}, by these criteria:"
            try:
                by = read_criteria(run, section)
            except InputError:
                by = "(the file of criteria is gone)"
        case PairRmJudge() | RewardJudge():
            how = f"the model {known_as(section.model.name_or_path)[0] or Path(section.model.name_or_path).name}"
        case PanelJudge() | CascadeJudge():
            how = f"asks {', '.join(section.judges)}"
        case _:
            how = "people"
    return {"name": section.name, "type": section.type, "how": how, "by": _fenced(by) if by else ""}


def _results(run: Run, pushed: Pushed, summary: Mapping[str, Any]) -> list[EvalResult]:
    """Return what was measured on held-out data with an interval, for the Hub to read."""
    wins, pairs = summary.get("win_rate") or {}, summary.get("held_out_pairs") or {}
    judge = f"judged by {summary.get('judge')}" + (", which made the labels too" if summary.get("judge_labelled") else "")
    found = [
        ("win_rate", f"Win rate over base, ties counting half, {judge}", wins, "comparisons"),
        ("accuracy", "Held-out pairs ranked the right way round", pairs.get("accuracy") or {}, "pairs"),
    ]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=pushed.dataset or "tiebreak",
            dataset_name=f"held-out prompts of {run.recipe.name}",
            dataset_split="test" if pushed.dataset else None,
            metric_type=kind,
            metric_value=round(raw["rate"], 4),
            metric_name=f"{name} (95 % interval {raw['low']:.3f} to {raw['high']:.3f}, n = {raw['n']} {of})",
        )
        for kind, name, raw, of in found
        if raw.get("rate") is not None and raw.get("low") is not None and raw.get("high") is not None
    ]


# --- training ------------------------------------------------------------------------------------------------------


def _settings(section: Optimisation | Pretrain | None) -> Markdown:
    """Return the settings that matter and those that are not the default; free arguments by name, for what they may hold."""
    if section is None:
        return Markdown("")
    defaults, rows = Train().model_dump(mode="json"), []
    for name, value in section.model_dump(mode="json", exclude={"trainer_args", "report_to"}).items():
        if name in ALWAYS or value != defaults.get(name):
            rows.append([name, "all weights are trained" if name == "lora" and value is None else _said(value)])
    rows += [["trainer_args", ", ".join(section.trainer_args)]] if section.trainer_args else []
    return _rows(("setting", "value"), rows)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _logged(run: Run) -> Markdown:
    """Return what training logged: where held-out pairs were measured, or else at most MOST_STEPS of its steps."""
    lines = [line.model_dump(exclude_none=True) for line in read_jsonl(run.metrics_jsonl, Logged)]
    names = [name for each in CURVES for name in (each, f"eval_{each}") if any(name in line for line in lines)]
    measured = [line for line in lines if any(name in line for name in names if name.startswith("eval_"))]
    logged = measured or [line for line in lines if any(name in line for name in names)]
    some = {line["step"] for line in [*logged[:: -(-len(logged) // MOST_STEPS) or 1], *logged[-1:]]}
    latest: dict[str, Any] = {}
    rows: dict[int, list[str]] = {}
    for line in lines:
        latest |= line
        if line["step"] in some:
            rows[line["step"]] = [f"{latest[name]:.3f}" if name in latest else "" for name in names]
    heads = ("step", *(name.replace("eval_", "held-out ") for name in names))
    return _rows(heads, [[step, *cells] for step, cells in rows.items()]) if rows else Markdown("")


# --- Markdown ------------------------------------------------------------------------------------------------------


def escaped(value: Any) -> str:
    """Return a value as Markdown that shows it as it is, on one line: no mark-up, no HTML, no cell's end."""
    if isinstance(value, Markdown) or value is None:
        return value or ""
    return SIGNS.sub(r"\\\1", " ".join(str(value).split()))


def _fenced(text: str) -> Markdown:
    """Return a text as a block of code that nothing in it ends."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return Markdown(f"{fence}text\n{text}\n{fence}")


def _rows(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    lines = [heads, ["---"] * len(heads), *rows]
    return Markdown("\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines))


def _table(table: Table) -> Markdown:
    """Return a table of the report; an interval stands behind its value."""

    def text(cell: Cell) -> str:
        return f"{cell.text} ({cell.note})" if cell.note else cell.text

    return _rows(table.heads, [[text(cell) for cell in row] for row in table.shown])


def _filled(template: str, front: str, values: Mapping[str, Any]) -> str:
    environment = Environment(  # noqa: S701  Markdown, and `finalize` escapes it
        loader=PackageLoader("tiebreak.publish", ""),
        undefined=StrictUndefined, finalize=escaped, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    body = re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(values))
    return f"---\n{front}\n---\n\n{body}"
