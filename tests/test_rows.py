"""Rows to token ids: every shape a row may have, one BOS, one end, and what is cut, dropped and refused."""

from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from conftest import TEMPLATE, make_tokenizer
from tiebreak.records import InputError, Message
from tiebreak.training.rows import tokenize, tokenize_unpaired

USER = [{"role": "user", "content": "Hi"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def adds(tokenizer: PreTrainedTokenizerBase, pattern: str) -> PreTrainedTokenizerBase:
    """Make a tokenizer put special tokens around every text, as `<bos> $A` or `$A <|end|>`."""
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=specials)
    return tokenizer


def read(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Tokenize one row and return its three parts as text, special tokens included."""
    (pair,), _ = tokenize([row], tokenizer, None)
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in (pair.prompt, *pair.completions))
    return prompt, chosen, rejected


def test_messages() -> None:
    row = {"prompt": USER, "chosen": answer("Yes"), "rejected": answer("No")}
    assert read(row, make_tokenizer()) == ("<|user|>Hi<|end|>\n<|assistant|>", "Yes<|end|>", "No<|end|>")


def test_messages_as_records() -> None:
    row = {
        "prompt": (Message(role="user", content="Hi"),),
        "chosen": (Message(role="assistant", content="Yes"),),
        "rejected": (Message(role="assistant", content="No"),),
    }
    plain = {"prompt": USER, "chosen": answer("Yes"), "rejected": answer("No")}
    assert tokenize([row], make_tokenizer(), None) == tokenize([plain], make_tokenizer(), None)


def test_text() -> None:
    row = {"prompt": "Q: Hi\nA:", "chosen": " Yes", "rejected": " No<|end|>"}
    assert read(row, make_tokenizer()) == ("Q: Hi\nA:", " Yes<|end|>", " No<|end|>")


def test_implicit_prompt_in_messages() -> None:
    system = [{"role": "system", "content": "Be brief"}]
    row = {"chosen": [*system, *USER, *answer("Yes")], "rejected": [*system, *USER, *answer("No")]}
    explicit = {"prompt": [*system, *USER], "chosen": answer("Yes"), "rejected": answer("No")}
    assert read(row, make_tokenizer()) == read(explicit, make_tokenizer())


def test_implicit_prompt_of_equal_answers_is_dropped() -> None:
    pairs, counts = tokenize([{"chosen": [*USER, *answer("Yes")], "rejected": [*USER, *answer("Yes")]}], make_tokenizer(), None)
    assert (pairs, counts) == ([], {"identical": 1})


def test_implicit_prompt_in_text() -> None:
    """As TRL cuts it: what both begin with, and the space before the answers goes with them."""
    row = {"chosen": "Q: Hi\nA: Yes", "rejected": "Q: Hi\nA: No"}
    assert read(row, make_tokenizer()) == ("Q: Hi\nA:", " Yes<|end|>", " No<|end|>")


def test_an_end_in_the_text_is_not_doubled() -> None:
    row = {"prompt": USER, "chosen": answer("Yes<|end|>"), "rejected": answer("No")}
    assert read(row, make_tokenizer())[1:] == ("Yes<|end|>", "No<|end|>")


@pytest.mark.parametrize("pattern", ["$A", "<bos> $A", "$A <|end|>", "<bos> $A <|end|>"])
@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }}" + TEMPLATE, None], ids=["plain", "with BOS", "none"])
def test_one_bos_and_one_end_whatever_the_tokenizer_adds(pattern: str, template: str | None) -> None:
    tokenizer = adds(make_tokenizer(template), pattern)
    expects_bos = "bos_token" in template if template else "<bos>" in pattern
    prompt, chosen, rejected = read({"prompt": USER, "chosen": answer("Yes"), "rejected": answer("No")}, tokenizer)
    assert prompt.count("<bos>") == expects_bos
    assert prompt.startswith("<bos>") == expects_bos
    assert prompt.endswith("<|assistant|>" if template else "Hi\n\n")
    assert (chosen, rejected) == ("Yes<|end|>", "No<|end|>")


@pytest.mark.parametrize("pattern", ["$A", "<bos> $A", "$A <|end|>", "<bos> $A <|end|>"])
@pytest.mark.parametrize("bos", ["", "<bos>"])
def test_one_bos_and_one_end_in_text(pattern: str, bos: str) -> None:
    prompt, chosen, rejected = read({"prompt": f"{bos}Hi", "chosen": "Yes", "rejected": "No"}, adds(make_tokenizer(), pattern))
    assert prompt == ("<bos>Hi" if bos or "<bos>" in pattern else "Hi")
    assert (chosen, rejected) == ("Yes<|end|>", "No<|end|>")


def test_a_tokenizer_without_bos() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    pairs, _ = tokenize(
        [
            {"prompt": USER, "chosen": answer("Yes"), "rejected": answer("No")},
            {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
            {"prompt": "", "chosen": "Yes", "rejected": "No"},
        ],
        tokenizer,
        None,
    )
    assert all(isinstance(token, int) for pair in pairs for ids in (pair.prompt, *pair.completions) for token in ids)
    assert pairs[2].prompt == (tokenizer.eos_token_id,), "something to predict the first token from"


def test_an_empty_text_prompt_is_the_bos() -> None:
    tokenizer = make_tokenizer()
    (pair,), _ = tokenize([{"prompt": "", "chosen": "Yes", "rejected": "No"}], tokenizer, None)
    assert pair.prompt == (tokenizer.bos_token_id,)


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.eos_token = None
    rows = [{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, {"prompt": "Hi", "chosen": "", "rejected": "No"}]
    pairs, counts = tokenize(rows, tokenizer, None)
    assert [tokenizer.decode(pair.completions[0]) for pair in pairs] == ["Yes"]
    assert counts == {"empty": 1}, "a completion of no tokens has no log-prob"


def test_an_empty_answer_is_its_end() -> None:
    assert read({"prompt": USER, "chosen": answer(""), "rejected": answer("No")}, make_tokenizer())[1] == "<|end|>"


def test_the_prompt_is_cut_from_the_left() -> None:
    tokenizer = make_tokenizer()
    row = {"prompt": "0123456789", "chosen": "Yes", "rejected": "No way"}
    pairs, counts = tokenize([row], tokenizer, 10)
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in (pairs[0].prompt, *pairs[0].completions))
    assert (prompt, chosen, rejected) == ("789", "Yes<|end|>", "No way<|end|>"), "the longer answer decides for both"
    assert counts == {"prompt cut": 1}
    for length in (8, 17):  # one token of the prompt is left; nothing needs to go
        (pair,), counts = tokenize([row], tokenizer, length)
        assert (len(pair.prompt), counts["prompt cut"]) == ((1, 1) if length == 8 else (10, 0))


def test_too_long_is_dropped_and_counted() -> None:
    rows = [
        {"prompt": USER, "chosen": answer("x" * 20), "rejected": answer("y")},
        {"prompt": USER, "chosen": answer("x"), "rejected": answer("y" * 20)},
        {"prompt": USER, "chosen": answer("x"), "rejected": answer("y")},
        {"prompt": USER, "chosen": answer("x"), "rejected": answer("x")},
    ]
    pairs, counts = tokenize(rows, make_tokenizer(), 21)
    assert len(pairs) == 1
    assert counts == {"too long": 2, "identical": 1}
    assert len(tokenize(rows, make_tokenizer(), 22)[0]) == 3, "room for one token of the prompt is room enough"


BAD: dict[str, tuple[Any, str]] = {
    "not a mapping": ("chosen", "not a mapping"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "not a mapping with chosen, rejected"),
    "text and messages": ({"prompt": USER, "chosen": "x", "rejected": "y"}, "all text, or all lists"),
    "text prompt": ({"prompt": "Hi", "chosen": answer("x"), "rejected": answer("y")}, "all text, or all lists"),
    "a number": ({"prompt": USER, "chosen": 3, "rejected": answer("y")}, "list of messages with role and content"),
    "a boolean": ({"prompt": USER, "chosen": answer(True), "rejected": answer("y")}, "list of messages"),  # type: ignore[arg-type]
    "no content": ({"prompt": [{"role": "user"}], "chosen": answer("x"), "rejected": answer("y")}, "list of messages"),
    "unknown role": (
        {"prompt": [{"role": "me", "content": "x"}], "chosen": answer("x"), "rejected": answer("y")},
        "list of mess",
    ),
    "none": ({"prompt": "x", "chosen": None, "rejected": "y"}, "all text, or all lists"),
    "two answers": ({"prompt": USER, "chosen": answer("x") * 2, "rejected": answer("y")}, "one assistant message each"),
    "a user's answer": ({"prompt": USER, "chosen": USER, "rejected": answer("y")}, "one assistant message each"),
    "no prompt": ({"chosen": answer("x"), "rejected": answer("y")}, "a prompt is one message or more"),
    "nothing": ({"chosen": [], "rejected": []}, "a prompt is one message or more"),
}


@pytest.mark.parametrize(("row", "words"), BAD.values(), ids=BAD)
def test_bad_rows_in_one_line(row: Any, words: str) -> None:
    good = {"prompt": USER, "chosen": answer("x"), "rejected": answer("y")}
    with pytest.raises(InputError) as raised:
        tokenize([good, row], make_tokenizer(), None)
    line = str(raised.value)
    assert line.startswith("dataset row 1: ")
    assert words in line
    assert "\n" not in line


def test_a_template_that_refuses_the_prompt() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(InputError, match="dataset row 0: the chat template refuses its prompt: System role not supported"):
        tokenize([{"prompt": USER, "chosen": answer("x"), "rejected": answer("y")}], tokenizer, None)


# --- completions without partners ------------------------------------------------------------------------------------


def test_a_labelled_completion() -> None:
    row = {"prompt": USER, "completion": answer("Yes"), "label": False}
    (one,), counts = tokenize_unpaired([row], make_tokenizer(), None)
    assert make_tokenizer().decode(one.completions[0]) == "Yes<|end|>"
    assert (one.desirable, len(one.completions), dict(counts)) == (False, 1, {})


def test_a_pair_is_one_of_each() -> None:
    pair = {"prompt": USER, "chosen": answer("Yes"), "rejected": answer("No")}
    both, _ = tokenize_unpaired([pair], make_tokenizer(), None)
    assert [(make_tokenizer().decode(one.completions[0]), one.desirable) for one in both] == [
        ("Yes<|end|>", True),
        ("No<|end|>", False),
    ]


def test_an_encoders_prompt_keeps_its_end_and_its_own_length() -> None:
    tokenizer = adds(make_tokenizer(template=None), "$A <|end|>")
    row = {"prompt": "abcdef", "chosen": "xyz", "rejected": "z"}
    (one,), counts = tokenize([row], tokenizer, 4, encoder_decoder=True)
    assert (tokenizer.decode(one.prompt), dict(counts)) == ("def<|end|>", {"prompt cut": 1})
    assert tokenizer.decode(one.completions[0]) == "xyz<|end|>"
    _, counts = tokenize([row], tokenizer, 3, encoder_decoder=True)
    assert dict(counts) == {"too long": 1}
