"""prepare: sources, prompts, filters, split, ready-made pairs, written prompts."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiebreak.exchange.sources import Row
from tiebreak.files import read_jsonl
from tiebreak.recipe import Prompts
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt
from tiebreak.run import Run
from tiebreak.stages import prepare as stage
from tiebreak.stages.pair import pair
from tiebreak.stages.prepare import prepare

DATA = Path(__file__).parents[2] / "shared" / "data"
REST = {
    "model": {"name_or_path": "builtin:smollm2-135m-instruct"},
    "generate": [{"type": "local", "n": 2}],
    "judges": [{"type": "rules", "checks": [{"check": "one_line"}]}],
}
PAIRS = {"pairs": {}, "test_fraction": 0.5}

real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a recipe with these prompts, and start its run."""
    count = iter(range(10**6))

    def make(**prompts: Any) -> Run:
        number = next(count)
        recipe = tmp_path / f"recipe{number}.yaml"
        rest = {"model": REST["model"]} if "pairs" in prompts else REST
        recipe.write_text(yaml.safe_dump({**rest, "prompts": {"test_fraction": 0.5, **prompts}}, allow_unicode=False))
        return Run.start(recipe, tmp_path / f"run{number}")

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[list[Any]], str]:
    def write(rows: list[Any]) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return "rows.jsonl"

    return write


def texts(run: Run) -> list[str]:
    return [prompt.text for prompt in run.prompts()]


