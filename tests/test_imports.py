"""import: every shape that these tools write becomes pairs, and what does not is counted under its reason."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SHARED
from scripted import start, typed
from tiebreak.exchange.asked import Answer, Asked, paired
from tiebreak.exchange.imports import import_labels
from tiebreak.records import InputError
from tiebreak.stages.pair import pair
from tiebreak.stages.prepare import prepare

Rows = list[dict[str, Any]]


def saved(tmp_path: Path, rows: Rows, name: str = "in.jsonl") -> Path:
    path = tmp_path / name
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".parquet":
            import datasets

            datasets.Dataset.from_list(rows).to_parquet(path)
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as stream:
                table = csv.DictWriter(stream, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    return path


def imported(tmp_path: Path, rows: Rows, form: Any, name: str = "in.jsonl", **options: Any) -> tuple[Rows, str]:
    """Return the rows that were made and what was said of the others."""
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    said = import_labels(saved(tmp_path, rows, name), form, out, **options)
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return made, said[0].partition("; left out: ")[2]


def short(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the last turns of a row."""
    return tuple(row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))


def refused(tmp_path: Path, rows: Rows, form: Any, name: str = "in.jsonl", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        imported(tmp_path, rows, form, name, **options)
    assert not (tmp_path / "out.jsonl").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what all come to ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "", "c"]), st.sampled_from([None, 0.0, 0.5, 1.0])), max_size=5))
@settings(deadline=None)
def test_every_two_answers_are_a_pair_or_counted(answers: list[tuple[str, float | None]]) -> None:
    rows, left_out = paired([Asked((), [Answer(*each) for each in answers], {})])
    scored = [each for each in answers if each[1] is not None]
    assert left_out["answers without a score"] == len(answers) - len(scored)
    twos = len(scored) * (len(scored) - 1) // 2
    reasons = ("identical answers", "empty answers", "ties", "repeated pairs")
    assert len(rows) + sum(left_out[reason] for reason in reasons) == twos
    for row in rows:
        assert row["chosen_score"] > row["rejected_score"]


BATTLE = {
    "question_id": "q", "model_a": "koala", "model_b": "gpt", "judge": "arena_user_1", "turn": 1, "anony": True,
    "language": "English", "tstamp": 1682351591.1, "openai_moderation": {"flagged": False},
}  # fmt: skip


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def battle(one: list[Any], other: list[Any], winner: str | None, **changes: Any) -> dict[str, Any]:
    return {**BATTLE, "conversation_a": one, "conversation_b": other, "winner": winner, **changes}


def test_what_is_imported_is_what_a_recipe_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [battle(talk(f"q{at}\u2028", "yes"), talk(f"q{at}\u2028", "no"), "model_b") for at in range(8)]
    rows += [battle(talk(f"q{at}", "yes"), talk(f"q{at}", "no"), "tie") for at in range(3)]
    source = saved(tmp_path, rows, "in.parquet")
    typed_in = typed(monkeypatch, capsys, "import", str(source), str(tmp_path / "out.jsonl"), "--format", "arena")
    assert typed_in.code == 0
    assert typed_in.out.splitlines() == [
        f"{tmp_path / 'out.jsonl'}: 8 pairs from 11 rows; left out: 3 ties",
        "in a recipe: prompts: {source: out.jsonl, pairs: {}}",
    ]
    run = start(tmp_path, prompts={"source": "out.jsonl", "pairs": {}, "test_fraction": 0.25}, generate=None, judges=[])
    run.perform("prepare", prepare)
    pair(run)
    both = [*run.pairs(run.pairs_jsonl), *run.pairs(run.held_out_pairs_jsonl)]
    assert {(each.chosen[0].content, each.rejected[0].content) for each in both} == {("no", "yes")}
    assert len(both) == 8
    assert {prompt.meta["language"] for prompt in run.prompts()} == {"English"}
    assert {(prompt.meta["chosen_model"], prompt.meta["rejected_model"]) for prompt in run.prompts()} == {("gpt", "koala")}


# --- battles -------------------------------------------------------------------------------------------------------


