"""What texts show without a judge, against values worked out by hand and against the libraries that define them."""

import math
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.judges import checks
from tiebreak.metrics import text
from tiebreak.metrics.text import (
    AGAINST,
    ALONE,
    chrf,
    compression,
    describe,
    distinct,
    distinct_overall,
    estimate,
    exact_match,
    repetition,
    rouge_l,
    self_bleu,
    values,
)
from tiebreak.metrics.winrate import mean, rate

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dog"]), max_size=12)


# --- one text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", 0), ("one two", 0), ("one two three", 0), ("a b c a b c", 1 / 4), ("A b c, a B c,", 1 / 4),
        ("go go go go go", 2 / 3), ("a\nb\tc  a b c", 1 / 4),
    ],
)  # fmt: skip
def test_repetition(value: str, expected: float) -> None:
    assert repetition(value) == pytest.approx(expected)
    assert repetition(value) == checks.repetition(value)  # what the rule of that name measures


def test_compression_tells_a_loop_from_prose() -> None:
    prose = (
        "The wren is a small brown bird with a loud voice for its size. It keeps to hedges and walls, where it looks for "
        "spiders, and in hard winters dozens of them crowd into one nest box to stay warm until the morning."
    )
    loop = "I am sorry. " * 17
    assert len(loop) == pytest.approx(len(prose), abs=12)
    assert compression(prose) < 2.4 < compression(loop)
    assert compression("") == 0
    assert compression("hi") < 1
    assert compression("\ud800") > 0  # half a character, which JSON may hold


@pytest.mark.parametrize(
    ("value", "references", "expected"),
    [
        ("Paris", ["paris"], 1), (" Paris. ", ["Paris"], 1), ("“Paris”!", ["paris"], 1), ("**Paris**", ["Paris"], 1),
        ("Paris", ["Rome", "Paris"], 1), ("Paris,  France", ["paris france"], 1), ("Ｐａｒｉｓ", ["Paris"], 1),
        ("STRASSE", ["Straße"], 1), ("Paris France", ["Paris"], 0), ("3.5", ["35"], 0), ("-5", ["5"], 0),
        ("5%", ["5"], 0), (".5", ["5"], 0), ("the sun", ["sun"], 0), ("", ["Paris"], 0), ("Paris", [], 0), ("U.S.", ["U.S"], 1),
    ],
)  # fmt: skip
def test_exact_match(value: str, references: list[str], expected: float) -> None:
    assert exact_match(value, references) == expected