def given_pairs(run: Run) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of every verdict."""
    text = {completion.id: completion.text for completion in run.draws()}
    prompt = {one.id: one.text for one in run.prompts()}
    return [(prompt[one.prompt_id], text[one.first], text[one.second]) for one in read_jsonl(run.given_jsonl, Comparison)]


def refusal(run: Run) -> str:
    with pytest.raises(InputError) as caught:
        prepare(run)
    message = str(caught.value)
    assert "\n" not in message
    assert not run.prompts_jsonl.exists()
    return message


# --- sources -------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_prompts(tmp_path, make_run):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "Why, oh\nwhy?", "n": 1}, {"question": "What \u2028 now?", "n": 2}]
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, ["question", "n"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.json").write_text(json.dumps({"about": "x", "data": rows}), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    (tmp_path / "a.JSONL").write_bytes(b"\r\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [row["question"] for row in rows]
    for name in ("a.csv", "a.json", "b.json", "./a.JSONL", str(tmp_path / "a.parquet")):
        run = make_run(source=name)
        counts = prepare(run)
        assert texts(run) == expected, name
        assert [int(prompt.meta["n"]) for prompt in run.prompts()] == [1, 2]
        assert counts == {"rows": 2, "kept": 2, "dropped": {}, "prompts": 2, "train": 1, "test": 1}


def test_csv_cells_stay_as_they_are_however_long(tmp_path, make_run):
    cells = ["one\r\ntwo", "x" * 200_000]
    (tmp_path / "a.csv").write_bytes("\r\n".join(["question", *(f'"{cell}"' for cell in cells)]).encode())
    run = make_run(source="a.csv")
    prepare(run)
    assert texts(run) == cells


def test_text_is_one_prompt_a_line(tmp_path, make_run):
    (tmp_path / "a.txt").write_bytes("First \r\n\n Zweite\u2028Zeile \nthird".encode())
    run = make_run(source="a.txt")
    assert prepare(run)["rows"] == 3
    assert texts(run) == ["First", "Zweite\u2028Zeile", "third"]


def test_items(make_run):
    run = make_run(items=["one", "two", "one"], system="Be brief.")
    assert prepare(run)["dropped"] == {"duplicate": 1}
    assert [[m.role for m in prompt.messages] for prompt in run.prompts()] == [["system", "user"]] * 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "a.csv: is empty"),
        ("a.csv", b" \n", "a.csv: is empty"),
        ("a.csv", b"question\n", "holds no rows"),
        ("a.csv", b"question,n\nwhy,1\nwhat,now,2\n", "line 3: 3 cells under 2 columns"),
        ("a.csv", b'question,n\n"a\nb",1\nc\n', "line 4: 1 cells under 2 columns"),
        ("a.csv", b'question\nwhy\n"open\nand on\n', "line 3: not valid CSV"),
        ("a.csv", b"question,question\na,b\n", "line 1: two columns are called 'question'"),
        ("a.csv", b"question\nwhy\nna\xefve\n", "line 3: not UTF-8"),
        ("a.csv", b"question,answer\nwhy,1\n", "no column 'quest'; there is 'question', 'answer'"),
        ("a.json", b'[{"question": 1},\n{]', "line 2: not valid JSON"),
        (
            "a.json",
            b'{"question": "a"}\n{"question": "b"}',
            "line 2: not valid JSON: Extra data; a file with one object per line",
        ),
        ("a.json", b'"text"', "holds no list of objects"),
        ("a.json", b'["text"]', "entry 1: not an object"),
        ("a.json", b"[" * 100_000, "not JSON that can be read"),
        ("a.jsonl", b'{"question": "a"}\n{"question": \n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"question": "a"}\n[1]\n', "line 2: not an object"),
        ("a.parquet", b"PAR1 not so", "a.parquet: not valid Parquet"),
        ("a.xlsx", b"PK", "not a kind that can be read; use .csv, .json"),
    ],
)
def test_a_broken_file_is_one_line_that_says_where(tmp_path, make_run, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(make_run(source=name, column="quest"))


def test_a_missing_file_is_named(tmp_path, make_run):
    assert str(tmp_path / "no.csv") in refusal(make_run(source="no.csv"))
    assert "there is no file" in refusal(make_run(source="./no"))


def test_options_of_the_hub_are_refused_with_a_file(tmp_path, make_run):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert "leave them out" in refusal(make_run(source="a.txt", hub_split="test"))


def test_a_dataset_that_cannot_be_reached_is_said_quickly(make_run, monkeypatch):
    from huggingface_hub import HfApi

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known\nand much more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    begun = time.monotonic()
    message = refusal(make_run(source="nobody/nothing"))
    assert message == ("prompts.source: dataset 'nobody/nothing': Name or service not known; check the name and the network")
    assert time.monotonic() - begun < 10


def test_a_bare_name_is_no_hub_id(make_run):
    assert "'csv' is no file or folder beside the recipe, and no Hub id (owner/name)" in refusal(make_run(source="csv"))


def test_a_folder_is_read_as_a_dataset(tmp_path, make_run, monkeypatch):
    import datasets

    (tmp_path / "GAIR" / "lima").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **_: [{"prompt": args[0]}, {"prompt": "x"}])
    run = make_run(source="GAIR/lima")
    prepare(run)
    assert texts(run)[0] == str(tmp_path / "GAIR" / "lima")


def test_a_hub_dataset_is_read_with_its_subset_and_split(make_run, monkeypatch):
    import datasets
    from huggingface_hub import HfApi

    asked = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        return [{"conversations": [f"Question {n}", "Answer"]} for n in range(4)]

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    run = make_run(source="GAIR/lima", subset="plain", hub_split="test")
    prepare(run)
    assert asked == [(("GAIR/lima", "plain"), {"split": "test"})]
    assert texts(run) == [f"Question {n}" for n in range(4)]
    assert [len(prompt.messages) for prompt in run.prompts()] == [1] * 4


# --- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 7, "prompt": "P", "instruction": "I"}, ["user: P"]),
        ({"Question": "Q", "id": 7}, ["user: Q"]),
        ({"instruction": "I", "input": "more"}, ["user: I\n\nmore"]),
        ({"instruction": "I", "input": " "}, ["user: I"]),
        ({"Idea": "only"}, ["user: only"]),
        ({"prompt": 12.5, "x": None}, ["user: 12.5"]),
        ({"prompt": "lone \ud83d"}, ["user: lone \ufffd"]),
        ({"id": 1, "conversations": [{"from": "human", "value": "H"}, {"from": "gpt", "value": "A"}]}, ["user: H"]),
        (
            {
                "id": 1,
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "1"},
                    {"role": "assistant", "content": "2"},
                    {"role": "user", "content": "3"},
                    {"role": "assistant", "content": "4"},
                    {"role": "assistant", "content": "5"},
                ],
            },
            ["system: S", "user: 1", "assistant: 2", "user: 3"],
        ),
        ({"prompt": "[{'role': 'user', 'content': 'it\\'s \\d'}]"}, ["user: it's \\d"]),
        ({"prompt": json.dumps([{"role": "user", "content": "\U0001f600", "weight": None}])}, ["user: \U0001f600"]),
        ({"prompt": "[{x: 1}] is what?"}, ["user: [{x: 1}] is what?"]),
    ],
)
def test_the_prompt_is_found(row, expected):
    (candidate,) = stage.candidates([Row("row", row)], Prompts(source="x.jsonl"))
    assert [f"{turn.role}: {turn.content}" for turn in candidate.messages] == expected


def test_scalar_fields_are_kept_and_chats_are_not(make_run, jsonl):
    rows = [
        {"prompt": f"P{n}", "idea": "\ud83d", "n": n, "ok": True, "nan": float("nan"), "none": None, "list": [1], "chosen": "c"}
        | {"chat": "[{'role': 'user', 'content': 'x'}]", "rejected": "r"}
        for n in range(2)
    ]
    run = make_run(source=jsonl(rows), **PAIRS)
    prepare(run)
    assert run.prompts()[1].meta == {"prompt": "P1", "idea": "\ufffd", "n": 1, "ok": True}


def test_the_rows_own_system_message_stays(make_run, jsonl):
    chats = [[{"role": "system", "content": "own"}, {"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    run = make_run(source=jsonl([{"messages": chat} for chat in chats]), system="the recipe's")
    prepare(run)
    assert [prompt.messages[0].content for prompt in run.prompts()] == ["own", "the recipe's"]
    assert [len(prompt.messages) for prompt in run.prompts()] == [2, 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "line 2, column 'prompt': holds true or false where text belongs"),
        ({"a": 1}, "line 2, column 'prompt': a chat is a list"),
        ([1], "line 2, column 'prompt': a chat is a list"),
        ([{"role": "robot", "content": "x"}], "a turn's role is one of"),
        ([{"role": ["user"], "content": "x"}], "a turn's role is one of"),
        ([{"role": "user", "content": False}], "holds true or false where text belongs"),
        ([{"role": "user", "content": [{"type": "text"}]}], "holds a list where text belongs"),
        ([{"role": "system", "content": "x"}], "does not end in a user's turn"),
        ([{"role": "assistant", "content": "x"}], "does not end in a user's turn"),
        ("[{'role': 'user', 'content': 'x'}", "begins as a chat list and cannot be read as one"),
    ],
)
def test_what_is_not_text_is_refused_with_its_place(make_run, jsonl, value, says):
    assert says in refusal(make_run(source=jsonl([{"prompt": "fine"}, {"prompt": value}])))


def test_an_unknown_prompt_column_lists_the_columns(make_run, jsonl):
    message = refusal(make_run(source=jsonl([{"id": 1, "text": "a"}])))
    assert "line 1: which column is the prompt? Name it in prompts.column; there is 'id', 'text'" in message


def test_templates(make_run, jsonl):
    source = jsonl([{"idea": "{mood}", "mood": "glad"}, {"idea": None, "mood": " "}, {"idea": "b", "mood": None}])
    run = make_run(source=source, template="{{Idea}}: {idea}! {mood}")
    assert prepare(run)["dropped"] == {"empty": 1}
    assert texts(run) == ["{Idea}: {mood}! glad", "{Idea}: b! "]
    assert run.prompts()[0].meta == {"idea": "{mood}", "mood": "glad"}
    assert "prompts.template: no column 'ideas'; there is 'idea', 'mood'" in refusal(make_run(source=source, template="{ideas}"))
    assert "prompts.template: has no {column}" in refusal(make_run(source=source, template="{{idea}}"))


@given(values=st.dictionaries(st.sampled_from("abc"), st.text(alphabet="ab{}c \n", max_size=12), min_size=3))
def test_a_template_expands_no_value(values):
    assert stage.fill("<{a}|{b}|{c}|{a}>", values) == f"<{values['a']}|{values['b']}|{values['c']}|{values['a']}>"


# --- filters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "left", "dropped"),
    [
        ({"min_characters": 4}, ["aaaa bb", "abcd", "x y z"], {"empty": 2, "too short": 2}),
        ({"max_characters": 4}, ["abcd", "abc", "cc"], {"empty": 2, "too long": 2}),
        ({"min_words": 2}, ["aaaa bb", "x y z"], {"empty": 2, "too short": 3}),
        ({"max_words": 2, "match": "^a"}, ["aaaa bb", "abcd", "abc"], {"empty": 2, "too long": 1, "no match": 1}),
        ({"not_match": "b"}, ["x y z", "cc"], {"empty": 2, "match excluded": 3}),
        ({"first": 2}, ["aaaa bb", "abcd"], {"empty": 2, "beyond the first n": 3}),
        ({"min_characters": 4, "match": "a", "first": 5}, ["aaaa bb", "abcd"], {"empty": 2, "no match": 1, "too short": 2}),
        ({"random": 5}, ["aaaa bb", "abcd", "abc", "x y z", "cc"], {"empty": 2}),
    ],
)
def test_filters_count_what_they_drop(make_run, jsonl, filters, left, dropped):
    source = jsonl([{"prompt": text} for text in ["aaaa bb", "", "abcd", "abc", None, "x y z", "cc"]])
    run = make_run(source=source, filters=filters)
    counts = prepare(run)
    assert texts(run) == left
    assert counts["dropped"] == dropped
    assert counts["rows"] == 7


def test_patterns_look_at_the_last_user_turn(make_run, jsonl):
    chat = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "last"}]
    source = jsonl([{"messages": chat}, {"messages": [{"role": "user", "content": "last too"}]}])
    run = make_run(source=source, filters={"match": "^last"}, system="long " * 30)
    assert prepare(run)["kept"] == 2


def test_filters_on_the_completions_of_pairs(make_run, jsonl):
    rows = [{"prompt": f"p{n}", "chosen": "a" * n, "rejected": "b" * (4 - n)} for n in range(5)]
    run = make_run(source=jsonl(rows), filters={"on": ["chosen", "rejected"], "max_characters": 3}, **PAIRS)
    assert prepare(run)["dropped"] == {"too long": 2}
    assert [pair[0] for pair in given_pairs(run)] == ["p1", "p2", "p3"]


def test_a_pattern_must_be_found_in_every_text(make_run, jsonl):
    rows = [{"prompt": f"p{n}", "chosen": chosen, "rejected": "a"} for n, chosen in enumerate("aab")]
    run = make_run(source=jsonl(rows), filters={"on": ["chosen", "rejected"], "match": "a"}, **PAIRS)
    assert prepare(run)["dropped"] == {"no match": 1}


def test_a_random_draw_is_the_same_in_any_order(make_run):
    items = [f"prompt {n}" for n in range(40)]
    run, turned = make_run(items=items, filters={"random": 8}), make_run(items=items[::-1], filters={"random": 8})
    assert prepare(run)["dropped"] == {"not drawn": 32}
    prepare(turned)
    assert texts(run) == texts(turned)[::-1]
    assert texts(run) != items[:8]
    other = make_run(items=items, filters={"random": 8})
    other.recipe = other.recipe.model_copy(update={"seed": 1})
    prepare(other)
    assert texts(other) != texts(run)


def test_nothing_left_is_an_error_with_the_reasons(make_run):
    message = refusal(make_run(items=["a", "b", " "], filters={"min_words": 3}))
    assert message == "prompts: none is left of 3 rows (2 too short, 1 empty); loosen prompts.filters"


# --- split ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "says"),
    [
        (20, 0.01, "test_fraction 0.01 of 20 prompts leaves no test prompt; use at least 0.05"),
        (20, 0.99, "test_fraction 0.99 of 20 prompts leaves none to train on; use at most 0.95"),
        (1, 0.5, "1 prompt cannot be both trained and tested on"),
    ],
)
def test_a_split_with_an_empty_side_is_refused(make_run, n, fraction, says):
    assert says in refusal(make_run(items=[f"p{i}" for i in range(n)], test_fraction=fraction))


@given(n=st.integers(2, 3000), fraction=st.floats(1e-6, 1 - 1e-6))
def test_the_fraction_that_a_refusal_names_works(n, fraction):
    ids = [str(i) for i in range(n)]
    try:
        stage._held_out(ids, fraction, 0, trains=True)
    except InputError as error:
        named = re.search(r"use at (?:least|most) ([0-9.e-]+)", str(error))
        assert named
        assert 0 < len(stage._held_out(ids, float(named[1]), 0, trains=True)) < n


rows_of_pairs = st.lists(
    st.fixed_dictionaries(
        {column: st.sampled_from(["", "x", "yy", "zzz", "w w"]) for column in ("prompt", "chosen", "rejected")}
    ),
    min_size=4,
    max_size=30,
)


@settings(max_examples=60)
@given(rows=rows_of_pairs, data=st.data(), shortest=st.integers(0, 2))
def test_filters_and_split_of_any_rows(rows, data, shortest):
    prompts = Prompts.model_validate_json(json.dumps({"source": "x.csv", "pairs": {}, "filters": {"min_characters": shortest}}))
    shuffled = data.draw(st.permutations(rows))

    def split(rows: list[dict[str, str]]) -> tuple[set[str], set[str]]:
        candidates = list(stage.candidates([Row("row", row) for row in rows], prompts))
        kept, dropped = stage._sieve(candidates, prompts.filters, 0)
        assert len(kept) + dropped.total() == len(rows)
        assert all(dropped.values())
        ids = {stage.prompt_id(candidate.messages) for candidate in kept}
        try:
            return ids, stage._held_out(ids, 0.3, 0, trains=True)
        except InputError:
            return ids, set()

    ids, held_out = split(rows)
    assert split(shuffled) == (ids, held_out)
    assert held_out <= ids


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=8), min_size=6, max_size=25), fraction=st.floats(0.2, 0.8))
def test_written_files_add_up(make_run, texts, fraction):
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    pool = [*clean, "always here", "and this", "and a third"]
    run = make_run(source="rows.jsonl", pairs={}, test_fraction=fraction)
    lines = [json.dumps({"prompt": one, "chosen": two, "rejected": one}) for one, two in zip(pool, pool[::-1], strict=True)]
    run.resolve(".").joinpath("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    counts = prepare(run)
    prompts = run.prompts()
    split = {prompt.id: prompt.split for prompt in prompts}
    assert len(split) == len(prompts) == counts["prompts"] == counts["train"] + counts["test"]
    assert list(split.values()).count("test") == counts["test"] == round(fraction * len(prompts))
    assert counts["kept"] + sum(counts["dropped"].values()) == counts["rows"] == len(pool)
    assert len(given_pairs(run)) == counts["pairs"] == counts["kept"]


# --- ready-made pairs ----------------------------------------------------------------------------------------------


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": turns("Q"), "chosen": turns("", "good")[1:], "rejected": turns("", "bad")[1:]},
        {"prompt": "Q", "chosen": turns("Q", "good"), "rejected": turns("Q", "bad")},
        {"chosen": turns("Q", "good"), "rejected": turns("Q", "bad"), "score": 3},
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "good"}}
        | {"rejected": {"role": "assistant", "content": "bad"}},
        {"instruction": "Q", "input": "", "chosen": "good", "rejected": "bad"},
    ],
)
def test_every_form_of_pair(make_run, jsonl, row):
    second = {"prompt": "other", "instruction": "other", "chosen": "c", "rejected": "r"}
    if isinstance(row["chosen"], list) and "prompt" not in row:
        second = {"chosen": turns("other", "c"), "rejected": turns("other", "r")}
    elif "conversations" in row:
        second = {"conversations": turns("other"), "chosen": "c", "rejected": "r"}
    run = make_run(source=jsonl([row, {key: value for key, value in second.items() if key in row}]), **PAIRS)
    assert prepare(run)["pairs"] == 2
    assert given_pairs(run) == [("Q", "good", "bad"), ("other", "c", "r")]
    assert all(draw.sampler == draw.finish_reason == "given" for draw in run.draws())
    assert all((one.judge, one.winner, one.error) == ("given", "first", None) for one in read_jsonl(run.given_jsonl, Comparison))


def test_an_explicit_column_rules_over_whole_conversations(make_run, jsonl):
    rows = [{"ask": f"Q{n}", "chosen": turns(f"Q{n}", "good"), "rejected": turns(f"Q{n}", "bad"), "topic": "x"} for n in range(2)]
    run = make_run(source=jsonl(rows), template="{ask}", **PAIRS)
    prepare(run)
    assert given_pairs(run) == [("Q0", "good", "bad"), ("Q1", "good", "bad")]
    message = refusal(make_run(source=jsonl(rows), column="topic", **PAIRS))
    assert "line 1, column 'chosen': holds a turn of the user where only the answer" in message


def test_one_prompt_many_pairs_and_rows_that_are_equal(make_run, jsonl):
    rows = [("P", "a", "b"), ("P", "a", "c"), ("P", "a", "b"), ("Q", "same", "same"), ("R", "", "x"), ("", "a", "b")]
    source = jsonl([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
    run = make_run(source=source, **PAIRS)
    counts = prepare(run)
    assert counts["dropped"] == {"duplicate": 1, "empty": 1}
    assert (counts["rows"], counts["kept"], counts["pairs"], counts["prompts"]) == (6, 4, 4, 3)
    assert given_pairs(run) == [("P", "a", "b"), ("P", "a", "c"), ("Q", "same", "same"), ("R", "", "x")]
    draws = [(draw.prompt_id, draw.draw) for draw in run.draws()]
    assert len(set(draws)) == len(draws) == 6
    assert [draw.draw for draw in run.draws()][:3] == [0, 1, 2]
    again = make_run(source=source, filters={"first": 2}, **PAIRS)
    with pytest.raises(InputError, match="1 prompt cannot"):  # n counts rows, and both rows are P's
        prepare(again)


def test_the_doubt_about_a_pair_comes_along(make_run, jsonl):
    """From a column of its own to the pair; what is as likely the one as the other makes none."""
    rows = [{"prompt": f"P{at}", "chosen": "a", "rejected": "b", "doubt": doubt} for at, doubt in enumerate((0.25, 0, None, 0.5))]
    doubted = {"pairs": {"flip_probability": "doubt"}, "test_fraction": 0.25}
    run = make_run(source=jsonl(rows), **doubted)
    prepare(run)
    assert all("doubt" not in each.meta for each in run.prompts())
    counts = pair(run)
    made = {each.prompt[0].content: each for path in (run.pairs_jsonl, run.held_out_pairs_jsonl) for each in run.pairs(path)}
    assert {name: (each.flip_probability, each.margin) for name, each in made.items()} == {
        "P0": (0.25, 0.5), "P1": (0.0, 1.0), "P2": (0.0, 1.0),
    }  # fmt: skip
    assert sum(part["dropped"].get("inconsistent", 0) for part in counts.values()) == 1
    for wrong in (0.6, -0.1, "often", True):
        assert "is no probability from 0 to 0.5" in refusal(make_run(source=jsonl([rows[0] | {"doubt": wrong}]), **doubted))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Q", "chosen": "a"}, "prompts.pairs.rejected: no column 'rejected'; there is 'prompt', 'chosen'"),
        ({"id": 3, "chosen": "a", "rejected": "b"}, "which column is the prompt?"),
        ({"prompt": "Q", "chosen": True, "rejected": "b"}, "column 'chosen': holds true or false"),
        ({"chosen": turns("Q", "a"), "rejected": turns("other", "b")}, "the two conversations share no question"),
        (
            {"chosen": turns("Q", "a", "x", "y"), "rejected": turns("Q", "b", "x", "y")},
            "a turn of the user where only the answer",
        ),
    ],
)
def test_pairs_of_another_shape_are_refused(make_run, jsonl, row, says):
    assert says in refusal(make_run(source=jsonl([row]), **PAIRS))


def test_prompts_are_written_last(make_run, monkeypatch, jsonl):
    run = make_run(source=jsonl([{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(4)]), **PAIRS)
    order = []
    write = stage.write_jsonl
    monkeypatch.setattr(stage, "write_jsonl", lambda path, records: (order.append(path.name), write(path, records)))
    prepare(run)
    assert order == ["completions.jsonl", "given.jsonl", "prompts.jsonl"]


# --- written prompts -----------------------------------------------------------------------------------------------


class Writer:
    """A sampler that answers from a list of replies and counts what it is asked."""

    label = "writer"

    def __init__(self, replies: Iterable[str | None], n: int = 1, finish: str = "stop") -> None:
        self.replies, self.n, self.finish = iter(replies), n, finish
        self.asked: list[str] = []

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        for prompt in prompts:
            self.asked.append(prompt.text)
            for draw in range(self.n):
                if (prompt.id, draw) not in have and (reply := next(self.replies)) is not None:
                    yield Completion.of(prompt.id, reply, sampler="writer", draw=draw, finish_reason=self.finish)


@pytest.fixture
def write_run(make_run, monkeypatch) -> Callable[..., tuple[Run, Writer]]:
    def make(
        replies: Iterable[str | None], n: int, topics: list[str], draws: int = 1, finish: str = "stop"
    ) -> tuple[Run, Writer]:
        writer = Writer(replies, draws, finish)
        monkeypatch.setattr(stage, "build_sampler", lambda section, recipe, ledger: writer)
        run = make_run(write={"topics": topics, "n": n, "sampler": {"type": "local", "n": draws}})
        return run, writer

    return make


def questions(*numbers: int) -> str:
    return "\n".join(f"{at}. Is this question {number}?" for at, number in enumerate(numbers, start=1))


def test_written_prompts_are_spread_over_topics_and_asked_again(write_run):
    run, writer = write_run(
        [questions(1, 2, 3), questions(3, 4), "Here you are:\n* none", questions(4, 5), questions(5, 6, 7)],
        7,
        ["tax", "rent", "law"],
    )
    counts = prepare(run)
    assert texts(run) == [f"Is this question {n}?" for n in (1, 2, 3, 4, 5, 6, 7)]
    assert [prompt.meta["topic"] for prompt in run.prompts()] == ["tax"] * 3 + ["rent"] * 2 + ["law"] * 2
    assert (counts["rows"], counts["short"]) == (7, 0)
    assert writer.asked[0] == "Write 3 different questions that a person could ask about tax. One per line, numbered."
    assert writer.asked[2].startswith("Write 1 different questions that a person could ask about rent.")
    assert writer.asked[2].endswith("Do not repeat:\n- Is this question 4?")
    assert len(set(writer.asked)) == len(writer.asked) == 5


def test_a_writer_that_falls_short_is_asked_five_times_and_counted(write_run):
    run, writer = write_run([questions(1, 2), *["nothing"] * 4], 6, ["tax"])
    assert prepare(run)["short"] == 4
    assert len(writer.asked) == 5


def test_every_draw_is_read(write_run):
    run, writer = write_run([questions(1), questions(2)], 2, ["tax"], draws=2)
    prepare(run)
    assert (texts(run), len(writer.asked)) == (["Is this question 1?", "Is this question 2?"], 1)


def test_only_the_draws_that_are_missing_are_asked_for(write_run, monkeypatch):
    run, _ = write_run([questions(1), None, questions(2), questions(3)], 3, ["tax"], draws=2)
    prepare(run)  # the second draw of the first question failed; a question on the rest brought two more
    assert len(run.written_jsonl.read_bytes().splitlines()) == 3
    run.prompts_jsonl.unlink()
    rest = Writer([questions(2, 3)], 2)
    monkeypatch.setattr(stage, "build_sampler", lambda section, recipe, ledger: rest)
    prepare(run)
    assert (texts(run), len(rest.asked)) == ([f"Is this question {n}?" for n in (1, 2, 3)], 1)


def test_a_writer_without_use_is_an_error(write_run):
    run, _ = write_run(["short:"] * 5, 2, ["tax"])
    assert "wrote no usable prompt" in refusal(run)


def test_replies_that_were_paid_for_are_used_again(write_run, monkeypatch):
    replies = [questions(1, 2), questions(2, 3), None, questions(4, 5), questions(6)]
    run, _ = write_run(replies, 6, ["tax", "rent"])
    prepare(run)
    expected = texts(run)
    whole = run.written_jsonl.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    for done in range(5):
        torn = lines[done][:20] if done < 4 else b""
        run.written_jsonl.write_bytes(b"".join(lines[:done]) + torn)
        run.prompts_jsonl.unlink()
        rest = Writer([reply for reply in replies if reply is not None][done:])
        monkeypatch.setattr(stage, "build_sampler", lambda section, recipe, ledger, rest=rest: rest)
        prepare(run)
        assert texts(run) == expected
        assert run.written_jsonl.read_bytes() == whole
        assert len(rest.asked) == 4 - done


def test_an_instruction_with_an_unknown_field_is_refused(make_run):
    instruction = "Write {n} about {topic} and {mood}."
    run = make_run(write={"topics": ["a"], "n": 2, "instruction": instruction, "sampler": {"type": "local"}})
    assert "prompts.write.instruction: no column 'mood'" in refusal(run)


@pytest.mark.parametrize(
    ("reply", "lines"),
    [
        (
            '1. "What is a lease?"\n2) **Who pays the tax?**\n(3) - “Is it allowed?”',
            ["What is a lease?", "Who pays the tax?", "Is it allowed?"],
        ),
        (
            "Sure, here are ten questions:\n\n- 3.5 million people voted?\n• 2024 was what year?",
            ["3.5 million people voted?", "2024 was what year?"],
        ),
        ('"Lolita" or "Emma", which?\nToo short', ['"Lolita" or "Emma", which?']),
    ],
)
def test_lines_of_a_reply(reply, lines):
    assert list(stage._lines(Completion.of("p", reply, sampler="s"))) == lines


def test_the_last_line_of_a_cut_reply_is_left_out():
    reply = Completion.of("p", "1. A whole question?\n2. Half of a que", sampler="s", finish_reason="length")
    assert list(stage._lines(reply)) == ["A whole question?"]


# --- real data -----------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (
            {"source": "rasbt_preference/instruction-data-with-preference.json", "pairs": {}},
            {"rows": 1100, "prompts": 1075, "identical": 6, "test": 108},
        ),
        (
            {"source": "youtube_titles/preferences.csv", "pairs": {}},
            {"rows": 1140, "prompts": 114, "test": 11, "pairs": 1140, "identical": 0},
        ),
        ({"source": "youtube_titles/ideas.csv", "template": "A title for {Idea}"}, {"rows": 114, "prompts": 114, "test": 11}),
        ({"source": "llamafactory_demo/dpo_en_demo.json", "pairs": {}}, {"rows": 300, "prompts": 295, "identical": 0}),
        ({"source": "llamafactory_demo/kto_en_demo.json"}, {"rows": 300}),
        (
            {
                "source": "truthfulqa/TruthfulQA.csv",
                "pairs": {"chosen": "Best Answer", "rejected": "Best Incorrect Answer"},
                "filters": {"on": ["prompt", "chosen", "rejected"], "min_characters": 30, "max_characters": 300},
            },
            {"rows": 790, "identical": 0},
        ),
        ({"source": "ifeval/input_data.jsonl"}, {"rows": 541, "prompts": 541}),
    ],
    ids=lambda value: value["source"].split("/")[0] if "source" in value else "",
)
def test_public_data(make_run, prompts, expected):
    run = make_run(**{**prompts, "source": str(DATA / prompts["source"]), "test_fraction": 0.1})
    counts = prepare(run)
    assert counts["kept"] + sum(counts["dropped"].values()) == counts["rows"]
    if run.ready_made:
        verdicts = list(read_jsonl(run.given_jsonl, Comparison))
        counts["identical"] = sum(one.first == one.second for one in verdicts)
        assert all(isinstance(turn, Message) for prompt in run.prompts() for turn in prompt.messages)
    assert {key: counts[key] for key in expected} == expected


# --- who says what is held out -------------------------------------------------------------------------------------


def splits(run: Run) -> dict[str, str]:
    prepare(run)
    return {prompt.text: prompt.split for prompt in run.prompts()}


def test_a_column_says_what_is_held_out(make_run, jsonl):
    rows = [{"prompt": f"p{at}", "part": "test" if at % 3 == 0 else "train"} for at in range(9)]
    run = make_run(source=jsonl(rows), split="part", test_fraction=None)
    assert splits(run) == {row["prompt"]: row["part"] for row in rows}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("a", "train"), ("b", "dev")], "column 'part' says 'dev' where train or test is meant"),
        ([("a", "train"), ("a", "test"), ("b", "test")], "the prompt 'a' is in train and in test; leave one out"),
        ([("a", "train"), ("b", "train")], "no row says test in column 'part'"),
    ],
)
def test_a_column_that_does_not_split(make_run, jsonl, rows, says):
    pairs = [{"prompt": text, "part": part, "chosen": f"{at}", "rejected": "x"} for at, (text, part) in enumerate(rows)]
    run = make_run(source=jsonl(pairs), split="part", pairs={}, test_fraction=None)
    assert says in refusal(run)


def test_validation_is_of_the_training_prompts_and_the_test_stays_aside(make_run):
    items = [f"prompt {at}" for at in range(40)]
    whole = splits(make_run(items=items, test_fraction=0.25))
    run = make_run(items=items, test_fraction=0.25, held_out="validation")
    counts = prepare(run)
    some = {prompt.text: prompt.split for prompt in run.prompts()}
    assert set(some) == {text for text, split in whole.items() if split == "train"}
    assert sorted(some.values()).count("test") == round(0.25 * 30)
    assert counts["dropped"] == {"kept for the test": 10}
    assert counts["rows"] == counts["kept"] + 10
    assert splits(make_run(items=items[::-1], test_fraction=0.25, held_out="validation")) == some


def test_every_prompt_is_held_out_where_nothing_is_trained(tmp_path):
    models = [{"type": "outputs", "name": name, "file": "x.json"} for name in ("one", "two")]
    recipe = {**REST, "generate": [], "train": None, "evaluate": {"models": models}, "prompts": {"items": ["a", "b"]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert set(splits(Run.start(tmp_path / "r.yaml", tmp_path / "run")).values()) == {"test"}
