"""audit: say before training what is wrong with the pairs: of a run, of a recipe's source, or of any file of pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from os.path import commonprefix
from pathlib import Path
from typing import Any

from tiebreak import models
from tiebreak.exchange.sources import READERS, Row, columns_of, content_of, need_column, read_rows
from tiebreak.files import read_json, read_jsonl, write_json
from tiebreak.judges.language import detect
from tiebreak.metrics.audit import Audited, Bad, Pair, ordered
from tiebreak.metrics.audit import audit as audit_pairs
from tiebreak.metrics.findings import PRIVATE, Finding, finding
from tiebreak.metrics.rules import SEVERITIES
from tiebreak.metrics.winrate import Estimate
from tiebreak.progress import say
from tiebreak.recipe import LlmJudge, Model, Prompts, RulesJudge, Train
from tiebreak.recipe.prompts import PairColumns
from tiebreak.records import Completion, InputError, Message, PreferencePair, Prompt, Rating
from tiebreak.reporting.view import AuditFile, Seen
from tiebreak.run import Counts, Run
from tiebreak.stages.prepare import candidates
from tiebreak.stages.tokens import token_findings, view
from tiebreak.stages.trust import trust

HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
"""What a column `split` says of rows that are not trained on."""
ASKED = ("prompt", "instruction", "question", "conversations", "messages")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"))
LABELS = ("label", "winner", "preferred", "preference")
"""Columns that say, at their end, which of two answers won."""
FEWEST_LABELS = 20
CONTRADICTING, ONE_SIDED = 0.1, 0.15
"""Share of contradictions that is told, and distance from 0.5 of the share that comes first."""


def audit(run: Run) -> Counts:
    """Audit the pairs of a run, write `audit.json`, and say what is above a note. Never stops the run."""
    findings, pairs = audit_run(run)
    write_json(run.audit_json, AuditFile(pairs=pairs, findings=tuple(findings), view=tuple(view_run(run))).model_dump())
    for one in findings:
        if one.severity != "note":
            say(f"audit {one.severity}: {one.sentence} {one.what_to_do}")
    return {"pairs": pairs, **{f"{kind}s": sum(one.severity == kind for one in findings) for kind in SEVERITIES}}


def read_findings(run: Run) -> tuple[Finding, ...]:
    """Return what the audit of a run found."""
    return AuditFile.model_validate(read_json(run.audit_json)).findings


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield findings for a terminal: what, what to do, and the examples."""
    for one in findings:
        yield f"{one.severity}: {one.sentence}  [{one.code}]"
        yield f"  {one.what_to_do}"
        yield from (f"    {example.where}{': ' if example.text else ''}{example.text}" for example in one.examples)


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """Return 1 where there is an error, or with `strict` a warning, else 0."""
    grave = {"error", "warning"} if strict else {"error"}
    return int(any(one.severity in grave for one in findings))


# --- a run ---------------------------------------------------------------------------------------------------------


def audit_run(run: Run) -> tuple[list[Finding], int]:
    """Audit a run's pairs, or where it has none yet the ready-made ones of its source; InputError where there are none.

    Returns what was found, and in how many pairs.
    """
    if run.pairs_jsonl.exists():
        scores, scale = _ratings(run)
        held_out = sum(prompt.split == "test" for prompt in read_jsonl(run.prompts_jsonl, Prompt)) if run.recipe.evaluate else 0
        cut = {draw.id for draw in read_jsonl(run.completions_jsonl, Completion) if draw.finish_reason == "length"}
        done = audit_pairs(lambda: _run_pairs(run, scores, cut), detect, held_out=held_out, scale=scale)
        found = done.findings + list(_judges(run))
    elif run.recipe.prompts.pairs:
        rows = read_rows(run)
        done = audit_pairs(lambda: (_pair(row._replace(where=Path(row.where).name), run.recipe.prompts) for row in rows), detect)
        found = done.findings
    else:
        raise InputError(f"{run.path}: has no pairs yet; run `tiebreak pair` first")
    found += _tokens(done, run.recipe.model, run.recipe.max_length)
    return ordered(found), done.pairs


def _run_pairs(run: Run, scores: dict[str, float], cut: set[str]) -> Iterator[Pair]:
    for path in (run.pairs_jsonl, run.held_out_pairs_jsonl):
        for pair in read_jsonl(path, PreferencePair):
            chosen, rejected = (str(pair.provenance.get(name)) for name in ("chosen_id", "rejected_id"))
            yield Pair(
                f"prompt {pair.provenance.get('prompt_id')}",
                pair.prompt,
                pair.chosen[-1].content,
                pair.rejected[-1].content,
                test=path == run.held_out_pairs_jsonl,
                margin=None if run.ready_made else pair.margin,  # of those, it only says that somebody chose
                scores=(scores[chosen], scores[rejected]) if {chosen, rejected} <= scores.keys() else None,
                cut=chosen in cut,
            )