def test_battles_without_a_winner_of_one_answer_are_counted(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "parts", "image": None}]
    picture = [*parts, {"type": "image", "text": None, "image": "…"}]
    rows = [
        battle(talk("q", "a"), talk("q", "b"), "model_a"),
        battle(talk("q", "a", "and?", "x"), talk("q", "a", "and?", "y"), "model_b"),  # what was said before is the same
        battle(talk("q", "a", "and?", "x"), talk("q", "b", "and?", "y"), "model_b"),
        battle(talk("q", "a"), talk("q", "b"), "tie"),
        battle(talk("q", "a"), talk("q", "b"), "tie (bothbad)"),
        battle(talk("q", "a"), talk("q", "b"), "both_bad"),
        battle(talk("q", "a"), talk("q", "b"), None),
        battle(talk("q", "same"), talk("q", "same"), "model_a"),
        battle(talk("q", ""), talk("q", "b"), "model_b"),
        battle(
            [{"role": "user", "content": parts}, *talk("q", "c")[1:]],
            [{"role": "user", "content": parts}, *talk("q", "d")[1:]],
            "model_a",
        ),
        battle([{"role": "user", "content": picture}, *talk("q", "c")[1:]], talk("q", "d"), "model_a"),
        battle(talk("q", "a"), talk("q", "b"), "model_a", language="German"),
    ]
    made, left_out = imported(tmp_path, rows, "arena")
    assert [short(row) for row in made] == [("q", "a", "b"), ("and?", "y", "x"), ("parts", "c", "d")]
    assert dict(part.split(" ", 1)[::-1] for part in left_out.split(", ")) == {
        "ties (both bad)": "2", "battles with images or empty turns": "2", "battles of several turns": "1", "ties": "1",
        "battles without a verdict": "1", "identical answers": "1", "repeated pairs": "1",
    }  # fmt: skip
    assert len(made) + 9 == len(rows)
    assert made[0]["language"] == "English"


def flat(prompt: Any, one: Any, other: Any, won: str) -> dict[str, Any]:
    flags = {f"winner_{name}": int(name == won) for name in ("model_a", "model_b", "tie")}
    return {"id": 7, "model_a": "m", "model_b": "n", "prompt": prompt, "response_a": one, "response_b": other, **flags}


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_battles_with_flags(name: str, tmp_path: Path) -> None:
    """Chatbot Arena's 55k: a JSON list for each column, in CSV."""
    rows = [
        flat('["q"]', '["a"]', '["b"]', "model_b"),
        flat('["q", "more"]', '["a", "x"]', '["b", "y"]', "model_a"),
        flat('["q"]', '["a"]', '["b"]', "tie"),
        flat('["q"]', "[null]", '["b"]', "model_b"),
        flat("plain", "a", "b", "model_a"),
    ]
    made, left_out = imported(tmp_path, rows, "arena", name)
    assert [short(row) for row in made] == [("q", "b", "a"), ("plain", "a", "b")]
    assert set(left_out.split(", ")) == {"1 battles of several turns", "1 ties", "1 battles with images or empty turns"}
    assert not any(key.startswith("winner") for key in made[0])


def test_battles_of_another_shape_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [battle(talk("q", "a"), talk("q", "b"), "left")], "arena")
    assert said.endswith("in.jsonl, line 1: winner 'left' is none of model_a, model_b, tie, tie (bothbad)")
    said = refused(tmp_path, [{"prompt": "q", "answer": "a"}], "arena")
    assert "no conversation_a and no response_a, so this is no battle; there is prompt, answer" in said
    assert "no pairs come of 1 rows (1 ties)" in refused(tmp_path, [battle(talk("q", "a"), talk("q", "b"), "tie")], "arena")
    assert "conversation_b is no list of turns" in refused(tmp_path, [battle(talk("q", "a"), "b", "tie")], "arena")


# --- thumbs --------------------------------------------------------------------------------------------------------

THUMBS: Rows = [
    {"prompt": "q", "completion": "good 1", "label": True, "user": "u1"},
    {"prompt": "q", "completion": "good 2", "label": True, "user": "u2"},
    {"prompt": "q", "completion": "bad", "label": False, "user": "u3"},
    {"prompt": "q", "completion": "torn", "label": False, "user": "u3"},
    {"prompt": "q", "completion": "torn", "label": True, "user": "u4"},
    {"prompt": "only up", "completion": "x", "label": True, "user": "u4"},
    {"prompt": "only down", "completion": "y", "label": False, "user": "u4"},
    {"prompt": "no thumb", "completion": "z", "label": None, "user": "u4"},
]


