"""A run's records to search, filter and page through: SQLite in memory, brought up to date file by file.

A word is looked for anywhere in a text, inside other words too: marks such as ** and languages without spaces are found,
which an index of words cannot do, and going through all texts takes less than the second that a reader waits.
"""

from __future__ import annotations

import csv
import glob
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tiebreak.app.votes import judge_of
from tiebreak.metrics.agreement import Outcome, Verdicts
from tiebreak.recipe import GIVEN
from tiebreak.records import Completion, InputError, Prompt
from tiebreak.run import Run
from tiebreak.stages.twos import twos

Kind = Literal["prompts", "completions", "comparisons", "pairs"]
Range = tuple[float | None, float | None]
"""From and to, both included; None is open."""
ANY: Range = (None, None)
WINNERS = ("first", "second", "tie", "inconsistent", "unreadable")
"""What a judge's verdict on two completions can be."""


class Query(NamedTuple):
    """What is looked for; what is None or open filters nothing."""

    kind: Kind = "prompts"
    text: str = ""
    """Words that all have to be in a row, in any case, with accents or not; "several words" in quotation marks as one."""
    split: str | None = None
    judge: str | None = None
    winner: str | None = None
    length: Range = ANY
    """Characters: of a prompt, a completion, the longer one of two."""
    margin: Range = ANY
    flip: Range = ANY
    """Probability that the label is the wrong way round."""


class Text(NamedTuple):
    """One distinct completion."""

    id: str
    text: str
    origin: str
    """Who drew it, and how often."""
    scores: tuple[tuple[str, float | None, str], ...] = ()
    """Judge, score and reason."""


class Row(NamedTuple):
    """A prompt with none, one or two of its completions, and of two what a judge said, or what made a pair of them."""

    kind: Kind
    prompt: Prompt
    texts: tuple[Text, ...] = ()
    judge: str = ""
    winner: str = ""
    """One of WINNERS; of a pair `first`, which is the chosen one."""
    margin: float = 0.0
    flip: float = 0.0
    reason: str = ""


class Found(NamedTuple):
    """One page of rows, and how many there are on all pages."""

    rows: list[Row]
    total: int


class Life(NamedTuple):
    """All that a run knows of one prompt."""

    prompt: Prompt
    texts: tuple[Text, ...]
    comparisons: list[Row]
    pairs: list[Row]
    meetings: list[dict[str, str]]
    """Lines of eval/results.csv: base against tuned."""


SCHEMA = """
CREATE TABLE prompts (no INTEGER PRIMARY KEY, split TEXT, length INTEGER, folded TEXT);
CREATE TABLE completions (no INTEGER PRIMARY KEY, id TEXT, prompt INTEGER, text TEXT, origin TEXT, length INTEGER, folded TEXT);
CREATE TABLE twos (
  no INTEGER PRIMARY KEY, kind TEXT, judge TEXT, prompt INTEGER, one INTEGER, other INTEGER,
  winner TEXT, margin REAL, flip REAL, reason TEXT, length INTEGER, folded TEXT);
CREATE TABLE scores (completion INTEGER, judge TEXT, score REAL, reason TEXT);
CREATE INDEX of_prompt ON completions (prompt);
CREATE INDEX two_of_prompt ON twos (prompt);
CREATE INDEX of_completion ON scores (completion);
"""
TABLES = {"prompts": "prompts", "completions": "completions", "comparisons": "twos", "pairs": "twos"}
HERE = "folded GLOB :word{0}"
IN_PROMPT = "prompt IN prompts{0}"
IN_TEXTS = "one IN texts{0} OR other IN texts{0}"
MATCHES = {
    "prompts": HERE,
    "completions": f"{HERE} OR {IN_PROMPT}",
    "comparisons": f"{HERE} OR {IN_PROMPT} OR {IN_TEXTS}",
    "pairs": f"{IN_PROMPT} OR {IN_TEXTS}",
}
"""Where a word may be."""
HITS = """prompts{0} AS MATERIALIZED (SELECT no FROM prompts WHERE folded GLOB :word{0}),
texts{0} AS MATERIALIZED (SELECT no FROM completions WHERE folded GLOB :word{0})"""
"""Prompts and completions that hold a word, each gone through once."""