def _ratings(run: Run) -> tuple[dict[str, float], tuple[float, float] | None]:
    """Return the scores of the first judge that scores on a known scale, and the scale."""
    for judge in run.recipe.judges:
        scale = (1.0, 10.0) if isinstance(judge, LlmJudge) else (0.0, 1.0) if isinstance(judge, RulesJudge) else None
        if scale is not None and judge.rates and run.judgments(judge.name).exists():
            ratings = (verdict for verdict in run.verdicts(run.judgments(judge.name)) if isinstance(verdict, Rating))
            return {rating.completion_id: rating.score for rating in ratings if rating.score is not None}, scale
    return {}, None


def _judges(run: Run) -> Iterator[Finding]:
    """Yield what is wrong with the judges that the labels rest on."""
    labelling = run.recipe.members(run.recipe.labelling_judge)
    for judge in (judge for judge in trust(run).judges if judge.name in labelling):
        if judge.canaries and judge.canaries.failed:
            asked = judge.canaries.identical_asked + judge.canaries.garbage_asked
            failed = asked - judge.canaries.identical_passed - judge.canaries.garbage_passed
            yield finding("canaries", failed, asked, judge=judge.name, trouble=judge.canaries.sentence)
        flips, first = judge.bias.flips, judge.bias.first
        if flips and flips.value >= CONTRADICTING:
            yield _told("judge-flips", flips, judge.name)
        if first and (first.low > 0.5 + ONE_SIDED or first.high < 0.5 - ONE_SIDED):
            yield _told("judge-position", first, judge.name)


def _told(code: str, share: Estimate, judge: str) -> Finding:
    facts: dict[str, Any] = {name: f"{getattr(share, name):.2f}" for name in ("value", "low", "high")}
    return finding(code, round(share.value * share.n), share.n, judge=judge, **facts)


def _tokens(done: Audited, model: Model, max_length: int) -> list[Finding]:
    if not done.pairs:
        return []
    tokenizer = models.load_tokenizer(model)
    return token_findings(done.sample.pairs, tokenizer, max_length, encoder_decoder=_encoder_decoder(model))


def view_run(run: Run, n: int = 3) -> list[Seen]:
    """Return both answers of a run's first pairs as training sees them."""
    return _view(_run_pairs(run, {}, set()), run.recipe.model, n, run.recipe.max_length)


def view_file(path: Path, tokenizer_name: str, n: int = 3) -> list[Seen]:
    """Return both answers of a file's first pairs as training would see them with a model's tokenizer."""
    return _view(_File(path).pairs(), Model(name_or_path=tokenizer_name), n, Train().max_length)


def _view(rows: Iterable[Pair | Bad], model: Model, n: int, max_length: int) -> list[Seen]:
    pairs = (row for row in rows if isinstance(row, Pair) and row.prompt)
    open_ones = (
        pair for pair in pairs if not any(private.search(f"{pair.asked} {pair.chosen} {pair.rejected}") for private in PRIVATE)
    )
    some = list(islice(open_ones, 10 * n))  # training leaves some out
    return view(some, models.load_tokenizer(model), n, max_length, encoder_decoder=_encoder_decoder(model))


def _encoder_decoder(model: Model) -> bool:
    from transformers import AutoConfig

    name, options = models.locate(model)
    adapter = Path(name) / models.ADAPTER
    if adapter.is_file():
        return bool(read_json(adapter).get("task_type") == "SEQ_2_SEQ_LM")
    with models.loading(model):
        return bool(AutoConfig.from_pretrained(name, **options).is_encoder_decoder)


# --- a file --------------------------------------------------------------------------------------------------------


def audit_file(path: Path, tokenizer_name: str | None = None, held_out: Path | None = None) -> list[Finding]:
    """Audit a .jsonl, .json, .csv or .parquet file of `chosen` and `rejected`, with `prompt` or without, as TRL takes them.

    `held_out` is a second file of pairs that are not trained on; a column `split` says the same of rows. With a model's
    name its tokens are looked at too. Raises InputError for a file that holds no pairs.
    """
    sources = [_File(path), *([_File(held_out, test=True)] if held_out else [])]
    done = audit_pairs(lambda: chain.from_iterable(source.pairs() for source in sources), detect)
    found = done.findings + [one for source in sources for one in source.labels()]
    if tokenizer_name:
        found += _tokens(done, Model(name_or_path=tokenizer_name), Train().max_length)
    return ordered(found)


