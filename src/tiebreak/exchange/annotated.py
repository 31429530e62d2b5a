"""What Argilla and distilabel export, as prompts with scored answers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from tiebreak.exchange.asked import NO_PROMPT, PROMPTS, Answer, Asked, answer_in, beside, listed, need_one, number, part
from tiebreak.exchange.asked import question as chat_of
from tiebreak.exchange.sources import Row, text_of
from tiebreak.records import InputError

DRAFTS = "rows with drafts or discarded responses only"
SIDES = ("chosen", "rejected")
SAID = tuple(f"{side}_{key}" for side in SIDES for key in ("rating", "model"))
"""What distilabel says of either side."""
SAYS_NOTHING = "rows without a response that names an answer"


def distilabel(rows: Iterable[Row]) -> Iterator[Asked]:
    """Read generations with ratings, or chosen and rejected with theirs (distilabel's UltraFeedback, FormatTextGenerationDPO).

    Its chosen and rejected are the best and the worst by rating; where all are rated alike, both are the same one.
    Raises InputError.
    """
    for row in rows:
        name = need_one(PROMPTS, row, "the prompt")
        prompt = chat_of(row, name, text_of(row.cells.get("system_prompt"), f"{row.where}, system_prompt"))
        answers = _generated(row) if row.cells.get("generations") is not None else _formatted(row)
        meta = beside(
            row, name, "system_prompt", "model_name", *(f"{side}_{key}" for side in SIDES for key in ("rating", "model"))
        )
        yield Asked(prompt, answers, meta) if prompt else Asked.none(NO_PROMPT)


def _generated(row: Row) -> list[Answer]:
    texts, ratings, models = (row.cells.get(key) for key in ("generations", "ratings", "generation_models"))
    if not isinstance(texts, list) or not isinstance(ratings, list) or len(ratings) != len(texts):
        raise InputError(f"{row.where}: generations and ratings are no lists of one length; without ratings there is no pair")
    named = models if isinstance(models, list) and len(models) == len(texts) else [None] * len(texts)
    where = f"{row.where}, generations"
    return [
        Answer(text_of(text, where), number(rating), model) for text, rating, model in zip(texts, ratings, named, strict=True)
    ]


def _formatted(row: Row) -> list[Answer]:
    columns = [need_one((side,), row, f"the {side} answer") for side in SIDES]
    scores = [number(row.cells.get(f"{side}_rating")) for side in SIDES]
    if None in scores:
        scores = [1.0, 0.0]
    named = [row.cells.get(f"{side}_model") for side in SIDES]
    return [Answer(answer_in(row, at), score, model) for at, score, model in zip(columns, scores, named, strict=True)]


# --- Argilla -------------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """A record of Argilla: its fields, what people submitted to each question, and how much of it was not submitted."""

    fields: Row
    responses: dict[str, list[Any]]
    drafts: int = 0
    metadata: Mapping[str, Any] = {}


def argilla(rows: Iterable[Row]) -> Iterator[Asked]:
    """Read what people submitted: a ranking or a label that names fields, or a rating for each field.

    Argilla 2 nested (to_json) and flat (to_datasets, and its datasets on the Hub), and the feedback datasets before it.
    Suggestions are a model's and are left alone. Of several people's scores of an answer the mean counts. Raises InputError.
    """
    for row in rows:
        record = _nested(row) if isinstance(row.cells.get("fields"), dict) else _flat(row)
        fields = record.fields.cells
        scores: dict[str, list[float]] = defaultdict(list)
        for question, values in record.responses.items():
            for value in values:
                for field, score in _scores(question, value, fields).items():
                    scores[field].append(score)
        if not scores:
            yield Asked.none(DRAFTS if record.drafts and not any(record.responses.values()) else SAYS_NOTHING)
            continue
        left = Row(row.where, {name: value for name, value in fields.items() if name not in scores})
        prompt = chat_of(left, name := need_one(PROMPTS, left, "the prompt"))
        answers = [Answer(text_of(fields[field], f"{row.where}, {field}"), fmean(own)) for field, own in scores.items()]
        meta = beside(Row(row.where, left.cells | dict(record.metadata)), name)
        yield Asked(prompt, answers, meta) if prompt else Asked.none(NO_PROMPT)


def _nested(row: Row) -> _Record:
    told = row.cells.get("responses") or {}
    responses = {question: [part(each, "value") for each in listed(given)] for question, given in told.items()}
    metadata = row.cells.get("metadata")
    return _Record(Row(row.where, row.cells["fields"]), responses, metadata=metadata if isinstance(metadata, dict) else {})


def _flat(row: Row) -> _Record:
    fields, responses, drafts = dict[str, Any](), dict[str, list[Any]](), 0
    for name, value in row.cells.items():
        if name.endswith(".responses"):
            states = row.cells.get(f"{name}.status")
            told = [(each, state) for each, state in zip(listed(value), states or ["submitted"] * len(value or []), strict=False)]
        elif (earlier := _earlier(value)) is not None:
            told = earlier
        else:
            if "." not in name and not name.endswith(("-suggestion", "-suggestion-metadata")):
                fields[name] = value
            continue
        submitted = [each for each, state in told if state in ("submitted", None)]
        responses[name.removesuffix(".responses")] = submitted
        drafts += len(told) - len(submitted)
    return _Record(Row(row.where, fields), responses, drafts)


def _earlier(value: Any) -> list[tuple[Any, Any]] | None:
    """Return values and states of a question of a feedback dataset, None for what is none."""
    if isinstance(value, dict) and {"user_id", "value", "status"} <= value.keys():  # a column of lists
        return list(zip(value["value"] or [], value["status"] or [], strict=False))
    if isinstance(value, list) and value and all(isinstance(each, dict) and {"value", "status"} <= each.keys() for each in value):
        return [(each["value"], each["status"]) for each in value]
    return None


def _scores(question: str, value: Any, fields: Iterable[str]) -> dict[str, float]:
    """Return what one response says of each answer; nothing where it is about something else."""
    plain = {_plain(field): field for field in fields}
    if isinstance(value, dict) and isinstance(value.get("value"), list):  # a ranking as a list of ranks and one of values
        ranks = value.get("rank") or range(1, len(value["value"]) + 1)
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], ranks, strict=False)]
    if isinstance(value, list):
        named = [plain.get(_plain(part(each, "value"))) for each in value]
        ranks = [number(each.get("rank")) if isinstance(each, dict) else None for each in value]
        places = [float(at) if rank is None else rank for at, rank in enumerate(ranks)]
        return {name: -place for name, place in zip(named, places, strict=True) if name} if len(value) > 1 else {}
    if isinstance(value, str) and (chosen := plain.get(_plain(value))):
        alike = _stem(chosen)
        return {name: float(name == chosen) for name in fields if _stem(name) == alike}
    field, score = _rated(question, fields), number(value)
    return {field: score} if field and score is not None else {}


def _rated(question: str, fields: Iterable[str]) -> str | None:
    """Return the field that a question of ratings is about: `X-rating` and `rating-X`, or `rating-1` and `response-1`."""
    if not (found := re.fullmatch(r"(.+)[-_]rating|rating[-_](.+)", question)):
        return None
    about = found[1] or found[2]
    ending = [name for name in fields if name == about or (about.isdigit() and re.search(rf"\D{about}$", name))]
    return ending[0] if len(ending) == 1 else None


def _plain(name: Any) -> str:
    """Return a name without case and punctuation, in which fields and the titles of their labels differ."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _stem(name: str) -> str:
    """Return what the fields of a prompt's answers have in common: response-1 and response-2, reply_a and reply_b."""
    return re.sub(r"\d+|(?<=[-_ ])[a-z]$", "", name.lower())
