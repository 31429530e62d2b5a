"""From a source to prompts: read or write them, filter, split by prompt; ready-made pairs bring completions and verdicts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from tiebreak.exchange.asked import number
from tiebreak.exchange.sources import Chat, Row, columns_of, content_of, need_column, read_rows, scalars_of, text_of, texts_of
from tiebreak.exchange.votes import thumb
from tiebreak.files import appending, read_jsonl, write_jsonl
from tiebreak.judges.ifeval import FIELDS, instructions
from tiebreak.progress import progress
from tiebreak.recipe import GIVEN, Filters, Prompts, RulesJudge, Write
from tiebreak.recipe.checks import IfEval
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt, Rating, content_hash, prompt_id
from tiebreak.run import Counts, Run
from tiebreak.samplers.build import build_sampler

FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")

TURNS = ("turns", "reference")
"""Fields of MT-bench's questions with a text for each turn."""
ROUNDS = 5
"""Times that a writer is asked for more prompts on one topic."""
SHORTEST_WRITTEN = 10
MARKS = re.compile(r"^(?:[-*•–]\s+|•|\(?\d{1,3}[.):](?!\d)\s*)+")
"""Bullets and numbers before a line."""


class Candidate(NamedTuple):
    """A row as a prompt, and with ready-made pairs its two answers; a labelled answer is the chosen one."""

    messages: Chat
    meta: dict[str, Any]
    chosen: str = ""
    rejected: str = ""
    good: bool | None = None
    """The label of a labelled answer."""
    flip_probability: float = 0.0
    """How likely a ready-made pair is the wrong way round."""

    @property
    def prompt(self) -> str:
        """The last user turn; empty where the row has no prompt."""
        return self.messages[-1].content if self.messages else ""

    @property
    def key(self) -> str:
        """What makes a row the same as another; without pairs, the prompt's id."""
        prompt = prompt_id(self.messages)
        label = () if self.good is None else (self.good,)
        return content_hash(prompt, self.chosen, self.rejected, *label) if self.chosen or self.rejected else prompt


def prepare(run: Run) -> Counts:
    """Make `prompts.jsonl`, and from ready-made pairs the completions and the verdicts that came with them.

    Raises InputError for a source that cannot be read, a row without the right shape, and a split without prompts.
    """
    prompts, seed = run.recipe.prompts, run.recipe.seed
    counts: Counts = {}
    if prompts.write is not None:
        rows = _write(run, prompts.write)
        counts["short"] = prompts.write.n - len(rows)
    elif prompts.items is not None:
        rows = [Row(f"prompts.items.{number}", {"prompt": text}) for number, text in enumerate(prompts.items)]
    else:
        rows = read_rows(run)
    found = candidates(rows, prompts, ifeval=_asks_ifeval(run), turns=not run.recipe.makes_pairs)
    kept, dropped = _sieve(list(found), prompts.filters, seed)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"prompts: none is left of {len(rows)} rows ({reasons or 'none came'}); loosen prompts.filters")

    distinct: dict[str, Candidate] = {}
    for candidate in kept:
        distinct.setdefault(prompt_id(candidate.messages), candidate)
    fraction = run.recipe.test_fraction
    held_out = _told(kept, prompts.split) if prompts.split else _held_out(distinct, fraction, seed, trains=run.recipe.makes_pairs)
    if prompts.held_out == "validation":
        distinct = {key: candidate for key, candidate in distinct.items() if key not in held_out}
        dropped["kept for the test"] = sum(prompt_id(candidate.messages) in held_out for candidate in kept)
        kept = [candidate for candidate in kept if prompt_id(candidate.messages) in distinct]
        held_out = _held_out(distinct, fraction if not prompts.split else 0.1, seed + 1, trains=True)
    records = [
        Prompt.of(candidate.messages, "test" if key in held_out else "train", candidate.meta)
        for key, candidate in distinct.items()
    ]
    if prompts.given:
        completions, verdicts = _given(kept)
        write_jsonl(run.completions_jsonl, completions)
        write_jsonl(run.given_jsonl, verdicts)
        counts |= {"pairs": len(kept)} if prompts.pairs else {"labels": _tally(verdicts)}
    write_jsonl(run.prompts_jsonl, records)  # last: where it stands, the others do
    return {
        "rows": len(rows),
        "kept": len(kept),
        "dropped": dict(dropped),
        "prompts": len(records),
        "train": len(records) - len(held_out),
        "test": len(held_out),
        **counts,
    }