def test_thumbs_make_pairs_where_a_prompt_has_both_kinds(tmp_path: Path) -> None:
    made, left_out = imported(tmp_path, THUMBS, "thumbs")
    assert [short(row) for row in made] == [("q", "good 1", "bad"), ("q", "good 2", "bad")]
    assert set(left_out.split(", ")) == {
        "2 answers whose prompt has no thumb of the other kind", "1 answers with as many thumbs up as down",
        "1 rows without a thumb or a prompt",
    }  # fmt: skip


def test_unpaired_thumbs_train_with_kto(tmp_path: Path, tiny: Path) -> None:
    from trl.data_utils import is_conversational

    from conftest import tokenizer_of
    from tiebreak.training.rows import tokenize_unpaired

    made, left_out = imported(tmp_path, THUMBS, "thumbs", unpaired=True)
    assert [(row["completion"][0]["content"], row["label"]) for row in made] == [
        ("good 1", True), ("good 2", True), ("bad", False), ("x", True), ("y", False),
    ]  # fmt: skip
    assert set(left_out.split(", ")) == {"1 answers with as many thumbs up as down", "1 rows without a thumb or a prompt"}
    assert all(is_conversational(row) for row in made)
    examples, counts = tokenize_unpaired(made, tokenizer_of(tiny), 512)
    assert [example.desirable for example in examples] == [row["label"] for row in made]
    assert not counts


def test_thumbs_of_chats(tmp_path: Path) -> None:
    """A mark on the row is the last answer's; turns may have their own."""
    marked = [*talk("q"), {"role": "assistant", "content": "one", "feedback": "thumbs_up"}, *talk("and?")]
    marked += [{"role": "assistant", "content": "two", "feedback": "down"}]
    rows: Rows = [
        {"messages": marked, "model": "m"},
        {"messages": [*talk("q", "three")], "rating": -1},
        {"messages": [*talk("q", "four")], "rating": "👍"},
        {"messages": [*talk("q", "one", "and?", "five")], "rating": 1.0},
        {"messages": [*talk("q", "six", "and?")], "rating": 1},
    ]
    made, left_out = imported(tmp_path, rows, "thumbs")
    assert {short(row) for row in made} == {("q", "one", "three"), ("q", "four", "three"), ("and?", "five", "two")}
    assert [turn["content"] for turn in made[-1]["prompt"]] == ["q", "one", "and?"]
    assert left_out == "1 rows without a thumb or a prompt"


def test_a_real_log_has_few_pairs_and_many_labels(tmp_path: Path) -> None:
    source = SHARED / "data" / "llamafactory_demo" / "kto_en_demo.json"
    if not source.exists():
        pytest.skip("the shared data are not here")
    rows = json.loads(source.read_text(encoding="utf-8"))
    assert len(rows) == 300
    made, left_out = imported(tmp_path, rows, "thumbs")
    assert (len(made), left_out) == (1, "298 answers whose prompt has no thumb of the other kind")
    single, left_out = imported(tmp_path, rows, "thumbs", unpaired=True)
    labels = {row["messages"][-1]["content"]: row["label"] for row in rows}
    assert [row["label"] for row in single] == [labels[row["completion"][0]["content"]] for row in single]
    assert (len(single), left_out) == (300, "")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "q", "completion": "a", "label": "meh"}, "line 1: 'meh' is no thumb; up is true, 1, up or good"),
        ({"prompt": "q", "completion": "a", "rating": 4}, "4 is no thumb"),
        ({"prompt": "q", "completion": "a"}, "no column is known to hold the thumb; call it label; there is prompt, completion"),
        ({"prompt": "q", "label": True}, "no column is known to hold the answer; call it completion"),
        ({"said": "q", "completion": "a", "label": True}, "no column is known to hold the prompt; call it prompt"),
    ],
)
def test_thumbs_that_cannot_be_read_are_no_guess(row: dict[str, Any], line: str, tmp_path: Path) -> None:
    assert line in refused(tmp_path, [row], "thumbs")


# --- distilabel ----------------------------------------------------------------------------------------------------


