"""export: pairs and evaluated models in the files that other tools read; what a format cannot hold is counted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from tiebreak.exchange.formats import write_annotations, write_outputs
from tiebreak.exchange.mt_bench import write_mt_bench_answers, write_mt_bench_judgments, write_mt_bench_questions
from tiebreak.files import read_jsonl, write_json, write_jsonl, write_text
from tiebreak.metrics.agreement import Verdicts
from tiebreak.publish.push import write_parquet
from tiebreak.records import Comparison, Completion, InputError, Message, PreferencePair, Rating, Winner
from tiebreak.run import Run

Format = Literal["parquet", "csv", "trl", "llama-factory", "jsonl", "alpaca_eval", "mt_bench"]
Row = dict[str, Any]

SUFFIXES = {"parquet": ".parquet", "csv": ".csv", "trl": ".jsonl", "jsonl": ".jsonl"}
"""Of formats that are one file for each split; the others are folders."""
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
"""LLaMA-Factory's names of the roles."""
WON: dict[str, Winner] = {"win": "second", "loss": "first", "tie": "tie", "inconsistent": "tie"}
"""A meeting's verdict on the model, which stands second beside what it is measured by."""


def export(run: Run, target: Path, form: Format) -> list[str]:
    """Write a run's pairs or evaluated models in a format of other tools, and say in lines what was written.

    A file takes the pairs to train on; a folder takes them as `train` and those that were held out as `test`. Nothing
    that is there is overwritten. Raises InputError.
    """
    if form in ("alpaca_eval", "mt_bench"):
        return _Evaluated(run, _folder(target, form)).write(form)
    splits = {"train": run.pairs(run.pairs_jsonl), "test": run.pairs(run.held_out_pairs_jsonl)}
    if not any(splits.values()):
        raise InputError(f"{run.path}: has no pairs to export; run `tiebreak pair` first")
    if form == "llama-factory":
        return _llama_factory(_folder(target, form), splits, run.recipe.name)
    if target.suffix:
        if target.suffix != SUFFIXES[form]:
            raise InputError(f"{target}: a file of {form} ends in {SUFFIXES[form]}; a name without an ending is a folder")
        if target.exists():
            raise InputError(f"{target}: is there already; name another, or delete it")
        files = {"train": target}
    else:
        folder = _folder(target, form)
        files = {split: folder / f"{split}{SUFFIXES[form]}" for split, pairs in splits.items() if pairs}
    for split, file in files.items():
        WRITERS[form](file, splits[split])
    lines = [f"{file}: {len(splits[split])} pairs" for split, file in files.items()]
    if left := sum(len(pairs) for split, pairs in splits.items() if split not in files):
        lines.append(f"{left} pairs that were held out are not in it; name a folder to have them beside it")
    return lines


def _folder(target: Path, form: str) -> Path:
    """Return a folder that is new or empty. Raises InputError."""
    if target.suffix or target.is_file():
        raise InputError(f"{target}: {form} is several files; name a folder")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: is there already and not empty; name another folder")
    return target


# --- pairs ---------------------------------------------------------------------------------------------------------


def _parquet(file: Path, pairs: list[PreferencePair]) -> None:
    write_parquet(file, [pair.model_dump(mode="json") for pair in pairs])


def _csv(file: Path, pairs: list[PreferencePair]) -> None:
    """Write texts, and chats as JSON where a prompt has more than the user's one turn: tiebreak reads both back."""
    stream = io.StringIO()
    single = all(len(pair.prompt) == 1 for pair in pairs)
    rows = [
        {
            "prompt": pair.prompt[0].content if single else json.dumps(_turns(pair.prompt), ensure_ascii=False),
            "chosen": "\n\n".join(turn.content for turn in pair.chosen),
            "rejected": "\n\n".join(turn.content for turn in pair.rejected),
            "margin": pair.margin,
            "flip_probability": pair.flip_probability,
            **pair.provenance,
        }
        for pair in pairs
    ]
    table = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    table.writeheader()
    table.writerows(rows)
    write_text(file, stream.getvalue())