# --- from rows to prompts ------------------------------------------------------------------------------------------


def _asks_ifeval(run: Run) -> bool:
    checks = (check for judge in run.recipe.judges if isinstance(judge, RulesJudge) for check in judge.checks)
    return any(isinstance(check, IfEval) for check in checks)


def candidates(rows: list[Row], prompts: Prompts, *, ifeval: bool = False, turns: bool = False) -> Iterator[Candidate]:
    """Yield every row as a prompt, an empty one where it has none; raises InputError.

    `ifeval` and `turns` say that the fields of IFEval's instructions, and those of MT-bench's later turns, are kept.
    """
    columns = columns_of(rows)
    section = "pairs" if prompts.pairs else "labels"
    named = dict(prompts.pairs or prompts.labels or ())
    for key, name in named.items():
        if name is not None:
            need_column(name, columns, f"prompts.{section}.{key}")
    label, flips = named.pop("label", None), named.pop("flip_probability", None)
    answers = tuple(named.values())
    if prompts.split is not None:
        need_column(prompts.split, columns, "prompts.split")
    ask = _asker(prompts, [name for name in columns if name not in (*answers, label, flips)])
    for row in rows:
        sides = [content_of(row, name) for name in answers]
        # Two whole conversations say themselves what was asked, unless the recipe says it.
        whole = prompts.column is None and prompts.template is None and len(sides) > 1 and all(map(_has_question, sides))
        if whole:
            messages = _common_prompt(sides[0], sides[1], row.where)
        elif ask is not None:
            messages = ask(row)
        else:
            has = ", ".join(map(repr, columns)) or "none"
            raise InputError(f"{row.where}: which column is the prompt? Name it in prompts.column; there is {has}")
        if not messages or not messages[-1].content.strip():
            yield Candidate((), {})
            continue
        texts = [_answer(side, messages, f"{row.where}, column {name!r}") for side, name in zip(sides, answers, strict=True)]
        if prompts.system and messages[0].role != "system":
            messages = (Message(role="system", content=prompts.system), *messages)
        if ifeval:  # here a mistake still has its line
            instructions(row.cells, row.where)
        good = None
        if label is not None and (good := thumb(row.cells.get(label), row.where)) is None:
            yield Candidate((), {})
            continue
        meta = scalars_of(row, (*answers, *filter(None, [label, flips])), FIELDS if ifeval else ())
        if turns:
            meta |= {name: lists for name in TURNS if (lists := texts_of(row.cells.get(name)))}
        doubt = 0.0 if flips is None else _doubt(row, flips)
        yield Candidate(messages, meta, "".join(texts[:1]), "".join(texts[1:]), good, doubt)


def _doubt(row: Row, column: str) -> float:
    """Return a row's flip probability. Raises InputError."""
    value = number(said := row.cells.get(column))
    if said not in (None, "") and (value is None or not 0 <= value <= 0.5):
        raise InputError(f"{row.where}, column {column!r}: {str(said)[:40]!r} is no probability from 0 to 0.5")
    return value or 0.0


def _asker(prompts: Prompts, columns: list[str]) -> Callable[[Row], Chat] | None:
    """Return how a row's prompt is read, or None where no column is known to hold it; no turns mean no prompt."""
    if prompts.template is not None:
        return _template_asker(prompts.template, columns)
    name = prompts.column
    if name is not None:
        need_column(name, columns, "prompts.column")
    else:
        known = {column.lower(): column for column in reversed(columns)}
        usual = [known[word] for word in ("prompt", "instruction", "question") if word in known]
        single = columns if len(columns) == 1 and prompts.pairs is None else []
        chats = [known[word] for word in ("conversations", "messages", "turns") if word in known]
        name = next(iter(usual + single + chats), None)
        if name is not None and name.lower() == "instruction" and "input" in known:
            return _instruction_asker(name, known["input"])
    return None if name is None else lambda row: _question(content_of(row, name), f"{row.where}, column {name!r}")