class _File:
    """A file of ready-made pairs, read anew each time: line by line where the format allows it, else once and for all."""

    def __init__(self, path: Path, *, test: bool = False) -> None:
        kind = path.suffix.lower()
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if kind not in READERS or kind == ".txt":
            raise InputError(f"{path}: not a file of pairs; use .jsonl, .json, .csv or .parquet")
        self.path, self.test = path, test
        whole = None if kind in LINES else list(READERS[kind](path))
        self.rows: Callable[[], Iterable[Row | Bad]] = lambda: LINES[kind](path) if whole is None else whole
        self.prompts = Prompts(source=str(path), pairs=PairColumns())
        self.said: dict[str, Counter[Any]] = {}
        columns = columns_of(row for row in islice(self.rows(), 100) if isinstance(row, Row))
        for name in ("chosen", "rejected") if columns else ():
            if name not in columns:
                unpaired = "label" in columns and {"messages", "completion"} & set(columns)
                hint = (
                    "single answers with a label are no pairs; put a good and a bad one of the same prompt together"
                    if unpaired
                    else "name its columns in a recipe (prompts.pairs), and audit that"
                )
                raise InputError(f"{path}: no column {name!r}; there is {', '.join(map(repr, columns))}; {hint}")

    def pairs(self) -> Iterator[Pair | Bad]:
        """Yield the pairs, and what is none."""
        said: dict[str, Counter[Any]] = {}
        for row in self.rows():
            where = row.where.removeprefix(f"{self.path}, ")
            where = f"{self.path.name}, {where}" if self.test else where
            if isinstance(row, Bad):
                yield row._replace(where=where)
                continue
            for name, value in row.cells.items():
                if name.lower().endswith(LABELS) and isinstance(value, str | int):
                    own = said.setdefault(name, Counter())
                    if value in own or len(own) < 2:
                        own[value] += 1
            yield _pair(Row(where, row.cells), self.prompts, test=self.test)
        self.said = said  # of all rows, not of those that examples are taken from

    def labels(self) -> Iterator[Finding]:
        """Yield the columns that say which of two won, and always say the same."""
        for name, own in self.said.items():
            ((value, n), *others) = own.most_common()
            if not others and n >= FEWEST_LABELS:
                yield finding("label-constant", n, n, column=repr(name), value=repr(value))


def _jsonl(path: Path) -> Iterator[Row | Bad]:
    with path.open("rb") as stream:  # only a newline byte ends a line: U+2028 and its like are text
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield Bad(f"line {number}", "unreadable", str(error).splitlines()[0])
            else:
                yield (
                    Row(f"line {number}", cells) if isinstance(cells, dict) else Bad(f"line {number}", "unreadable", "no object")
                )


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (cells for batch in file.iter_batches(1024) for cells in batch.to_pylist())
            yield from (Row(f"row {number}", cells) for number, cells in enumerate(rows, start=1))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not valid Parquet: {str(error).splitlines()[0]}") from None


LINES: dict[str, Callable[[Path], Iterator[Row | Bad]]] = {".jsonl": _jsonl, ".parquet": _parquet}


def _pair(row: Row, prompts: Prompts, *, test: bool = False) -> Pair | Bad:
    """Read a row as `prepare` does, but tell what is wrong with it instead of stopping."""
    answers = (prompts.pairs.chosen, prompts.pairs.rejected) if prompts.pairs else ()
    columns = {name.lower(): name for name in row.cells}
    asking = next((columns[name] for name in ASKED if name in columns), None) if prompts.column is None else prompts.column
    for name in (*answers, *([asking] if asking in row.cells and prompts.template is None else [])):
        if name in row.cells and (kind := _no_text(row.cells[name])):
            return Bad(row.where, "not-text", f"{name} holds {kind}")
    test = test or str(row.cells.get("split", "")).lower() in HELD_OUT
    try:
        for name in answers:
            need_column(name, row.cells, row.where)
        sides = [content_of(row, name) for name in answers]
        texts = [side for side in sides if isinstance(side, str)]
        if asking is None and prompts.template is None and len(texts) == 2:  # both begin with their prompt
            shared = commonprefix(texts).removesuffix(" ")  # noqa: RUF071  by characters, as training reads such rows
            shared = "" if texts[0] == texts[1] else shared
            prompt: tuple[Message, ...] = (Message(role="user", content=shared),) if shared else ()
            chosen, rejected = (text[len(shared) :] for text in texts)
        else:
            (candidate,) = candidates([row], prompts)
            prompt, chosen, rejected = candidate.messages, candidate.chosen, candidate.rejected
            if not prompt:  # then it has no answers either, which are to be looked at all the same
                chosen, rejected = (side if isinstance(side, str) else side[-1].content if side else "" for side in sides)
    except InputError as error:
        return Bad(row.where, "unreadable", str(error).removeprefix(row.where).lstrip(":, "))
    return Pair(row.where, prompt, chosen, rejected, test, _number(row.cells.get("margin")), _scores(row.cells))


def _no_text(value: Any) -> str:
    """Return what a cell holds in place of text, in words; nothing where it is text or a chat."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "nothing"
    return "" if isinstance(value, str | list | dict) else "true or false" if isinstance(value, bool) else "a number"


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _scores(cells: dict[str, Any]) -> tuple[float, float] | None:
    for names in SCORES:
        chosen, rejected = (_number(cells.get(name)) for name in names)
        if chosen is not None and rejected is not None and math.isfinite(chosen + rejected):
            return chosen, rejected
    return None