def longest_common(one: list[str], other: list[str]) -> int:
    """Fill the whole table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(own=WORDS, theirs=WORDS)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(own: list[str], theirs: list[str]) -> None:
    found = rouge_l(" ".join(own), [" ".join(theirs)])
    common = longest_common(own, theirs)
    if not common:
        assert found == 0
    else:
        precision, recall = common / len(own), common / len(theirs)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(
    ("value", "references", "expected"),
    [
        ("the cat sat", ["The cat, sat!"], 1),
        ("police kill the gunman", ["police killed the gunman"], 3 / 4),  # Lin 2004, its first example
        ("the gunman kill police", ["police killed the gunman"], 2 / 4),
        ("the cat", ["a dog", "the cat sat down"], 4 / 6), ("the cat", ["the cat sat down", "a dog"], 4 / 6),
        ("don't", ["don t"], 1),
        ("Größe zählt", ["GRÖSSE zählt nicht"], 4 / 5),  # words of any script; rouge-score has none but a to z
        ("", ["a"], 0), ("?!", ["?!"], 0), ("a", [], 0),
    ],
)  # fmt: skip
def test_rouge_l(value: str, references: list[str], expected: float) -> None:
    assert rouge_l(value, references) == pytest.approx(expected)


def chrf_by_hand(own: str, theirs: str) -> float:
    """Average precision and recall of character sequences of 1 to 6 where both texts have some, and take F2 (Popović 2015)."""

    def sequences(value: str, order: int) -> list[str]:
        value = "".join(value.split())
        return [value[at : at + order] for at in range(len(value) - order + 1)]

    precisions, recalls = [], []
    for order in range(1, 7):
        mine, wanted = sequences(own, order), sequences(theirs, order)
        if mine and wanted:
            common = sum(min(mine.count(one), wanted.count(one)) for one in set(mine))
            precisions.append(common / len(mine))
            recalls.append(common / len(wanted))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(
    ("own", "theirs"),
    [("the cat sat", "the cat sat down"), ("A wren.", "A rook."), ("Größe", "Grosse"), ("ab", "ba"), ("黒い猫", "黒猫")],
)
def test_chrf(own: str, theirs: str) -> None:
    assert chrf(own, [theirs]) == pytest.approx(chrf_by_hand(own, theirs))
    assert chrf(own, ["zzz", theirs]) == pytest.approx(chrf_by_hand(own, theirs))  # the nearest counts
    assert chrf(own, [own]) == pytest.approx(1)
    assert (chrf("", [theirs]), chrf(own, [])) == (0, 0)


@given(one=st.text(max_size=40), other=st.text(max_size=40))
def test_shares_stay_shares(one: str, other: str) -> None:
    bounded = [measure(one, [other]) for measure in AGAINST.values()] + [*self_bleu([one, other, one]), repetition(one)]
    assert all(0 <= value <= 1 for value in bounded)


# --- several texts -------------------------------------------------------------------------------------------------


def test_distinct() -> None:
    texts = ["a b a", "A c"]
    assert distinct(texts, 1) == 3 / 5
    assert distinct(texts, 2) == 3 / 3
    assert distinct(texts, 3) == 1
    assert distinct(texts, 4) is None
    assert distinct(["a b", "a b"], 2) == 1 / 2  # no sequence reaches from one text into the next
    assert distinct([], 1) is None


def test_distinct_over_all_prompts_by_hand() -> None:
    by_prompt = [["a b", "a"], ["a c c"], ["d"], [""]]
    found = distinct_overall(by_prompt, 1)
    assert found is not None
    assert (found.value, found.n, found.prompts) == (4 / 7, 7, 3)
    without = [3 / 4, 3 / 4, 3 / 6]  # without b; without c; without d
    centre = sum(without) / 3
    half = 4.302652729911275 * math.sqrt(2 / 3 * sum((each - centre) ** 2 for each in without))
    assert (found.low, found.high) == (pytest.approx(max(0, 4 / 7 - half)), pytest.approx(min(1, 4 / 7 + half)))
    assert distinct_overall([[""], []], 1) is None
    alone = distinct_overall([["a a"]], 1)
    assert alone is not None
    assert alone == (0.5, 0, 1, 2, 1)


def test_the_interval_of_distinct_holds_what_such_prompts_give() -> None:
    """Prompts with words of their own beside common ones; the truth is the mean over many draws of 12 prompts."""
    source = random.Random(0)
    common = [f"w{at}" for at in range(40)]

    def drawn() -> list[list[str]]:
        by_prompt = []
        for _ in range(12):
            own = source.sample(range(10_000), 5)
            words = source.choices([*map(str, own), *common[: source.randint(5, 40)]], k=source.randint(5, 60))
            by_prompt.append([" ".join(words)])
        return by_prompt

    found = [one for _ in range(500) if (one := distinct_overall(drawn(), 1))]
    truth = sum(one.value for one in found) / len(found)
    covered = sum(one.low <= truth <= one.high for one in found) / len(found)
    assert 0.92 <= covered <= 0.995
    assert sum(one.high - one.low for one in found) / len(found) < 0.35


def test_self_bleu() -> None:
    same = "the wren sings in the hedge"
    assert self_bleu([same, same]) == pytest.approx([1, 1])
    near = self_bleu([same, "the wren sings in the garden", "rooks gather on bare elms in winter"])
    assert near[0] > 0.6 > 0.2 > near[2]
    assert self_bleu(["the wren", "the wren"]) == pytest.approx([1, 1])  # too short for sequences of four words
    assert self_bleu([same]) == []
    assert self_bleu([]) == []
    assert self_bleu(["", same]) == [0, 0]


# --- a model's completions -----------------------------------------------------------------------------------------

BY_PROMPT = [["a b c", "a b d"], ["hello"], []]
REFERENCES = [["a b c"], ["", " "], ["x"]]


def test_values_keep_to_their_prompt() -> None:
    found = values(BY_PROMPT, REFERENCES)
    assert found["characters"] == [[5, 5], [5], []]
    assert found["words"] == [[3, 3], [1], []]
    assert found["distinct_1"] == [[4 / 6], [1], []]
    assert found["distinct_2"] == [[3 / 4], [], []]
    assert found["exact_match"] == [[1, 0], [], []]  # a blank reference is none
    assert found["rouge_l"] == [[1, pytest.approx(2 / 3)], [], []]
    assert [len(group) for group in found["self_bleu"]] == [2, 0, 0]
    assert set(found) - set(values(BY_PROMPT)) == set(AGAINST)
    with pytest.raises(ValueError, match="zip"):
        values(BY_PROMPT, REFERENCES[:2])


def test_estimates_cluster_by_prompt() -> None:
    found = describe(BY_PROMPT, REFERENCES)
    assert found["words"] == mean([[3, 3], [1]])
    assert found["distinct_1"] == rate([[4 / 6], [1]])
    assert found["exact_match"] == rate([[1, 0]])
    assert found["distinct_1_overall"].value == 5 / 7
    assert found["exact_match"].n == 2
    assert found["exact_match"].prompts == 1
    assert set(ALONE) <= set(found)
    assert describe([[], []]) == {}
    assert estimate("words", [[]]) is None


@pytest.mark.parametrize("name", [*ALONE, "self_bleu"])
def test_what_may_pass_1_is_no_rate(name: str) -> None:
    """A rate of values above 1 would come out as nonsense."""
    long = [["word " * 50, "word " * 50], ["other " * 60, "other " * 60]]
    found: Any = describe(long)[name]
    assert found.low <= found.value <= found.high
    assert (found.value > 1) == (name in text.UNBOUNDED)


def test_the_light_side_stays_light() -> None:
    """A rule measures repetition without scipy, and files are read without torch."""
    code = (
        "import sys, tiebreak.metrics.text, tiebreak.exchange.formats, tiebreak.exchange.mt_bench\n"
        "heavy = {'torch', 'transformers', 'scipy', 'sacrebleu', 'rapidfuzz', 'lxml'}\n"
        "print(heavy & {*sys.modules})\n"
        "import tiebreak.metrics.behaviour\n"
        "print({'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()\nset()", "")