def _template_asker(template: str, columns: list[str]) -> Callable[[Row], Chat]:
    fields = list(dict.fromkeys(match[1] for match in FIELD.finditer(template) if match[1] is not None))
    if not fields:
        raise InputError(f"prompts.template: has no {{column}} in it; there is {', '.join(map(repr, columns))}")
    for field in fields:
        need_column(field, columns, "prompts.template")

    def ask(row: Row) -> Chat:
        values = {field: text_of(row.cells.get(field), f"{row.where}, column {field!r}") for field in fields}
        blank = not any(value.strip() for value in values.values())  # the template's own words ask nothing
        return () if blank else _question(fill(template, values), row.where)

    return ask


def _instruction_asker(instruction: str, more: str) -> Callable[[Row], Chat]:
    def ask(row: Row) -> Chat:
        asked = content_of(row, instruction)
        if isinstance(asked, tuple):
            return _question(asked, f"{row.where}, column {instruction!r}")
        parts = (asked, text_of(row.cells.get(more), f"{row.where}, column {more!r}"))
        return _question("\n\n".join(part for part in parts if part.strip()), row.where)

    return ask


def fill(template: str, values: dict[str, str]) -> str:
    """Put values into {fields} in one pass, so that a field inside a value stays text; {{ and }} are braces."""
    return FIELD.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], template)


def _question(content: str | Chat, where: str) -> Chat:
    """Return text or a chat as turns that end with the user's; answers at the end of a chat are left off."""
    if isinstance(content, str):
        return (Message(role="user", content=content),)
    end = max((at for at, turn in enumerate(content, start=1) if turn.role != "assistant"), default=0)
    if content and (end == 0 or content[end - 1].role != "user"):
        raise InputError(f"{where}: the chat does not end in a user's turn")
    return content[:end]


def _has_question(content: str | Chat) -> bool:
    return isinstance(content, tuple) and any(turn.role == "user" for turn in content)


def _common_prompt(chosen: str | Chat, rejected: str | Chat, where: str) -> Chat:
    """Return the turns that two conversations share, up to the last user's."""
    both = zip(chosen, rejected, strict=False)
    shared = [left for left, right in takewhile(lambda two: two[0] == two[1], both) if isinstance(left, Message)]
    if not _has_question(tuple(shared)):
        raise InputError(f"{where}: the two conversations share no question")
    return _question(tuple(shared), where)


def _answer(content: str | Chat, prompt: Chat, where: str) -> str:
    """Return a completion's text; a whole conversation is cut after its prompt."""
    if isinstance(content, str):
        return content
    rest = content[len(prompt) :] if content[: len(prompt)] == prompt else content
    other = next((turn.role for turn in rest if turn.role != "assistant"), None)
    if other is not None:
        raise InputError(f"{where}: holds a turn of the {other} where only the answer to the prompt belongs")
    return "\n\n".join(turn.content for turn in rest)


# --- filters and split ---------------------------------------------------------------------------------------------


def _sieve(rows: list[Candidate], filters: Filters, seed: int) -> tuple[list[Candidate], Counter[str]]:
    """Return the rows that pass every filter, and how many each reason dropped."""
    dropped: Counter[str] = Counter()
    kept: list[tuple[str, Candidate]] = []
    seen: set[str] = set()
    for candidate in rows:
        key = candidate.key
        reason = _objection(candidate, filters) or ("duplicate" if key in seen else None)
        if reason is None:
            kept.append((key, candidate))
            seen.add(key)
        else:
            dropped[reason] += 1

    def keep(keys: Iterable[str], n: int, reason: str) -> None:
        nonlocal kept
        wanted, before = set(list(dict.fromkeys(keys))[:n]), len(kept)
        kept = [(key, candidate) for key, candidate in kept if key in wanted]
        if len(kept) < before:
            dropped[reason] += before - len(kept)

    if filters.first is not None:
        keep((key for key, _ in kept), filters.first, "beyond the first n")
    if filters.random is not None:
        keep(sorted((key for key, _ in kept), key=lambda key: content_hash(seed, "draw", key)), filters.random, "not drawn")
    return [candidate for _, candidate in kept], dropped


