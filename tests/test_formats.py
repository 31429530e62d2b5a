"""AlpacaEval's and MT-bench's files: read as they are, written as they were, nothing dropped."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SHARED
from tiebreak.exchange.formats import read_annotations, read_outputs, write_annotations, write_outputs
from tiebreak.exchange.mt_bench import (
    read_mt_bench_answers,
    read_mt_bench_questions,
    write_mt_bench_answers,
    write_mt_bench_judgments,
    write_mt_bench_questions,
)
from tiebreak.metrics.agreement import Verdicts
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt, Rating
from tiebreak.samplers.turns import transcript

Entry = dict[str, Any]
OUTPUTS: list[Entry] = [
    {"instruction": "Name a bird.", "output": "A wren.", "generator": "m", "dataset": "helpful_base", "datasplit": "eval"},
    {"instruction": "Größe?", "output": "", "generator": "m", "dataset": "koala", "datasplit": "eval", "hard": True, "tries": 2},
    {"instruction": "Name a bird.", "output": "A rook.", "generator": "m", "dataset": "helpful_base", "datasplit": "eval"},
    {"instruction": "Translate.", "input": "le chat\u2028noir", "output": "the cat", "generator": "m", "dataset": None},
    {"instruction": "No input.", "input": "", "output": "Yes.", "generator": "m", "share": 0.25},
]
SIDES = {"output_1": "A wren.", "generator_1": "gpt4", "output_2": "A rook.", "generator_2": "m"}
ASKED = {"instruction": "Name a bird.", "dataset": "helpful_base", "datasplit": "eval"}
JUDGE = {"annotator": "weighted", "price_per_example": 0.01, "time_per_example": 0.18}


def annotation(preference: Any, **changes: Any) -> Entry:
    return {**ASKED, **SIDES, **JUDGE, "preference": preference, **changes}


ANNOTATIONS: list[Entry] = [
    annotation(1.9900139974, raw_completion={"logprobs": {"content": [{"token": "m", "logprob": -0.01}]}, "text": "m"}),
    annotation(1.4593660117, output_2="Another.", raw_completion="M"),
    annotation(None, output_1="Ärger.", raw_completion=None),
    annotation(1.5, output_2="A wren.", instruction="Both alike?"),
    annotation(0, instruction="An early tie?", annotator="human"),
    annotation(1, instruction="Translate.", input="le chat", annotator="human", time_per_example=None),
    annotation(2.0, instruction="By rank", referenced_models={"m": "output_2", "M": "output_1"}),
]


def saved(tmp_path: Path, entries: list[Entry], name: str = "file.json") -> Path:
    path = tmp_path / name
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(lines if name.endswith("l") else json.dumps(entries), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(text: str, **meta: Any) -> Prompt:
    return Prompt.of((Message(role="user", content=text),), "test", meta)


# --- AlpacaEval: outputs -------------------------------------------------------------------------------------------


def test_outputs_are_prompts_and_completions(tmp_path: Path) -> None:
    prompts, completions, generator = read_outputs(saved(tmp_path, OUTPUTS))
    assert generator == "m"
    assert [prompt.text for prompt in prompts] == ["Name a bird.", "Größe?", "Translate.\n\nle chat\u2028noir", "No input."]
    assert prompts[1] == asked("Größe?", dataset="koala", datasplit="eval", hard=True, tries=2)
    assert [(each.text, each.draw) for each in completions] == [
        ("A wren.", 0), ("", 0), ("A rook.", 1), ("the cat", 0), ("Yes.", 0),
    ]  # fmt: skip
    assert {(each.sampler, each.finish_reason) for each in completions} == {("m", "given")}
    assert completions[2].prompt_id == prompts[0].id


def test_outputs_are_written_as_they_were(tmp_path: Path) -> None:
    prompts, completions, generator = read_outputs(saved(tmp_path, OUTPUTS))
    path = tmp_path / "again.json"
    write_outputs(path, prompts, completions, generator)
    assert json.loads(path.read_text(encoding="utf-8")) == OUTPUTS
    assert read_outputs(path) == (prompts, completions, generator)


def test_a_runs_own_completions_become_outputs(tmp_path: Path) -> None:
    """Columns of the user's that are called like AlpacaEval's do not get in the way."""
    chat = Prompt.of((Message(role="system", content="Be brief."), Message(role="user", content="Why?")), "test")
    made = asked("Fix it: teh", instruction="Fix it", input="teh", output="the", generator="x", kwargs=[1], idea="i")
    draws = [Completion.of(prompt.id, text, sampler="tuned") for prompt, text in ((chat, "So."), (made, "the"))]
    path = tmp_path / "outputs.json"
    write_outputs(path, [chat, made], draws, "tuned-1")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"instruction": "Be brief.\n\nWhy?", "output": "So.", "generator": "tuned-1"},
        {"instruction": "Fix it: teh", "output": "the", "generator": "tuned-1", "idea": "i"},
    ]


def test_rows_of_prompt_and_completion_are_outputs_too(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "Name a bird.", "completion": "A wren.", "level": 1}, {"prompt": chat, "completion": "So."}]
    prompts, completions, generator = read_outputs(saved(tmp_path, rows, "mine.jsonl"))
    assert generator == "mine"
    assert prompts[0] == asked("Name a bird.", level=1)
    assert [message.role for message in prompts[1].messages] == ["system", "user"]
    assert [each.text for each in completions] == ["A wren.", "So."]


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('[{"instruction": "\\ud83d?", "output": "\\ude00", "generator": "m", "dataset": "\\ud83d"}]')
    prompts, completions, _ = read_outputs(path)
    assert (prompts[0].text, completions[0].text, prompts[0].meta) == ("\ufffd?", "\ufffd", {"dataset": "\ufffd"})
    prompts[0].model_dump_json()


# --- AlpacaEval: annotations ---------------------------------------------------------------------------------------


def test_annotations_are_comparisons(tmp_path: Path) -> None:
    found = read_annotations(saved(tmp_path, ANNOTATIONS))
    said = [(each.winner, each.probability, each.judge) for each in found.comparisons]
    assert said == [
        ("second", 2 - 1.9900139974, "weighted"),
        ("first", 2 - 1.4593660117, "weighted"),
        (None, None, "weighted"),
        ("tie", None, "weighted"),
        ("tie", None, "human"),
        ("first", None, "human"),
        ("second", None, "weighted"),
    ]
    assert found.failed == 1
    assert found.comparisons[2].error == "the annotator gave no preference"
    assert found.comparisons[0].cost == 0.01
    texts = {each.id: each.text for each in found.completions}
    assert [(texts[each.first], texts[each.second]) for each in found.comparisons] == [
        (entry["output_1"], entry["output_2"]) for entry in ANNOTATIONS
    ]
    assert {prompt.id for prompt in found.prompts} == {each.prompt_id for each in found.comparisons}
    assert found.prompts[0].meta == {"dataset": "helpful_base", "datasplit": "eval"}
    samplers = {(each.text, each.sampler, each.draw) for each in found.completions if each.prompt_id == found.prompts[0].id}
    assert samplers == {
        ("A wren.", "gpt4", 0), ("Ärger.", "gpt4", 1), ("A rook.", "m", 0), ("Another.", "m", 1),
    }  # fmt: skip
    for each in found.comparisons:
        each.model_dump_json()


def test_a_failed_annotation_is_an_error_to_all_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps([annotation(None), annotation(float("nan"), instruction="Q"), annotation(1, instruction="R")]))
    found = read_annotations(path)
    assert found.failed == 2
    kinds = [Verdicts(found.comparisons).outcome(each.first, each.second).kind for each in found.comparisons]
    assert kinds == ["unreadable", "unreadable", "win"]


def test_annotations_are_written_as_they_were(tmp_path: Path) -> None:
    found = read_annotations(saved(tmp_path, ANNOTATIONS))
    path = tmp_path / "again.json"
    write_annotations(path, *found, baseline="m")  # what was read keeps its order
    assert json.loads(path.read_text(encoding="utf-8")) == ANNOTATIONS
    again = read_annotations(path)
    assert again == found
    changed = [found.comparisons[0].model_copy(update={"winner": "first", "probability": None}), *found.comparisons[1:]]
    write_annotations(path, found.prompts, found.completions, changed)
    first, *others = json.loads(path.read_text(encoding="utf-8"))
    assert first["preference"] == 1  # not what the entry once said
    assert others == ANNOTATIONS[1:]


def test_what_an_annotator_explains_is_the_reason(tmp_path: Path) -> None:
    explained = annotation(2, raw_completion={"concise_explanation": "It is longer.", "ordered_models": []})
    (one,) = read_annotations(saved(tmp_path, [explained])).comparisons
    assert one.reason == "It is longer."


PROMPT = asked("Name a bird.", dataset="own")
DRAWS = {
    name: Completion.of(PROMPT.id, text, sampler=name)
    for name, text in (("base", "A wren."), ("tuned", "A rook."), ("sft", "A rook."), ("other", "A crow."))
}


def compared(first: str, second: str, winner: Any, probability: float | None = None, **fields: Any) -> Comparison:
    ids = {"prompt_id": PROMPT.id, "first": DRAWS[first].id, "second": DRAWS[second].id}
    return Comparison(**ids, judge="j", winner=winner, probability=probability, **fields)


def written(tmp_path: Path, comparisons: list[Comparison], baseline: str | None = None) -> list[Entry]:
    path = tmp_path / "annotations.json"
    write_annotations(path, [PROMPT], DRAWS.values(), comparisons, baseline)
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_runs_own_verdicts_become_annotations(tmp_path: Path) -> None:
    records = [
        compared("base", "other", "second", 0.25, raw='{"winner": "B"}', reason="Crows are clever.", cost=0.02),
        compared("other", "base", None, error="timed out"),
    ]
    about = {"instruction": "Name a bird.", "dataset": "own", "annotator": "j"}
    straight = {"output_1": "A wren.", "output_2": "A crow.", "generator_1": "base", "generator_2": "other"}
    turned = {"output_1": "A crow.", "output_2": "A wren.", "generator_1": "other", "generator_2": "base"}
    said = {"preference": 1.75, "raw_completion": '{"winner": "B"}', "reason": "Crows are clever.", "price_per_example": 0.02}
    failed = {"preference": None, "error": "timed out"}
    assert written(tmp_path, records) == [about | straight | said, about | turned | failed]
    again = read_annotations(tmp_path / "annotations.json")
    assert [(each.winner, each.probability, each.error, each.reason, each.cost) for each in again.comparisons] == [
        ("second", 0.25, None, "Crows are clever.", 0.02),
        (None, None, "timed out", "", None),
    ]
    assert [(each.prompt_id, each.first, each.second) for each in again.comparisons] == [
        (each.prompt_id, each.first, each.second) for each in records
    ]


def test_a_baseline_stands_as_output_1(tmp_path: Path) -> None:
    records = [
        compared("other", "base", "first", 0.75),
        compared("base", "other", "second", 0.25),
        compared("other", "base", None, error="e"),
    ]
    found = written(tmp_path, records, baseline="base")
    assert [(each["generator_1"], each["output_1"], each["generator_2"], each["preference"]) for each in found] == [
        ("base", "A wren.", "other", 1.75),
        ("base", "A wren.", "other", 1.75),
        ("base", "A wren.", "other", None),
    ]


def test_a_text_of_two_models_is_a_verdict_on_both(tmp_path: Path) -> None:
    found = written(tmp_path, [compared("base", "tuned", "first")])
    assert [(each["generator_1"], each["generator_2"], each["preference"]) for each in found] == [
        ("base", "tuned", 1),
        ("base", "sft", 1),
    ]


@pytest.mark.parametrize(
    ("winner", "probability", "preference"),
    [
        ("first", None, 1), ("second", None, 2), ("tie", None, 1.5), ("first", 0.75, 1.25), ("second", 0.25, 1.75),
        ("tie", 0.75, 1.5), ("first", 0.25, 1), ("second", 0.5, 2), ("second", -3.0, 2), ("first", 7.0, 1),
    ],
)  # fmt: skip
def test_a_verdict_survives_its_probability(tmp_path: Path, winner: Any, probability: float | None, preference: float) -> None:
    """AlpacaEval has one number for both; the verdict is what is counted."""
    (entry,) = written(tmp_path, [compared("base", "other", winner, probability)])
    assert entry["preference"] == preference
    (again,) = read_annotations(tmp_path / "annotations.json").comparisons
    assert again.winner == winner


@settings(max_examples=60, deadline=None)
@given(preferences=st.lists(st.floats(1, 2) | st.sampled_from([0, 1, 2, 1.5, None]), min_size=1, max_size=8))
def test_every_preference_comes_back(tmp_path_factory: pytest.TempPathFactory, preferences: list[float | None]) -> None:
    folder = tmp_path_factory.mktemp("preferences")
    entries = [annotation(each, instruction=f"Q{at}") for at, each in enumerate(preferences)]
    found = read_annotations(saved(folder, entries))
    write_annotations(folder / "again.json", *found)
    assert json.loads((folder / "again.json").read_text(encoding="utf-8")) == entries
    fresh = [each.model_copy(update={"raw": ""}) for each in found.comparisons]  # from the verdict alone
    write_annotations(folder / "fresh.json", found.prompts, found.completions, fresh)
    again = json.loads((folder / "fresh.json").read_text(encoding="utf-8"))
    assert [each["preference"] for each in again] == [1.5 if each == 0 else each for each in preferences]


def test_a_judges_json_is_not_taken_for_an_annotation(tmp_path: Path) -> None:
    reply = '{"preference": 1, "why": "short"}'
    (entry,) = written(tmp_path, [compared("base", "other", "first", raw=reply)])
    assert (entry["annotator"], entry["generator_1"], entry["raw_completion"]) == ("j", "base", reply)


WRONG = [
    (read_outputs, [{"instruction": "Q", "generator": "m"}], "entry 1: output is missing"),
    (read_outputs, [OUTPUTS[0], {**OUTPUTS[0], "output": None}], "entry 2: output is missing"),
    (read_outputs, [OUTPUTS[0], {**OUTPUTS[0], "output": ["a"]}], "entry 2: output holds list where text belongs"),
    (read_outputs, [OUTPUTS[0], {**OUTPUTS[0], "generator": "n"}], "entry 2: generator 'n', and 'm' above it; give each"),
    (read_outputs, [{"instruction": " ", "output": "a"}], "entry 1: instruction is empty"),
    (read_outputs, [{"output": "a"}], "entry 1: instruction is missing"),
    (read_outputs, ["a"], "entry 1: not an object with named fields"),
    (read_outputs, [], "holds no rows"),
    (read_annotations, OUTPUTS[:1], "entry 1: output_1 is missing"),
    (read_annotations, [{**ASKED, **SIDES}], "entry 1: no preference; a file of answers without verdicts"),
    (read_annotations, [annotation(1), annotation(3)], "entry 2: preference 3 is no number from 1 to 2"),
    (read_annotations, [annotation(0.5)], r"entry 1: preference 0\.5 is no number"),
    (read_annotations, [annotation(True)], "entry 1: preference True is no number"),
    (read_annotations, [annotation("model_1")], "entry 1: preference 'model_1' is no number"),
    (read_annotations, [annotation([1])], r"entry 1: preference \[1\] is no number"),
    (read_annotations, [annotation(1, output_2=5.5), annotation(1, output_2=None)], "entry 2: output_2 is missing"),
]


@pytest.mark.parametrize(("read", "entries", "phrase"), WRONG)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, read: Any, entries: list[Any], phrase: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=rf"file\.json(, |: ){phrase}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


# --- MT-bench ------------------------------------------------------------------------------------------------------

QUESTIONS: list[Entry] = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now\u2028rhyme it."]},
    {"question_id": 101, "category": "math", "turns": ["1 + 1?", "Doubled?"], "reference": ["2", "4"]},
    {"question_id": "v1", "category": "generic", "turns": ["How so?"]},
]
ANSWERS: list[Entry] = [
    {
        "question_id": 81, "answer_id": "TFom", "model_id": "m", "tstamp": 1686286924.8,
        "choices": [{"index": 0, "turns": ["A line.", "A mine."]}, {"index": 1, "turns": ["Here.", ""]}],
    },
    {"question_id": 101, "answer_id": "hLH8", "model_id": "m", "choices": [{"index": 0, "turns": ["2", "4"]}], "tstamp": 2.5},
    {"question_id": "v1", "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["So."]}], "tstamp": 3.5},
]  # fmt: skip


def test_questions_ask_their_first_turn_and_keep_the_others(tmp_path: Path) -> None:
    prompts = read_mt_bench_questions(saved(tmp_path, QUESTIONS, "question.jsonl"))
    assert [prompt.messages for prompt in prompts] == [(Message(role="user", content=q["turns"][0]),) for q in QUESTIONS]
    assert [prompt.meta for prompt in prompts] == QUESTIONS
    write_mt_bench_questions(tmp_path / "again.jsonl", prompts)
    assert read_lines(tmp_path / "again.jsonl") == QUESTIONS


def test_answers_are_transcripts_and_come_back(tmp_path: Path) -> None:
    prompts = read_mt_bench_questions(saved(tmp_path, QUESTIONS, "question.jsonl"))
    found = read_mt_bench_answers(saved(tmp_path, ANSWERS, "m.jsonl"), prompts)
    assert [(each.text, each.draw, each.sampler) for each in found] == [
        ("A line.\n\nUser: Now\u2028rhyme it.\n\nAssistant: A mine.", 0, "m"),
        ("Here.\n\nUser: Now\u2028rhyme it.\n\nAssistant: ", 1, "m"),
        ("2\n\nUser: Doubled?\n\nAssistant: 4", 0, "m"),
        ("So.", 0, "m"),
    ]
    assert found[1].sampling == {"answer_id": "TFom", "tstamp": 1686286924.8, "turns": ["Here.", ""]}
    write_mt_bench_answers(tmp_path / "again.jsonl", prompts, reversed(found), "m")
    assert read_lines(tmp_path / "again.jsonl") == ANSWERS
    assert read_mt_bench_answers(tmp_path / "again.jsonl", prompts) == found


def test_a_runs_own_prompts_and_completions_can_be_written_so(tmp_path: Path) -> None:
    draws = [Completion.of(PROMPT.id, text, sampler="s", draw=at, sampling={"temperature": 0.5}) for at, text in enumerate("ab")]
    write_mt_bench_questions(tmp_path / "question.jsonl", [PROMPT])
    write_mt_bench_answers(tmp_path / "s.jsonl", [PROMPT, asked("Unanswered")], draws, "s")
    prompts = read_mt_bench_questions(tmp_path / "question.jsonl")
    assert [prompt.id for prompt in prompts] == [PROMPT.id]
    assert prompts[0].meta == {"question_id": PROMPT.id, "turns": ["Name a bird."], "dataset": "own"}
    found = read_mt_bench_answers(tmp_path / "s.jsonl", prompts)
    assert [(each.id, each.draw, each.sampling["temperature"]) for each in found] == [(each.id, each.draw, 0.5) for each in draws]


def test_a_transcript_needs_an_answer_to_every_turn() -> None:
    prompt = asked("One?", turns=["One?", "Two?"])
    assert transcript(prompt, ["1", "2"]) == "1\n\nUser: Two?\n\nAssistant: 2"
    with pytest.raises(ValueError, match="zip"):
        transcript(prompt, ["1"])


def judged(tmp_path: Path, records: list[Any], prompt: Prompt = PROMPT) -> list[Entry]:
    path = tmp_path / "judgments.jsonl"
    write_mt_bench_judgments(path, [prompt], DRAWS.values(), records)
    return read_lines(path)


@pytest.mark.parametrize(
    ("there", "back", "winners"),
    [
        ("first", "second", ("model_1", "model_1")),
        ("first", "first", ("model_1", "model_2")),
        ("second", "tie", ("model_2", "tie")),
        ("tie", None, ("tie", "error")),
        (None, "first", ("error", "model_2")),
    ],
)
def test_both_orders_are_the_two_games_of_one_line(tmp_path: Path, there: Any, back: Any, winners: tuple[str, str]) -> None:
    def record(first: str, second: str, winner: Any) -> Comparison:
        return compared(first, second, winner, raw=f"{first} before {second}", error=None if winner else "failed")

    (line,) = judged(tmp_path, [record("base", "other", there), record("other", "base", back)])
    assert (line["model_1"], line["model_2"], line["question_id"], line["turn"]) == ("base", "other", PROMPT.id, 1)
    assert (line["g1_winner"], line["g2_winner"]) == winners
    assert (line["g1_judgment"], line["g2_judgment"]) == ("base before other", "other before base")
    assert line["judge"] == ["j", "pair"]
    assert set(line) == {
        "question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "g1_user_prompt", "g1_judgment",
        "g2_user_prompt", "g2_judgment", "turn", "tstamp",
    }  # fmt: skip


def test_one_order_alone_stands_for_both(tmp_path: Path) -> None:
    (line,) = judged(tmp_path, [compared("other", "base", "second", raw="B")])
    assert (line["model_1"], line["g1_winner"], line["g2_winner"], line["g2_judgment"]) == ("other", "model_2", "model_2", "")


def test_ratings_are_single_judgments(tmp_path: Path) -> None:
    prompt = PROMPT.model_copy(update={"meta": {"question_id": 81, "turns": ["Name a bird.", "Another?"]}})
    about = {"prompt_id": PROMPT.id, "judge": "j"}
    records = [
        Rating(**about, completion_id=DRAWS["base"].id, score=7.5, raw="[[7.5]]"),
        Rating(**about, completion_id=DRAWS["tuned"].id, error="timed out"),
    ]
    found = [{name: value for name, value in line.items() if name != "tstamp"} for line in judged(tmp_path, records, prompt)]
    same = {"question_id": 81, "judge": ["j", "single"], "turn": 2, "user_prompt": ""}
    assert found == [
        {**same, "model": "base", "score": 7.5, "judgment": "[[7.5]]"},
        {**same, "model": "tuned", "score": -1, "judgment": "timed out"},
        {**same, "model": "sft", "score": -1, "judgment": "timed out"},
    ]


WRONG_LINES = [
    ([{**QUESTIONS[0], "turns": "Write"}], None, "line 1: turns is no list of texts"),
    ([{**QUESTIONS[0], "turns": []}], None, "line 1: turns is no list of texts"),
    ([{**QUESTIONS[0], "reference": [2, 4]}], None, "line 1: reference is no list of texts"),
    ([{"turns": ["Q"]}], None, "line 1: question_id is missing"),
    ([QUESTIONS[0], {**QUESTIONS[1], "question_id": 81}], None, "line 2: its question_id or its first turn stands above"),
    ([QUESTIONS[0], {**QUESTIONS[0], "question_id": 82}], None, "line 2: its question_id or its first turn stands above"),
    (QUESTIONS, [{**ANSWERS[0], "question_id": 7}], "line 1: question_id 7 is none of the 3 questions"),
    (QUESTIONS, [ANSWERS[0], {**ANSWERS[1], "choices": []}], "line 2: choices is no list of answers"),
    (QUESTIONS, [{**ANSWERS[1], "choices": [{"index": 0, "turns": ["2"]}]}], "line 1, choice 0: 1 answers to 2 turns"),
    (QUESTIONS, [{**ANSWERS[1], "choices": ["2"]}], "line 1, choice 0: turns is no list of texts"),
    (QUESTIONS, [{**ANSWERS[1], "model_id": None}], "line 1: model_id is missing"),
]


@pytest.mark.parametrize(("questions", "answers", "phrase"), WRONG_LINES)
def test_a_mistake_in_a_line_is_named(tmp_path: Path, questions: list[Entry], answers: list[Entry] | None, phrase: str) -> None:
    path = saved(tmp_path, questions, "question.jsonl")
    if answers is None:
        with pytest.raises(InputError, match=rf"question\.jsonl, {phrase}"):
            read_mt_bench_questions(path)
    else:
        prompts = read_mt_bench_questions(path)
        with pytest.raises(InputError, match=rf"m\.jsonl, {phrase}"):
            read_mt_bench_answers(saved(tmp_path, answers, "m.jsonl"), prompts)


# --- the published files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "turns", "references"), [("mt_bench", 2, 39), ("vicuna_bench", 1, 0)])
def test_the_published_questions(tmp_path: Path, name: str, turns: int, references: int) -> None:
    path = SHARED / "data" / name / "question.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    prompts = read_mt_bench_questions(path)
    assert len({prompt.id for prompt in prompts}) == 80
    assert {len(prompt.meta["turns"]) for prompt in prompts} == {turns}
    assert sum("reference" in prompt.meta for prompt in prompts) == references
    assert {prompt.text == prompt.meta["turns"][0] for prompt in prompts} == {True}
    write_mt_bench_questions(tmp_path / "again.jsonl", prompts)
    assert read_lines(tmp_path / "again.jsonl") == read_lines(path)


def test_the_published_answers(tmp_path: Path) -> None:
    folder = SHARED / "data" / "mt_bench"
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    prompts = read_mt_bench_questions(folder / "question.jsonl")
    found = read_mt_bench_answers(folder / "gpt-4.jsonl", prompts)
    assert (len(found), {each.sampler for each in found}) == (30, {"gpt-4"})
    write_mt_bench_answers(tmp_path / "again.jsonl", prompts, found, "gpt-4")
    order = {line["question_id"]: line for line in read_lines(tmp_path / "again.jsonl")}
    assert [order[line["question_id"]] for line in read_lines(folder / "gpt-4.jsonl")] == read_lines(folder / "gpt-4.jsonl")
    assert all(one < other for one, other in pairwise(order))