def _trl(file: Path, pairs: list[PreferencePair]) -> None:
    """Write TRL's conversational preference format, and no column beside it."""
    rows = [{name: _turns(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))


def _turns(turns: Iterable[Message]) -> list[Row]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


WRITERS: dict[str, Callable[[Path, list[PreferencePair]], None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "trl": _trl,
    "jsonl": write_jsonl,
}


def _llama_factory(folder: Path, splits: dict[str, list[PreferencePair]], name: str) -> list[str]:
    """Write LLaMA-Factory's sharegpt form of preferences and its dataset_info.json (its data/README.md).

    It skips a chat whose turns do not alternate, user first; such pairs are left out here, and counted.
    """
    lines, info = [], {}
    for split, pairs in splits.items():
        kept = [pair for pair in pairs if _alternates(pair.prompt)]
        if kept:
            info[f"{name}_{split}"] = {
                "file_name": f"{name}_{split}.json",
                "formatting": "sharegpt",
                "ranking": True,
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
            }
            write_json(folder / f"{name}_{split}.json", [_shared(pair) for pair in kept])
            lines.append(f"{folder / f'{name}_{split}.json'}: {len(kept)} pairs, as the dataset {name}_{split}")
        if len(kept) < len(pairs):
            lines.append(f"{len(pairs) - len(kept)} pairs are left out: LLaMA-Factory skips chats whose turns do not alternate")
    if not info:
        raise InputError(f"{folder}: no pair is left for llama-factory, which skips chats whose turns do not alternate")
    write_json(folder / "dataset_info.json", info)
    return [*lines, f"{folder / 'dataset_info.json'}: for its dataset_dir, or to be copied into its own"]


def _alternates(turns: tuple[Message, ...]) -> bool:
    roles = [turn.role for turn in turns if turn.role != "system"]
    asks = all((role == "assistant") == (at % 2 == 1) for at, role in enumerate(roles))
    return asks and len(roles) % 2 == 1 and all(turn.role != "system" for turn in turns[1:])


def _shared(pair: PreferencePair) -> Row:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    spoken = {name: {"from": "gpt", "value": "\n\n".join(turn.content for turn in turns)} for name, turns in sides.items()}
    return {"conversations": [{"from": SPEAKERS[turn.role], "value": turn.content} for turn in pair.prompt]} | spoken


# --- evaluated models ----------------------------------------------------------------------------------------------


class _Evaluated:
    """What evaluate left: the prompts, every model's answers, and the verdicts."""

    def __init__(self, run: Run, folder: Path) -> None:
        drawn = list(read_jsonl(run.eval_completions_jsonl, Completion))
        if not drawn:
            raise InputError(f"{run.path}: no model answered held-out prompts; run `tiebreak evaluate` first")
        self.folder = folder
        self.prompts = [prompt for prompt in run.prompts() if prompt.split == "test"]
        known = {prompt.id for prompt in self.prompts}
        self.answers: dict[str, list[Completion]] = {}
        for draw in sorted((draw for draw in drawn if draw.prompt_id in known), key=lambda draw: draw.draw):
            self.answers.setdefault(draw.sampler, []).append(draw)
        ids = {draw.id for draws in self.answers.values() for draw in draws}
        self.judge = judge.name if (judge := run.recipe.evaluating_judge) else ""
        records = run.verdicts(run.eval_judgments(self.judge)) if self.judge else []
        self.records = [one for one in records if _about(one) <= ids]
        self.meetings = _meetings(run.head_to_head_csv)

    def write(self, form: str) -> list[str]:
        """Write the files of a format, and return what was written."""
        return self._mt_bench() if form == "mt_bench" else self._alpaca_eval()

    def _alpaca_eval(self) -> list[str]:
        """Write AlpacaEval's outputs of each model, and its annotations of every two that met, the measure as output_1."""
        lines = []
        for name, answers in self.answers.items():
            file = self.folder / name / "model_outputs.json"
            write_outputs(file, self.prompts, answers, name)
            lines.append(f"{file}: {len(answers)} answers")
        verdicts = Verdicts(self.records)
        for model, against in dict.fromkeys((row["model"], row["against"]) for row in self.meetings):
            met = [row for row in self.meetings if (row["model"], row["against"]) == (model, against)]
            file = self.folder / f"{model}-against-{against}" / "annotations.json"
            told = [_settled(row, verdicts, self.judge) for row in met]
            # Apart by model too: who said the same is still two.
            both = [
                draw.model_copy(update={"id": f"{draw.sampler} {draw.id}"})
                for name in (against, model)
                for draw in self.answers[name]
            ]
            write_annotations(file, self.prompts, both, told)
            failed = sum(one.error is not None for one in told)
            lines.append(f"{file}: {len(told)} verdicts{f', {failed} of them failed, without a preference' if failed else ''}")
        return lines

    def _mt_bench(self) -> list[str]:
        """Write MT-bench's questions, answers and judgments, as FastChat lays them out."""
        write_mt_bench_questions(self.folder / "question.jsonl", self.prompts)
        lines = [f"{self.folder / 'question.jsonl'}: {len(self.prompts)} questions"]
        for name, answers in self.answers.items():
            file = self.folder / "model_answer" / f"{name}.jsonl"
            write_mt_bench_answers(file, self.prompts, answers, name)
            lines.append(f"{file}: {len(answers)} answers")
        every = [draw for answers in self.answers.values() for draw in answers]
        if self.records:
            kind = "pair" if isinstance(self.records[0], Comparison) else "single"
            file = self.folder / "model_judgment" / f"{self.judge}_{kind}.jsonl"
            write_mt_bench_judgments(file, self.prompts, every, self.records)
            lines.append(f"{file}: {len(self.records)} verdicts")
        unasked = sum(row["reason"] in ("the same text", "an empty answer loses") for row in self.meetings)
        if unasked:
            lines.append(f"{unasked} meetings of equal or empty answers were decided without the judge, and are in no judgment")
        return lines


def _about(one: Comparison | Rating) -> set[str]:
    return {one.first, one.second} if isinstance(one, Comparison) else {one.completion_id}


def _meetings(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _settled(row: dict[str, str], verdicts: Verdicts, judge: str) -> Comparison:
    """Return a meeting's settled verdict, what it is measured by as the first; one that turned with the order is a tie."""
    prompt, winner = row["prompt_id"], WON.get(row["verdict"])
    first, second = (Completion.of(prompt, row[name], sampler="").id for name in ("against_text", "text"))
    outcome = verdicts.outcome(first, second)
    sure = outcome.kind == "win" and 0 < outcome.flip_probability < 0.5
    return Comparison(
        prompt_id=prompt,
        first=f"{row['against']} {first}",
        second=f"{row['model']} {second}",
        judge=judge,
        winner=winner,
        probability=outcome.probability(first) if sure else None,
        reason=row["reason"],
        error=None if winner else row["reason"] or "no verdict could be read",
    )