def _objection(candidate: Candidate, filters: Filters) -> str | None:
    if not candidate.prompt or (candidate.good is not None and not candidate.chosen.strip()):
        return "empty"
    texts = [getattr(candidate, name) for name in filters.on]
    characters, words = [len(text) for text in texts], [len(text.split()) for text in texts]
    for sizes, low, high in (
        (characters, filters.min_characters, filters.max_characters),
        (words, filters.min_words, filters.max_words),
    ):
        if low is not None and any(size < low for size in sizes):
            return "too short"
        if high is not None and any(size > high for size in sizes):
            return "too long"
    if filters.match is not None and not all(re.search(filters.match, text) for text in texts):
        return "no match"
    if filters.not_match is not None and any(re.search(filters.not_match, text) for text in texts):
        return "match excluded"
    return None


def _told(kept: Iterable[Candidate], column: str) -> set[str]:
    """Return the ids of the prompts whose row says `test`. Raises InputError for another word, and for a prompt in both."""
    told: dict[str, str] = {}
    for candidate in kept:
        key, word = prompt_id(candidate.messages), candidate.meta.get(column)
        if word not in ("train", "test"):
            raise InputError(f"prompts.split: column {column!r} says {word!r} where train or test is meant")
        if told.setdefault(key, word) != word:
            raise InputError(f"prompts.split: the prompt {candidate.prompt[:60]!r} is in train and in test; leave one out")
    held_out = {key for key, word in told.items() if word == "test"}
    if not held_out:
        raise InputError(f"prompts.split: no row says test in column {column!r}; give test_fraction instead")
    return held_out


def _held_out(ids: Iterable[str], fraction: float, seed: int, *, trains: bool) -> set[str]:
    """Choose the test prompts by the rank of a hash: the same ones in any order."""
    ranked = sorted(ids, key=lambda key: content_hash(seed, "split", key))
    n = len(ranked)
    test = round(fraction * n)
    if not trains and test:
        return set(ranked[:test])
    if n < 2:
        raise InputError(f"prompts: {n} prompt cannot be both trained and tested on; give at least 2")
    if test == 0:
        raise InputError(f"prompts: test_fraction {fraction:g} of {n} prompts leaves no test prompt; use at least {1 / n:.2g}")
    if test == n:
        most = math.floor(100 - 100 / n) / 100
        raise InputError(f"prompts: test_fraction {fraction:g} of {n} prompts leaves none to train on; use at most {most:g}")
    return set(ranked[:test])


def _given(kept: list[Candidate]) -> tuple[list[Completion], list[Comparison] | list[Rating]]:
    """Return the answers that came with the rows, equal ones of a prompt once, and one verdict per pair or answer.

    The score of a labelled answer is the mean of its labels, 1 for good and 0 for bad.
    """
    completions: dict[str, Completion] = {}
    draws: Counter[str] = Counter()
    verdicts = []
    labels: dict[str, list[bool]] = {}
    for candidate in kept:
        key = prompt_id(candidate.messages)
        ids = []
        for text in (candidate.chosen, candidate.rejected) if candidate.good is None else (candidate.chosen,):
            completion = Completion.of(key, text, sampler=GIVEN, finish_reason="given", draw=draws[key])
            draws[key] += completion.id not in completions
            completions.setdefault(completion.id, completion)
            ids.append(completion.id)
        if candidate.good is None:
            sure = 1 - candidate.flip_probability if candidate.flip_probability else None
            verdict = {"prompt_id": key, "first": ids[0], "second": ids[1], "winner": "first", "probability": sure}
            verdicts.append(Comparison(judge=GIVEN, **verdict))
        else:
            labels.setdefault(ids[0], []).append(candidate.good)
    ratings = [
        Rating(prompt_id=completions[key].prompt_id, completion_id=key, judge=GIVEN, score=sum(each) / len(each))
        for key, each in labels.items()
    ]
    return list(completions.values()), ratings or verdicts


