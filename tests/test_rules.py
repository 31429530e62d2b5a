"""The rules judge: each check against its near misses, in more than one script."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tiebreak.judges import Answer
from tiebreak.judges.rules import Rules, content_words, fault, label, repetition
from tiebreak.recipe import AnyCheck, RulesJudge
from tiebreak.records import Completion, InputError, Message, Prompt, Rating

IDEA = "Baking histories of an old café"


def prompt(text: str = "Name it.", **meta: object) -> Prompt:
    return Prompt.of((Message(role="system", content="system words"), Message(role="user", content=text)), "train", meta)


def check(kind: str, **fields: object) -> AnyCheck:
    return TypeAdapter(AnyCheck).validate_json(json.dumps({"check": kind, **fields}))


def judge(*checks: dict[str, object]) -> Rules:
    return Rules(RulesJudge.model_validate_json(json.dumps({"type": "rules", "checks": checks})))


def rate(rules: Rules, text: str, asked: Prompt | None = None) -> Rating:
    asked = asked or prompt(idea=IDEA)
    return next(rules.rate([Answer(asked, Completion.of(asked.id, text, sampler="s"))]))


PASSES = [
    ("length", {"min": 3, "max": 5}, "  abc \n"),
    ("length", {"min": 3, "max": 5}, "abcde"),
    ("length", {"max": 2}, "日本"),
    ("length", {"max": 1}, "🎉"),
    ("length", {"min": 2, "max": 2}, "e\u0301"),  # a letter and its combining mark
    ("length", {"min": 2, "max": 2, "unit": "words"}, "well-made\nplan"),
    ("length", {"min": 3, "unit": "words"}, "كيف تخبز الخبز"),
    ("one_line", {}, "\n  one line \r\n"),
    ("one_line", {}, ""),
    ("match", {"pattern": "^[A-Z]"}, "  Title"),
    ("match", {"pattern": r"^\w+$"}, "标题"),
    ("not_match", {"pattern": "^b"}, "a\nb"),  # ^ is the start of the text, not of each line
    ("not_match", {"pattern": '["“”]'}, "it's 'quoted'"),
    ("starts_with", {"texts": ["How", "Why"]}, " Why not"),
    ("ends_with", {"texts": ["!", "?"]}, "Really? \n"),
    ("ends_with", {"texts": ["؟"]}, "لماذا؟"),
    ("prompt_words", {"of": "idea"}, "She bakes"),
    ("prompt_words", {"of": "idea"}, "A HISTORY"),
    ("prompt_words", {"of": "idea"}, "Cafe\u0301 society"),
    ("prompt_words", {"of": "idea", "min": 3}, "cafes, history; baked"),
    ("prompt_words", {}, "Nameless? named"),
    ("repetition", {"max": 0.0}, "one two"),
    ("repetition", {"max": 0.0}, "one two three one two"),
    ("repetition", {"max": 0.5}, "a b c a b c"),
]


@pytest.mark.parametrize(("kind", "fields", "text"), PASSES)
def test_passes(kind: str, fields: dict[str, object], text: str) -> None:
    assert fault(check(kind, **fields), text.strip(), prompt(idea=IDEA)) is None


FAILS = [
    ("length", {"min": 3, "max": 5}, " ab ", "shorter than 3 characters (2)"),
    ("length", {"min": 1}, " \n", "shorter than 1 character (0)"),
    ("length", {"min": 3, "max": 5}, "abcdef", "longer than 5 characters (6)"),
    ("length", {"max": 1, "unit": "words"}, "two words", "longer than 1 word (2)"),
    ("one_line", {}, "a\nb\n\nc", "has 4 lines"),
    ("one_line", {}, "a\u2028b", "has 2 lines"),
    ("one_line", {}, "a\rb", "has 2 lines"),
    ("match", {"pattern": r"\d"}, "none", r"has no /\d/"),
    ("not_match", {"pattern": "(?i)^title:"}, "TITLE: x", "has 'TITLE:'"),
    ("not_match", {"pattern": '["“”]'}, 'a "b"', "has '\"'"),
    ("not_match", {"pattern": r"\s\s"}, "a\u2028\nb", r"has '\u2028\n'"),
    ("not_match", {"pattern": "x*"}, "none", "has /x*/"),
    ("starts_with", {"texts": ["How", "Why"]}, "how", "starts with 'how', not 'How' or 'Why'"),
    ("ends_with", {"texts": ["!"]}, "a" * 50 + ".", f"ends with '…{'a' * 38}.', not '!'"),
    ("prompt_words", {"of": "idea"}, "bassoon hisses of an old cab", "shares no word with idea, needs 1"),
    ("prompt_words", {"of": "idea", "min": 2}, "history history", "shares 1 word with idea, needs 2"),
    ("prompt_words", {}, "system words", "shares no word with the prompt, needs 1"),
    ("repetition", {"max": 0.2}, "A b C a B c a b c", "repeats 57% of its three-word sequences"),
]


@pytest.mark.parametrize(("kind", "fields", "text", "phrase"), FAILS)
def test_fails_with_the_value_measured(kind: str, fields: dict[str, object], text: str, phrase: str) -> None:
    assert fault(check(kind, **fields), text.strip(), prompt(idea=IDEA)) == phrase


PLAIN = [
    "#1 tip for 2024",
    "Top #5 and #6",
    "5 * 3 = 15",
    "5*3*2",
    "2**3 and 4**5",
    "a lone * here",
    "from 5 euros*",
    "*Terms apply",
    "4* hotels and 5* hotels",
    "s*** and f***",
    "**** you ****",
    "*nix and *BSD",
    "(*) and (*)",
    "snake_case and other_snake_case",
    "_private",
    "class_name_ here",
    "^_^ and ^_^",
    "f(*args, **kwargs)",
    "well-made - or not - at all",
    "a\n-5 degrees",
    "1984. A novel",
    "version 1. Done",
    "1.5 litres",
    "2)x",
    "x > y > z",
    ">50 of them",
    ">:(",
    ":-| indeed\n:-|",
    "|x| + |y|",
    "`tis the season, `twas",
    "``old quotes''",
    "see https://example.org/a_b_c",
    "a[0][1] and f[i] (x)",
    "[sic] (and so on)",
    "[Narrator]: hello",
    "3 < 4 and <b>",
    "~5 minutes~ish",
    "مرحبا - أهلا",
    "🎉 Party * 🎉",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_not_markdown(text: str) -> None:
    assert fault(check("no_markdown"), text, prompt()) is None


MARKED = [
    ("# Title", "heading"),
    ("Text\n### Part", "heading"),
    ("Title\n=====", "heading"),
    ("**Title**", "emphasis"),
    ("**Video idea: never closed", "emphasis"),
    ("say **two words** now", "emphasis"),
    ("***all***", "emphasis"),
    ("an *italic* word", "emphasis"),
    ("an _italic one_.", "emphasis"),
    ("__bold__", "emphasis"),
    ("_snake_case_", "emphasis"),
    ("**🎉 Party 🎉**", "emphasis"),
    ("这是**标题**吗", "emphasis"),
    ("**مرحبا**", "emphasis"),
    ("- item", "list"),
    ("a\n  * item", "list"),
    ("+ item", "list"),
    ("1. item", "list"),
    ("a\n12) item", "list"),
    ("[text](https://example.org/A_(b))", "link"),
    ('[text](x "title")', "link"),
    ("![](a.png)", "link"),
    ("x\n[1]: https://example.org", "link"),
    ("<https://example.org>", "link"),
    ("a | b\n--- | ---\n1 | 2", "table"),
    ("|a|\n|:---|", "table"),
    ("```python\nx\n```", "code"),
    ("run `ls -l` now", "code"),
    ("``a``", "code"),
    ("> said so", "quote"),
    ("a\n>> b", "quote"),
]


@pytest.mark.parametrize(("text", "kind"), MARKED)
def test_markdown_is_named(text: str, kind: str) -> None:
    phrase = fault(check("no_markdown"), text, prompt())
    assert phrase is not None
    assert phrase.startswith(f"has Markdown ({kind} '")
    assert "\n" not in phrase


@pytest.mark.parametrize("noise", ["*", "_", "`", "[", "](", "> ", "|", "- -", "#", "**a", "~~~ ", "[a](b", "|-"])
def test_markdown_is_looked_for_in_bounded_time(noise: str) -> None:
    import time

    begun = time.perf_counter()
    fault(check("no_markdown"), noise * 2000, prompt())
    assert time.perf_counter() - begun < 2


MEET = [
    ("baking", "bakes"),
    ("histories", "history"),
    ("planning", "plans"),
    ("economics", "economy"),
    ("computer", "computing"),
    ("glasses", "glass"),
    ("Straße", "STRASSE"),
    ("naïveté", "naivete"),
    ("история", "истории"),
    ("الطبخ", "الطبخ"),
    ("한국은", "한국이"),
    ("中国历史", "历史课"),
    ("カメラの使い方", "新しいカメラ"),
    ("पहाड़ों", "पहाड़ों"),
    ("in 1752", "1752!"),
    ("ｆｕｌｌｗｉｄｔｈ", "fullwidth"),
    ("𝐁𝐨𝐥𝐝 move", "bold"),
]


@pytest.mark.parametrize(("one", "other"), MEET)
def test_words_meet(one: str, other: str) -> None:
    for wanted, text in ((one, other), (other, one)):
        assert fault(check("prompt_words"), text, prompt(wanted)) is None


APART = [
    ("play", "plan"),
    ("plan", "planet"),
    ("money", "month"),
    ("interest", "internet"),
    ("photograph", "photosynthesis"),
    ("contract", "control"),
    ("how to do it", "how to do it"),  # stop words and two letters
    ("with their things", "with their things"),  # stop words
    ("中国", "美国"),
    ("ひらがな", "ひらがな"),
    ("🎉🎉🎉🎉", "🎉🎉🎉🎉"),
    ("____", "____"),
    ("\u0301\u0301\u0301\u0301", "\u0301\u0301\u0301\u0301"),
    ("", "anything"),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_words_stay_apart(one: str, other: str) -> None:
    for wanted, text in ((one, other), (other, one)):
        assert fault(check("prompt_words"), text, prompt(wanted)) is not None


def test_content_words_as_the_docstring_says() -> None:
    assert content_words("baking Bakes, histories with café!") == {"bak", "histor", "caf"}
    assert content_words("egg Eggs, and you: a tea") == {"eg", "tea"}
    assert content_words("历史课") == {"历史", "史课"}


def test_a_field_that_the_prompts_lack_is_the_users_mistake() -> None:
    rules = judge({"check": "prompt_words", "of": "topic"})
    with pytest.raises(InputError, match=r"^check prompt_words: of names 'topic'.*there is category, idea$"):
        rate(rules, "x", prompt(idea="a", category="b"))


@pytest.mark.parametrize(
    ("value", "text", "passes"), [(1752, "in 1752", True), (None, "None none", False), (["bread"], "bread", True)]
)
def test_a_field_need_not_be_text(value: object, text: str, passes: bool) -> None:
    assert (fault(check("prompt_words", of="idea"), text, prompt(idea=value)) is None) is passes


@pytest.mark.parametrize(
    ("text", "share"), [("", 0), ("a b", 0), ("a b c", 0), ("a a a a", 0.5), ("x y z X Y Z", 0.25), ("日本語日本語日本語", 0)]
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


LABELS = [
    ("length", {"min": 30, "max": 75}, "30–75 characters"),
    ("length", {"max": 75}, "at most 75 characters"),
    ("length", {"min": 1, "unit": "words"}, "at least 1 word"),
    ("length", {"min": 5, "max": 5, "unit": "words"}, "exactly 5 words"),
    ("one_line", {}, "one line"),
    ("match", {"pattern": "[a-z]"}, "with /[a-z]/"),
    ("not_match", {"pattern": "a\nb" + "c" * 50}, f"without /a b{'c' * 36}…/"),
    ("starts_with", {"texts": ["A", "B"]}, "starts with 'A' or 'B'"),
    ("ends_with", {"texts": ["?"]}, "ends with '?'"),
    ("no_markdown", {}, "no Markdown"),
    ("prompt_words", {"of": "idea"}, "names idea"),
    ("prompt_words", {"min": 2}, "2 words of the prompt"),
    ("repetition", {"max": 0.25}, "at most 25 % repeated"),
]


@pytest.mark.parametrize(("kind", "fields", "name"), LABELS)
def test_labels(kind: str, fields: dict[str, object], name: str) -> None:
    assert label(check(kind, **fields)) == name


def test_equal_checks_have_labels_of_their_own() -> None:
    rules = judge({"check": "one_line"}, {"check": "no_markdown"}, {"check": "one_line"}, {"check": "one_line"})
    assert rules.labels == ["one line", "no Markdown", "one line (2)", "one line (3)"]


def test_a_rating() -> None:
    rules = judge(
        {"check": "length", "min": 3, "max": 10, "weight": 2},
        {"check": "one_line"},
        {"check": "not_match", "pattern": '"'},
    )
    asked = prompt()
    texts = ["fine", 'a "quoted" thing', "a\nb"]
    answers = [Answer(asked, Completion.of(asked.id, text, sampler="s")) for text in texts]
    fine, quoted, lines = rules.rate(iter(answers))

    assert (fine.score, fine.reason) == (1.0, "passes all 3 checks")
    assert quoted.score == 0.25
    assert quoted.reason == "fails: longer than 10 characters (16); has '\"'"
    assert list(json.loads(quoted.raw).items()) == [("3–10 characters", False), ("one line", True), ('without /"/', False)]
    assert (lines.score, lines.reason) == (0.75, "fails: has 2 lines")
    assert [rating.completion_id for rating in (fine, quoted, lines)] == [answer.completion.id for answer in answers]
    assert {(rating.prompt_id, rating.judge) for rating in (fine, quoted, lines)} == {(asked.id, "rules")}


def test_one_check() -> None:
    assert rate(judge({"check": "one_line"}), "x").reason == "passes the only check"


def test_a_failed_check_costs_however_light() -> None:
    rules = judge({"check": "one_line"}, {"check": "length", "min": 9, "weight": 1e-30})
    assert rate(rules, "short").score == math.nextafter(1, 0)


# --- properties ----------------------------------------------------------------------------------------------------

CHECKS: list[dict[str, object]] = [
    {"check": "length", "min": 3, "max": 20},
    {"check": "length", "max": 3, "unit": "words"},
    {"check": "one_line"},
    {"check": "match", "pattern": "[a-zé日]"},
    {"check": "not_match", "pattern": '"'},
    {"check": "starts_with", "texts": ["a", "日"]},
    {"check": "ends_with", "texts": ["!", "."]},
    {"check": "no_markdown"},
    {"check": "prompt_words"},
    {"check": "repetition", "max": 0.1},
]
weights = st.lists(st.floats(1e-3, 1e3), min_size=len(CHECKS), max_size=len(CHECKS))
texts = st.text() | st.lists(st.sampled_from(["abc", "baking", " ", "\n", "**", "日本", "🎉", "!", '"', "مرحبا", "e\u0301"])).map(
    "".join
)


def weighted(values: list[float]) -> Rules:
    return judge(*({**one, "weight": weight} for one, weight in zip(CHECKS, values, strict=True)))


@given(texts, weights)
def test_the_score_is_a_share(text: str, values: list[float]) -> None:
    rating = rate(weighted(values), text)
    raw = json.loads(rating.raw)
    assert len(raw) == len(CHECKS)
    assert rating.score is not None
    assert 0 <= rating.score <= 1
    assert (rating.score == 1) == all(raw.values())
    assert rating.reason.startswith("passes all 10 checks" if all(raw.values()) else "fails: ")
    assert rating.reason.isprintable()
    share = sum(weight for weight, passed in zip(values, raw.values(), strict=True) if passed) / sum(values)
    assert rating.score == pytest.approx(share)


@given(texts, weights, st.floats(1e-3, 1e3))
def test_only_relative_weights_count(text: str, values: list[float], factor: float) -> None:
    scaled = rate(weighted([weight * factor for weight in values]), text)
    assert scaled.score == pytest.approx(rate(weighted(values), text).score)


@given(st.text(), st.text())
def test_whitespace_around_the_text_counts_for_nothing(text: str, wanted: str) -> None:
    rules, asked = weighted([1.0] * len(CHECKS)), prompt(wanted)
    padded, bare = rate(rules, f" \n\t{text}\u3000\n", asked), rate(rules, text.strip(), asked)
    assert (padded.score, padded.reason, padded.raw) == (bare.score, bare.reason, bare.raw)


@given(st.text(min_size=4))
def test_a_text_names_its_own_words(text: str) -> None:
    if content_words(text):
        assert fault(check("prompt_words", min=len(content_words(text))), text, prompt(text)) is None


def test_a_check_goes_by_the_name_the_recipe_gives_it():
    section = RulesJudge.model_validate_json(
        json.dumps({"type": "rules", "checks": [{"check": "not_match", "pattern": "x", "name": "no x"}, {"check": "one_line"}]})
    )
    assert Rules(section).labels == ["no x", "one line"]
