"""The records: what they refuse, and what their ids tell apart."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tiebreak.records import Comparison, Completion, InputError, Message, PreferencePair, Prompt, Rating, content_hash

HELLO = (Message(role="user", content="hello"),)


def comparison(**fields: object) -> Comparison:
    return Comparison.model_validate({"prompt_id": "p", "first": "a", "second": "b", "judge": "j", **fields})


def rating(**fields: object) -> Rating:
    return Rating.model_validate({"prompt_id": "p", "completion_id": "a", "judge": "j", **fields})


@pytest.mark.parametrize("fields", [{}, {"winner": "tie", "error": "unreadable"}, {"winner": "first", "error": ""}])
def test_a_comparison_is_a_verdict_or_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="a winner or an error"):
        comparison(**fields)


@pytest.mark.parametrize("fields", [{}, {"score": 0.0, "error": "unreadable"}, {"score": 1.0, "error": ""}])
def test_a_rating_is_a_score_or_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="a score or an error"):
        rating(**fields)


def test_either_of_the_two_will_do() -> None:
    assert comparison(winner="tie").error is None
    assert comparison(error="timed out").winner is None
    assert rating(score=0.0).score == 0  # a score of nothing is a score
    assert rating(error="timed out").score is None


EXAMPLES: list[BaseModel] = [
    HELLO[0],
    Prompt.of(HELLO, "train", {"idea": "ä"}),
    Completion.of("p", "text", sampler="s"),
    comparison(winner="first", probability=0.75, raw="Verdict: A"),
    rating(score=0.5),
    PreferencePair(prompt=HELLO, chosen=HELLO, rejected=HELLO, margin=1, flip_probability=0, provenance={"judge": "j"}),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_is_frozen_and_knows_its_fields(record: BaseModel) -> None:
    name = next(iter(type(record).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, name, getattr(record, name))
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        type(record).model_validate({**record.model_dump(), "colour": "red"})


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_survives_json(record: BaseModel) -> None:
    assert type(record).model_validate_json(record.model_dump_json()) == record


def test_pairs_have_the_conversational_columns() -> None:
    pair = json.loads(EXAMPLES[-1].model_dump_json())
    assert pair["prompt"] == pair["chosen"] == pair["rejected"] == [{"role": "user", "content": "hello"}]


def test_equal_content_has_equal_ids() -> None:
    assert Prompt.of(HELLO, "train", {"row": 1}).id == Prompt.of(HELLO, "test", {"row": 2}).id
    one = Completion.of("p", "text", sampler="a", draw=0, tokens=1)
    assert Completion.of("p", "text", sampler="b", draw=3).id == one.id
    assert content_hash({"b": 1, "a": [2]}) == content_hash({"a": [2], "b": 1})


def test_ids_stay_what_they_were() -> None:
    """The ids in run directories that exist: a change here orphans them."""
    assert Prompt.of(HELLO, "train").id == "b2babf946a3c8cbf"  # sha256 of [[["user","hello"]]]
    assert Completion.of("p", "text", sampler="s").id == "7e3c58e83fa58ef5"  # sha256 of ["p","text"]


messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=3)), max_size=3
)


@given(messages.map(tuple), messages.map(tuple))
def test_other_messages_have_other_ids(one: tuple[Message, ...], other: tuple[Message, ...]) -> None:
    assert (Prompt.of(one, "train").id == Prompt.of(other, "train").id) == (one == other)


@given(st.text(), st.text(min_size=1), st.text())
def test_parts_that_join_alike_have_other_hashes(one: str, middle: str, other: str) -> None:
    whole = [content_hash(one + middle, other), content_hash(one, middle + other), content_hash(one + middle + other)]
    assert len(set(whole)) == 3


@given(st.text(alphabet=st.characters(), max_size=5))
def test_a_hash_is_16_hexadecimal_digits_of_any_text(text: str) -> None:
    digits = content_hash(text)
    assert len(digits) == 16
    assert int(digits, 16) >= 0


def test_a_lone_surrogate_has_a_hash() -> None:
    assert content_hash("\ud800") != content_hash("\ud801")


def test_the_text_of_a_prompt_is_its_last_user_turn() -> None:
    turns = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "last"), ("assistant", "b")]
    asked = Prompt.of(tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns), "test")
    assert asked.text == "last"
    assert Prompt.of(asked.messages[:1], "test").text == ""


def test_an_input_error_is_one_line() -> None:
    assert str(InputError("a.csv:\nno column\u2028'x'\r\n")) == "a.csv: no column 'x'"