def _tally(verdicts: Iterable[Comparison | Rating]) -> dict[str, int]:
    """Return how many labelled answers are good, bad, and as often called one as the other."""
    scores = [verdict.score or 0.0 for verdict in verdicts if isinstance(verdict, Rating)]
    good, bad = sum(score > 0.5 for score in scores), sum(score < 0.5 for score in scores)
    return {"good": good, "bad": bad, "disputed": len(scores) - good - bad}


# --- prompts written by a model ------------------------------------------------------------------------------------


def _write(run: Run, write: Write) -> list[Row]:
    """Ask a model for each topic's share of prompts; every reply lands in `written.jsonl`, and none is paid for twice.

    What is asked follows from the replies before, so that a restart asks the same and finds the answers there.
    """
    for field in (match[1] for match in FIELD.finditer(write.instruction) if match[1] is not None):
        need_column(field, ("n", "topic"), "prompts.write.instruction")
    answered: dict[str, dict[int, Completion]] = {}
    for reply in read_jsonl(run.written_jsonl, Completion):
        answered.setdefault(reply.prompt_id, {})[reply.draw] = reply
    sampler = None
    seen: set[str] = set()
    rows: list[Row] = []
    with appending(run.written_jsonl) as append, progress("prepare", write.n, "prompts") as advance:
        for at, topic in enumerate(write.topics):
            share = write.n // len(write.topics) + (at < write.n % len(write.topics))
            mine: list[str] = []
            heard = 0
            for _ in range(ROUNDS):
                if len(mine) >= share:
                    break
                ask = _ask(write.instruction, topic, share - len(mine), heard, mine)
                replies = answered.setdefault(ask.id, {})
                if len(replies) < write.sampler.n:
                    sampler = sampler or build_sampler(write.sampler, run.recipe, run.calls_sqlite)
                    for reply in sampler.sample([ask], frozenset((ask.id, draw) for draw in replies)):
                        append(reply)
                        replies[reply.draw] = reply
                heard += bool(replies)
                before = len(mine)
                for text in (text for draw in sorted(replies) for text in _lines(replies[draw])):
                    same = " ".join(text.casefold().split())
                    if same not in seen and len(mine) < share:
                        seen.add(same)
                        mine.append(text)
                advance(len(mine) - before)
            rows += [Row(f"topic {topic!r}", {"prompt": text, "topic": topic}) for text in mine]
    if not rows:
        raise InputError(f"prompts.write: {write.sampler.label} wrote no usable prompt; see {run.written_jsonl}")
    return rows


def _ask(instruction: str, topic: str, n: int, heard: int, earlier: list[str]) -> Prompt:
    text = fill(instruction, {"n": str(n), "topic": topic})
    if heard:  # the number keeps this from being the question whose answer was of no use
        text += f"\n\nThis is request {heard + 1}."
    if earlier:
        text += "\nDo not repeat:\n" + "\n".join(f"- {line}" for line in earlier)
    return Prompt.of((Message(role="user", content=text),), "train", {"topic": topic})


def _lines(reply: Completion) -> Iterator[str]:
    """Yield the prompts of a reply: one a line, without numbers, bullets and quotes around it."""
    lines = reply.text.split("\n")
    if reply.finish_reason == "length":
        lines.pop()  # cut off in the middle
    for raw in lines:
        line = MARKS.sub("", raw.strip())
        for left, right in (("**", "**"), ('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")):
            inner = line[len(left) : -len(right)]
            if line.startswith(left) and line.endswith(right) and inner and left not in inner:
                line = inner.strip()
        if len(line) >= SHORTEST_WRITTEN and not line.endswith(":"):
            yield line