class Index:
    """One run's records. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget()

    def find(self, query: Query, page: int = 0, size: int = 20) -> Found:
        """Return the rows of a page, counted from 0, in the order of the prompts. Raises InputError."""
        statement, values = _statement(query)
        with self._lock:
            self._refresh()
            numbers = [no for (no,) in self._rows(statement, values)]
            some = numbers[page * size : (page + 1) * size]
            rows = [self._rows(f"SELECT * FROM {TABLES[query.kind]} WHERE no = ?", (no,))[0] for no in some]  # noqa: S608
            return Found([self._row(query.kind, row) for row in rows], len(numbers))

    def life(self, prompt_id: str) -> Life:
        """Return one prompt's life. Raises InputError where the run has no such prompt."""
        with self._lock:
            run = self._refresh()
            number = self._prompt_no.get(prompt_id)
            if number is None:
                raise InputError(f"{self.path}: no prompt {prompt_id!r}; it may have been prepared anew")
            rows = self._rows("SELECT * FROM twos WHERE prompt = ? ORDER BY one, other, judge", (number,))
            of = {kind: [self._row(kind, row) for row in rows if row[1] == kind] for kind in ("comparisons", "pairs")}
            texts = [self._text(row) for row in self._rows("SELECT * FROM completions WHERE prompt = ? ORDER BY no", (number,))]
        return Life(self._prompts[number], tuple(texts), of["comparisons"], of["pairs"], list(_meetings(run, prompt_id)))

    def judges(self) -> list[str]:
        """Return the names of the judges whose verdicts there are."""
        with self._lock:
            self._refresh()
            return [
                name for (name,) in self._rows("SELECT DISTINCT judge FROM twos WHERE kind = 'comparisons' ORDER BY judge", ())
            ]

    def _rows(self, statement: str, values: Any) -> list[Any]:
        return self._database.execute(statement, values).fetchall()

    def _row(self, kind: Kind, row: Sequence[Any]) -> Row:
        if kind == "prompts":
            return Row(kind, self._prompts[row[0]])
        if kind == "completions":
            return Row(kind, self._prompts[row[2]], (self._text(row),))
        both = [self._text(self._rows("SELECT * FROM completions WHERE no = ?", (no,))[0]) for no in row[4:6]]
        return Row(kind, self._prompts[row[3]], tuple(both), row[2], *row[6:10])

    def _text(self, row: Sequence[Any]) -> Text:
        scores = self._rows("SELECT judge, score, reason FROM scores WHERE completion = ?", (row[0],))
        return Text(row[1], row[3], row[4], tuple(scores))

    # --- reading ---------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.executescript(SCHEMA)
        self._seen: dict[str, Any] = {}
        self._prompts: list[Prompt] = []
        self._prompt_no: dict[str, int] = {}
        self._completion_no: dict[str, int] = {}
        self._lengths: list[int] = []
        """Of completions."""

    def _refresh(self) -> Run:
        """Read what has changed since it was read, each file as a whole."""
        run = Run(self.path)
        base = _stamp(run.prompts_jsonl, run.completions_jsonl, run.given_jsonl)
        if self._seen.get("texts") != base:
            self._forget()
        self._again("texts", base, partial(self._read_texts, run))
        for name in dict.fromkeys([*(judge.name for judge in run.recipe.judges), *[GIVEN] * run.ready_made, judge_of(run)]):
            self._again(f"judge {name}", _stamp(run.judgments(name)), partial(self._read_judge, run, name))
        pairs = (run.pairs_jsonl, run.held_out_pairs_jsonl)
        self._again("pairs", _stamp(*pairs), partial(self._read_pairs, run, pairs))
        return run

    def _again(self, what: str, stamp: Any, read: Callable[[], None]) -> None:
        if self._seen.get(what) != stamp:
            with self._database:
                read()
            self._seen[what] = stamp

    def _insert(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        first = next(rows := iter(rows), None)
        if first is not None:
            marks = ", ".join("?" * len(first))
            self._database.executemany(f"INSERT INTO {table} VALUES ({marks})", chain([first], rows))  # noqa: S608  no value is in it

    def _read_texts(self, run: Run) -> None:
        self._prompts = run.prompts()
        self._prompt_no = {prompt.id: no for no, prompt in enumerate(self._prompts)}
        self._insert(
            "prompts",
            ((no, prompt.split, len(prompt.text), fold(_whole(prompt))) for no, prompt in enumerate(self._prompts)),
        )
        draws: dict[str, list[Completion]] = {}
        for draw in run.draws():
            if draw.prompt_id in self._prompt_no:
                draws.setdefault(draw.id, []).append(draw)
        self._completion_no = {id: no for no, id in enumerate(draws)}
        self._lengths = [len(same[0].text) for same in draws.values()]
        self._insert(
            "completions",
            (
                (no, id, self._prompt_no[same[0].prompt_id], text := same[0].text, _origin(same), len(text), fold(text))
                for no, (id, same) in enumerate(draws.items())
            ),
        )

    def _read_judge(self, run: Run, judge: str) -> None:
        self._database.execute("DELETE FROM twos WHERE kind = 'comparisons' AND judge = ?", (judge,))
        self._database.execute("DELETE FROM scores WHERE judge = ?", (judge,))
        verdicts = Verdicts(run.verdicts(run.judgments(judge)))
        if verdicts.ratings:
            rated = ((self._completion_no.get(id), rating) for id, rating in verdicts.ratings.items())
            self._insert("scores", ((no, judge, each.score, each.error or each.reason) for no, each in rated if no is not None))
            both = ((prompt.id, one.id, other.id) for prompt, one, other in twos(run) if one.id != other.id)
        else:
            both = ((own[0].prompt_id, own[0].first, own[0].second) for own in verdicts.comparisons.values())
        rows = (("comparisons", judge, *each, verdicts.outcome(*each[1:]), _reasons(verdicts, *each[1:])) for each in both)
        self._insert("twos", self._known(rows))

    def _read_pairs(self, run: Run, paths: Iterable[Path]) -> None:
        self._database.execute("DELETE FROM twos WHERE kind = 'pairs'")
        made = ((pair, pair.provenance) for path in paths for pair in run.pairs(path))
        self._insert(
            "twos",
            self._known(
                (
                    "pairs", str(of.get("judge", "")), str(of.get("prompt_id")), chosen := str(of.get("chosen_id")),
                    str(of.get("rejected_id")), Outcome("win", chosen, pair.margin, pair.flip_probability), "",
                )
                for pair, of in made
            ),
        )  # fmt: skip

    def _known(self, rows: Iterable[tuple[str, str, str, str, str, Outcome, str]]) -> Iterator[tuple[Any, ...]]:
        """Yield lines of the table of twos; one whose texts the run does not have is left out."""
        for kind, judge, prompt, one, other, outcome, reason in rows:
            places = self._prompt_no.get(prompt), self._completion_no.get(one), self._completion_no.get(other)
            if places[0] is not None and places[1] is not None and places[2] is not None:
                winner = outcome.vote(one) if outcome.kind == "win" else outcome.kind
                length = max(self._lengths[places[1]], self._lengths[places[2]])
                why = reason or outcome.reason
                yield None, kind, judge, *places, winner, outcome.margin, outcome.flip_probability, why, length, fold(why)


# --- words ---------------------------------------------------------------------------------------------------------

COMBINING = re.compile("[\u0300-\u036f]+")


def fold(text: str) -> str:
    """Return a text in small letters, without accents, and with single spaces."""
    if not text.isascii():
        text = COMBINING.sub("", unicodedata.normalize("NFKD", text)).casefold()
    return " ".join(text.lower().split())


def words(text: str) -> list[str]:
    """Return what a reader looks for: words, and in quotation marks several as one."""
    return [phrase or word for phrase, word in re.findall(r'"([^"]+)"|(\S+)', text)]


def marked(text: str, looked_for: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a text, and whether each is one of the words that were looked for."""
    pieces = re.split(f"({'|'.join(map(re.escape, looked_for))})", text, flags=re.IGNORECASE) if looked_for else [text]
    yield from ((piece, at % 2 == 1) for at, piece in enumerate(pieces) if piece)


def _statement(query: Query) -> tuple[str, dict[str, Any]]:
    """Return the SQL for the numbers of all rows that a query finds, and the values in it."""
    kind, values = query.kind, dict[str, Any]()
    hits, asked = list[str](), ["TRUE"]

    def also(condition: str, value: Any) -> None:
        name = f"value{len(values)}"
        values[name] = value
        asked.append(condition.replace("?", f":{name}"))

    for at, word in enumerate(words(query.text)):
        hits.append(HITS.format(at))
        asked.append(f"({MATCHES[kind].format(at)})")
        values[f"word{at}"] = f"*{glob.escape(fold(word))}*"
    if query.split:
        also("split = ?" if kind == "prompts" else "prompt IN (SELECT no FROM prompts WHERE split = ?)", query.split)
    ranges = {"length": query.length}
    if kind in ("comparisons", "pairs"):
        also("kind = ?", kind)
        ranges |= {"margin": query.margin, "flip": query.flip}
    if kind == "comparisons":
        for column, value in (("judge", query.judge), ("winner", query.winner)):
            if value:
                also(f"{column} = ?", value)
    for column, bounds in ranges.items():
        for sign, bound in zip((">=", "<="), bounds, strict=True):
            if bound is not None:
                also(f"{column} {sign} ?", bound)
    order = {"prompts": "no", "completions": "prompt, no"}.get(kind, "prompt, one, other, judge")
    first = f"WITH {', '.join(hits)} " if hits else ""
    return f"{first}SELECT no FROM {TABLES[kind]} WHERE {' AND '.join(asked)} ORDER BY {order}", values  # noqa: S608  no value is in it


# --- rows ----------------------------------------------------------------------------------------------------------


def _stamp(*paths: Path) -> list[tuple[int, int] | None]:
    """Return what changes when a file does."""
    return [(stat.st_mtime_ns, stat.st_size) if path.exists() and (stat := path.stat()) else None for path in paths]


def _whole(prompt: Prompt) -> str:
    return "\n".join([*(message.content for message in prompt.messages), *map(str, prompt.meta.values())])


def _origin(same: Sequence[Completion]) -> str:
    samplers = ", ".join(dict.fromkeys(draw.sampler for draw in same))
    times = f", drawn {len(same)} times" if len(same) > 1 else ""
    return f"{samplers}{times}{', cut at the token limit' if same[0].finish_reason == 'length' else ''}"


def _reasons(verdicts: Verdicts, one: str, other: str) -> str:
    """Return everything that a judge gave as a reason, in one order and the other."""
    own = verdicts.comparisons.get(frozenset((one, other)), ())
    return "\n".join(dict.fromkeys(each.reason or each.error or "" for each in own)).strip()


def _meetings(run: Run, prompt_id: str) -> Iterator[dict[str, str]]:
    if run.state("evaluate") == "done" and run.results_csv.exists():
        csv.field_size_limit(1 << 30)
        with run.results_csv.open(encoding="utf-8", newline="") as stream:
            yield from (row for row in csv.DictReader(stream) if row["prompt_id"] == prompt_id)