def test_generations_with_ratings(tmp_path: Path) -> None:
    rows: Rows = [
        {
            "instruction": "q", "system_prompt": "Be kind.", "generations": ["best", "worst", "also worst", "unrated"],
            "ratings": [5, 1, 1, None], "generation_models": ["a", "b", "c", "d"], "model_name": "judge",
            "distilabel_metadata": {"raw_output": "…"}, "topic": "kindness",
        },
        {"instruction": "q2", "generations": ["x", "y"], "ratings": [3, 3]},
        {"instruction": "q3", "generations": ["x", "y"], "ratings": [None, 4]},
        {"instruction": " ", "generations": ["x", "y"], "ratings": [3, 4]},
    ]  # fmt: skip
    made, left_out = imported(tmp_path, rows, "distilabel", "in.json")
    assert [short(row) for row in made] == [("q", "best", "worst"), ("q", "best", "also worst")]
    assert [turn["role"] for turn in made[0]["prompt"]] == ["system", "user"]
    assert (made[0]["chosen_score"], made[0]["rejected_model"], made[0]["topic"]) == (5, "b", "kindness")
    assert Counter(left_out.split(", ")) == {
        "2 ties": 1, "2 answers without a score": 1, "1 rows with a single scored answer": 1, "1 rows without a prompt": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_chosen_and_rejected_that_are_rated_alike_are_no_pair(name: str, tmp_path: Path) -> None:
    """FormatTextGenerationDPO takes the first of all for both where the ratings are equal."""

    def row(chosen: str, rejected: str, *ratings: float | None) -> dict[str, Any]:
        sides = {side: [*talk("q", text)] for side, text in (("chosen", chosen), ("rejected", rejected))}
        rated = dict(zip(("chosen_rating", "rejected_rating"), ratings, strict=True))
        return {"prompt": "q", "prompt_id": "abc", **sides, **rated, "chosen_model": "m", "rejected_model": "n"}

    rows = [row("a", "b", 4.0, 2.0), row("c", "c", 3.0, 3.0), row("e", "f", 3.0, 3.0), row("g", "h", None, None)]
    made, left_out = imported(tmp_path, rows, "distilabel", name)
    assert [short(row) for row in made] == [("q", "a", "b"), ("q", "g", "h")]
    assert left_out == "1 identical answers, 1 ties"
    assert "prompt_id" not in made[0]


def test_generations_without_ratings_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [{"instruction": "q", "generations": ["a", "b"]}], "distilabel")
    assert "generations and ratings are no lists of one length" in said
    said = refused(tmp_path, [{"instruction": "q", "chosen": "a"}], "distilabel")
    assert "no column is known to hold the rejected answer; call it rejected" in said


# --- Argilla -------------------------------------------------------------------------------------------------------

FIELDS = {"prompt": "q", "response1": "one", "response2": "two"}


def nested(responses: dict[str, list[Any]], fields: dict[str, str] | None = None) -> dict[str, Any]:
    """Argilla 2's to_json."""
    given = {
        question: [{"value": value, "user_id": f"u{at}"} for at, value in enumerate(values)]
        for question, values in responses.items()
    }
    suggestions = {"preference": {"value": ["response1", "response2"], "score": None, "agent": "gpt"}}
    whole = {"id": "1", "fields": fields or FIELDS, "metadata": {"topic": "t"}, "suggestions": suggestions, "responses": given}
    return {**whole, "vectors": {}, "_server_id": "s"}


def flattened(responses: dict[str, list[Any]], fields: dict[str, str] | None = None, status: str = "submitted") -> dict[str, Any]:
    """Argilla 2's to_datasets, and its datasets on the Hub."""
    row: dict[str, Any] = {"id": "1", "status": "completed", "_server_id": "s", **(fields or FIELDS), "topic": "t"}
    for question, values in responses.items():
        row |= {f"{question}.responses": values, f"{question}.responses.users": [f"u{at}" for at in range(len(values))]}
        row |= {f"{question}.responses.status": [status] * len(values)}
    return {**row, "preference.suggestion": ["response1", "response2"], "preference.suggestion.agent": "gpt"}


def earlier(responses: dict[str, list[Any]], fields: dict[str, str] | None = None, status: str = "submitted") -> dict[str, Any]:
    """A feedback dataset of Argilla 1."""
    told = {
        question: [{"user_id": "u", "value": value, "status": status} for value in values]
        for question, values in responses.items()
    }
    return {**(fields or FIELDS), **told, "preference-suggestion": None, "external_id": "e", "topic": "t"}


def columns(responses: dict[str, list[Any]], fields: dict[str, str] | None = None, status: str = "submitted") -> dict[str, Any]:
    """The same where a library has turned lists of objects into objects of lists."""
    told = {
        question: {"user_id": ["u"] * len(values), "value": values, "status": [status] * len(values)}
        for question, values in responses.items()
    }
    return {**(fields or FIELDS), **told, "topic": "t"}


SHAPES: list[Callable[..., dict[str, Any]]] = [nested, flattened, earlier, columns]
RANKED = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "responses",
    [
        {"preference": [["response2", "response1"]]},
        {"preference": [RANKED]},
        {"preference": [{"rank": [1, 2], "value": ["response2", "response1"]}]},
        {"preference": ["response2"], "why": ["it is shorter"]},
        {"preference": ["Response 2"]},  # the label's title
        {"preference": [["response2", "response1"]] * 2 + [["response1", "response2"]]},
        {"response1-rating": [2], "response2-rating": [5], "response1-rationale": ["no"]},
        {"rating-1": [2, 2], "rating-2": [5, 1]},
    ],
)
def test_a_response_names_the_better_answer(shape: Any, responses: dict[str, list[Any]], tmp_path: Path) -> None:
    made, left_out = imported(tmp_path, [shape(responses)], "argilla")
    assert [short(row) for row in made] == [("q", "two", "one")]
    assert left_out == ""
    assert made[0]["topic"] == "t"
    assert not {"id", "status", "_server_id", "external_id"} & made[0].keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_names_no_better_answer_is_counted(shape: Any, tmp_path: Path) -> None:
    good = shape({"preference": [["response2", "response1"]]})
    rows = [
        good,
        shape({"preference": [["response2", "response1"], ["response1", "response2"]]}),
        shape({"preference": [[{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]]}),
        shape({"preference": []}),
        shape({"why": ["no idea"]}),
        shape({"preference": [["response2", "response1"]]}, {**FIELDS, "prompt": ""}),
    ]
    made, left_out = imported(tmp_path, rows, "argilla", "in.json")
    assert len(made) == 1
    assert set(left_out.split(", ")) == {
        "2 ties", "2 rows without a response that names an answer", "1 rows without a prompt",
    }  # fmt: skip


@pytest.mark.parametrize("shape", [flattened, earlier, columns])
@pytest.mark.parametrize("status", ["draft", "discarded"])
def test_only_what_was_submitted_counts(shape: Any, status: str, tmp_path: Path) -> None:
    rows = [
        shape({"preference": [["response2", "response1"]]}),
        shape({"preference": [["response1", "response2"]]}, status=status),
    ]
    made, left_out = imported(tmp_path, rows, "argilla")
    assert [short(row) for row in made] == [("q", "two", "one")]
    assert left_out == "1 rows with drafts or discarded responses only"


def test_preference_to_argilla_comes_back(tmp_path: Path) -> None:
    """distilabel's PreferenceToArgilla: a field for each generation, a rating question for each."""
    fields = {"id": "hash", "instruction": "q", "generations-0": "one", "generations-1": "two", "generations-2": "three"}
    rated = {f"generations-{at}-rating": [value] for at, value in enumerate((3, 5, 3))}
    made, left_out = imported(tmp_path, [flattened(rated, fields)], "argilla", "in.parquet")
    assert [short(row) for row in made] == [("q", "two", "one"), ("q", "two", "three")]
    assert left_out == "1 ties"


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "options", "line"),
    [
        ("in.jsonl", "out.json", (), "out.json: name a .jsonl file that is not there yet"),
        ("in.jsonl", "in.jsonl", (), "in.jsonl: name a .jsonl file that is not there yet"),
        ("in.txt", "out.jsonl", (), "in.txt: is not a kind that can be read; use .csv, .json, .jsonl, .parquet"),
        ("gone.jsonl", "out.jsonl", (), "gone.jsonl: cannot be read: No such file or directory"),
        ("in.jsonl", "out.jsonl", ("--unpaired",), "--unpaired is for thumbs; arena sets answers against each other"),
    ],
)
def test_mistakes_are_one_line(
    source: str, target: str, options: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    saved(tmp_path, [battle(talk("q", "a"), talk("q", "b"), "model_a")])
    (tmp_path / "in.txt").write_text("x")
    files = (str(tmp_path / source), str(tmp_path / target))
    assert typed(monkeypatch, capsys, "import", *files, "--format", "arena", *options).mistake.endswith(line)
