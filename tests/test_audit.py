"""The audit: a clean set is left in peace, and each of some fifty defects, planted alone in it, is found alone."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import make_tokenizer
from scripted import LLM, compared, completion, llm, put, start
from tiebreak.files import read_json, write_jsonl
from tiebreak.metrics import audit as core
from tiebreak.metrics.audit import Bad, Pair, Sample
from tiebreak.metrics.findings import Finding, excerpt
from tiebreak.metrics.power import prompts_to_show
from tiebreak.metrics.rules import RULES
from tiebreak.records import InputError, Message, PreferencePair, Prompt
from tiebreak.reporting.view import AuditFile, Seen, Token, as_html, as_text
from tiebreak.run import Run
from tiebreak.stages.audit import audit, audit_file, audit_run, exit_code, lines, view_file, view_run
from tiebreak.stages.tokens import token_findings, view

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}")

WORDS = (  # noqa: SIM905  a list of literals would fill a screen
    "river stone market lantern bridge winter copper garden engine violin harbour pepper carpet mirror saddle button candle "
    "ladder window pocket basket hammer feather blanket kettle anchor marble ribbon tunnel meadow cellar barrel compass needle"
).split()
LINKS = "the of and to in a that it for with on by from over under near behind".split()  # noqa: SIM905
Row = dict[str, Any]


def sentence(chance: random.Random, most: int = 24) -> str:
    """Some English of no meaning; no two are alike."""
    words = [chance.choice(WORDS if at % 2 else LINKS) for at in range(chance.randint(12, most))]
    return " ".join(words).capitalize() + "."


def clean(n: int = 400) -> list[Row]:
    """Pairs in which nothing tells chosen from rejected."""
    chance = random.Random(1)
    return [{side: sentence(chance) for side in ("prompt", "chosen", "rejected")} for _ in range(n)]


def above_notes(findings: list[Finding]) -> dict[str, Finding]:
    return {one.code: one for one in findings if one.severity != "note"}


def by_code(findings: list[Finding]) -> dict[str, Finding]:
    assert len({one.code for one in findings}) == len(findings)
    return {one.code: one for one in findings}


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., list[Finding]]:
    def write(rows: list[Row], **more: Any) -> list[Finding]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return audit_file(path, **more)

    return write


# --- planting ------------------------------------------------------------------------------------------------------


def changed(rows: list[Row], many: int, change: Callable[[Row, int], Row]) -> list[Row]:
    """Change some rows, spread over all."""
    step = len(rows) // many
    return [{**row, **change(row, at)} if at % step == 0 and at < many * step else row for at, row in enumerate(rows)]


def everywhere(text: str, side: str = "chosen", many: int = 5) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: changed(rows, many, lambda row, at: {side: f"{row[side]} {text} {at}"})


def instead(many: int, **cells: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: changed(rows, many, lambda row, at: cells)


def split(rows: list[Row]) -> list[Row]:
    """Every other pair is held out."""
    return [{**row, "split": ("train", "test")[at % 2]} for at, row in enumerate(rows)]


def leaking(change: Callable[[str], str]) -> Callable[[list[Row]], list[Row]]:
    """Ask six test prompts, changed a little, in training too."""

    def plant(rows: list[Row]) -> list[Row]:
        rows = split(clean(800))
        for at in range(1, 12, 2):
            rows[at] = {**rows[at], "prompt": change(rows[at - 1]["prompt"])}
        return rows

    return plant


def answered(rows: list[Row], *order: str) -> list[Row]:
    """Give the first prompts three answers each, compared as said: AB is A before B."""
    chance = random.Random(3)
    more = []
    for row in rows[:10]:
        answers = {name: sentence(chance) for name in "ABC"}
        more += [{"prompt": row["prompt"], "chosen": answers[two[0]], "rejected": answers[two[1]]} for two in order]
    return rows + more


def longer(row: Row, at: int) -> Row:
    """Choose the longer answer in four of five."""
    sides = ("chosen", "rejected") if at % 5 == 0 else ("rejected", "chosen")
    short, long = sorted((row["chosen"], row["rejected"]), key=len)
    return dict(zip(sides, (short, long + " Ok"), strict=True))


FRENCH = "le la les des une dans pour avec sur mais nous vous ils est qui que ce cette comme tout même leur".split()  # noqa: SIM905
GERMAN = "der die und den von mit sich auf für ist nicht ein eine als auch werden aus hat dass nach wird bei".split()  # noqa: SIM905


def foreign(words: list[str], seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice((words, words, WORDS)[chance.randrange(3)]) for _ in range(40))


def near(rows: list[Row]) -> list[Row]:
    """Ask the first prompts once more with a word added; the answers are others."""
    return rows + [{**other, "prompt": row["prompt"] + " Ok"} for row, other in zip(rows[:8], clean(900)[-8:], strict=True)]


WORD_OF = {"chosen": " Certainly", "rejected": " Obviously"}
SCORES = ({"score_chosen": 2, "score_rejected": 1}, {"score_chosen": 8, "score_rejected": 2})


def abroad(row: Row, at: int) -> Row:
    return {"prompt": foreign(FRENCH, at), "chosen": sentence(random.Random(at), 60) + sentence(random.Random(-at), 60)}


PLANTS: dict[str, tuple[int, Callable[[list[Row]], list[Row]]]] = {
    "duplicate-row": (5, lambda rows: rows + rows[:5]),
    "near-prompt": (8, near),
    "same-answer": (6, lambda rows: changed(rows, 6, lambda row, at: {"rejected": row["chosen"]})),
    "nearly-same-answer": (4, lambda rows: changed(rows, 4, lambda row, at: {"rejected": f" {row['chosen'].upper()}\n"})),
    "empty-prompt": (1, instead(1, prompt="")),
    "empty-chosen": (1, instead(1, chosen="")),
    "empty-rejected": (1, instead(1, rejected="")),
    "blank": (3, instead(3, chosen="\u200b \n")),
    "not-text": (3, lambda rows: changed(rows, 3, lambda row, at: {"chosen": (None, 3.5, True)[at % 3]})),
    "unreadable": (2, instead(2, chosen=[{"role": "narrator", "content": "Once"}])),
    "language-switch": (12, lambda rows: changed(rows, 12, abroad)),
    "language-sides": (
        12, lambda rows: changed(rows, 12, lambda row, at: {"chosen": foreign(GERMAN, at), "rejected": foreign(FRENCH, at)})
    ),
    "leak": (6, leaking(str)),
    "leak-near": (6, leaking(lambda prompt: prompt.upper() + "!")),
    "contradiction": (20, lambda rows: answered(rows, "AB", "BA")),
    "cycle": (30, lambda rows: answered(rows, "AB", "BC", "CA")),
    "length-bias": (320, lambda rows: changed(rows, 400, longer)),
    "words-bias": (400, lambda rows: [{side: text + WORD_OF.get(side, "") for side, text in row.items()} for row in rows]),
    "length-extreme": (10, lambda rows: changed(rows, 10, lambda row, at: {"chosen": row["chosen"] * 40})),
    "control": (5, everywhere("\x07")),
    "line-separator": (5, everywhere("\u2028", "prompt")),
    "mojibake": (5, everywhere("donâ€™t", "rejected")),
    "markup": (5, everywhere("this &amp; that")),
    "special-token": (5, everywhere("<|im_end|>", "prompt")),
    "turn-inside": (5, everywhere("\nHuman: and now?")),
    "boilerplate": (25, everywhere("As an AI language model I cannot say.", many=25)),
    "secret": (5, everywhere("sk-" + "a1B2" * 6, "prompt")),
    "personal": (5, everywhere("mail ann.lee@post.org", "prompt")),
    "answer-in-prompt": (25, lambda rows: changed(rows, 25, lambda row, at: {"prompt": f"{row['prompt']} {row['chosen']}"})),
    "same-chosen": (25, instead(25, chosen="That is a very good question to ask.")),
    "same-rejected": (25, instead(25, rejected="That is a very good question to ask.")),
    "both-poor": (50, lambda rows: [{**row, **SCORES[at >= 50], "id": at} for at, row in enumerate(rows)]),
    "label-constant": (400, lambda rows: [{**row, "first_preferred": 1} for row in rows]),
    "few-pairs": (11, lambda rows: rows[:11]),
    "few-held-out": (8, lambda rows: [{**row, "split": "test" if at < 8 else "train"} for at, row in enumerate(rows)]),
}  # fmt: skip
"""Code, how often it is found, and how it is planted."""


def test_the_clean_set_is_left_in_peace(audited: Any) -> None:
    assert audited(clean()) == []


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_defect_is_found_and_nothing_else(code: str, audited: Any) -> None:
    count, plant = PLANTS[code]
    found = audited(plant(clean()))
    assert set(above_notes(found)) == {code}
    one = above_notes(found)[code]
    assert one.count == count
    assert one.severity == RULES[code].severity
    assert 0 < one.count <= one.of
    assert len(one.examples) <= 3
    for text in (one.sentence, one.what_to_do):
        assert "{" not in text
        assert text.endswith(".")
        assert "\n" not in text


@pytest.mark.parametrize(
    ("code", "count", "plant"),
    [
        ("repeated-prompt", 10, lambda rows: answered(rows, "AB")),
        ("language-mix", 40, lambda rows: changed(rows, 40, lambda row, at: {side: foreign(GERMAN, at) for side in row})),
        ("margins-equal", 400, lambda rows: [{**row, "margin": 0.5} for row in rows]),
    ],
)
def test_what_is_good_to_know_is_a_note(code: str, count: int, plant: Any, audited: Any) -> None:
    rows = [{**row, **{side: f"{text} {sentence(random.Random(text), 40)}" for side, text in row.items()}} for row in clean()]
    found = by_code(audited(plant(rows)))
    assert found[code].severity == "note"
    assert found[code].count == count


def test_defects_do_not_hide_one_another(audited: Any) -> None:
    """What spoils single rows, all in one set."""
    rows = clean()
    for code in ROW_BY_ROW:
        rows += [row for row, before in zip(PLANTS[code][1](clean()), clean(), strict=True) if row != before]
    found = by_code(audited(rows))
    expected = {code: PLANTS[code][0] for code in ROW_BY_ROW}
    expected["control"] += PLANTS["blank"][0]  # a zero-width space is both
    assert {code: found[code].count for code in ROW_BY_ROW} == expected


ROW_BY_ROW = (
    *("same-answer", "nearly-same-answer", "empty-prompt", "empty-chosen", "empty-rejected", "blank", "not-text", "unreadable"),
    *("control", "line-separator", "mojibake", "markup", "special-token", "turn-inside", "boilerplate", "secret", "personal"),
)


# --- what is said --------------------------------------------------------------------------------------------------


def test_examples_say_where(audited: Any) -> None:
    rows = clean()
    rows[6]["rejected"] = rows[6]["chosen"]
    rows.append(rows[3])
    found = by_code(audited(rows))
    assert [(one.where, one.text) for one in found["same-answer"].examples] == [("line 7", excerpt(rows[6]["chosen"]))]
    assert [one.where for one in found["duplicate-row"].examples] == ["line 401, like line 4"]


def test_secrets_are_never_shown(audited: Any) -> None:
    """Not by their own findings, and not in the excerpt of another; nor anything that steers a terminal."""
    key, mail = "sk-" + "Z9y8" * 8, "ann.lee@post.org"
    rows = [{side: f"{text} \x1b[31m {key} {mail} &amp;" for side, text in row.items()} for row in clean(60)]
    rows += [{**row, "rejected": row["chosen"]} for row in rows[:5]]
    found = audited(rows)
    told = "".join(lines(found)) + "".join(one.model_dump_json() for one in found)
    assert {"secret", "personal", "same-answer", "markup", "control", "duplicate-row"} >= {"secret", "personal"}
    assert {"secret", "personal", "same-answer", "markup", "control"} <= {one.code for one in found}
    assert "Z9y8" not in told
    assert "post.org" not in told
    assert "\x1b" not in told
    assert by_code(found)["secret"].examples[0].text == ""


def test_an_excerpt_is_short_and_of_one_line() -> None:
    text = "start " * 50 + "HERE\u202e\n" + "end " * 200
    shown = excerpt(text, text.index("HERE"))
    assert len(shown) < 130
    assert shown.startswith("…")
    assert "HERE\\u202e↵" in shown
    assert shown.endswith("…")
    assert excerpt("sk-" + "A1b2" * 9)[:5] == "•••••"


def test_findings_come_in_order_of_weight_and_are_stable(audited: Any) -> None:
    rows = PLANTS["empty-chosen"][1](PLANTS["markup"][1](PLANTS["leak"][1](clean())))
    found = audited(rows)
    assert [one.severity for one in found] == sorted((one.severity for one in found), key=("error", "warning", "note").index)
    assert found == audited(rows)


@pytest.mark.parametrize(
    ("severities", "plain", "strict"), [([], 0, 0), (["note"], 0, 0), (["warning"], 0, 1), (["error"], 1, 1)]
)
def test_exit_code(severities: list[Any], plain: int, strict: int) -> None:
    found = [Finding(code="x", severity=one, count=1, of=1, sentence="S.", what_to_do="D.") for one in severities]
    assert exit_code(found, strict=False) == plain
    assert exit_code(found, strict=True) == strict


def test_rates_below_the_least_are_notes(audited: Any) -> None:
    assert by_code(audited(everywhere("this &amp; that", many=2)(clean())))["markup"].severity == "note"


def test_every_rule_is_planted_somewhere() -> None:
    """A code that no test plants is one that no test finds."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in RULES if f'"{code}"' not in text] == []


# --- power ---------------------------------------------------------------------------------------------------------


def test_eleven_pairs_are_told_what_would_show(audited: Any) -> None:
    (one,) = audited(clean(11))
    assert one.severity == "warning"
    assert one.sentence.startswith("11 pairs of 11 prompts cannot show a win rate below 0.93")
    assert f"{prompts_to_show(0.1)} prompts to see a win rate of 0.60" in one.what_to_do
    assert f"{prompts_to_show(0.05)} to see 0.55" in one.what_to_do


def test_what_is_scarcely_enough_is_a_note(audited: Any) -> None:
    """And where it is known how many prompts are held out, those are spoken of."""
    found = audited(clean(150))
    assert [(one.code, one.severity) for one in found] == [("few-pairs", "note")]
    half = by_code(audited(split(clean(150))))
    assert half.keys() == {"few-held-out"}
    assert half["few-held-out"].count == 75


# --- a million pairs -----------------------------------------------------------------------------------------------


def pairs_of(rows: list[Row]) -> list[Pair]:
    asked = [(Message(role="user", content=row["prompt"]),) for row in rows]
    return [
        Pair(f"line {at}", prompt, row["chosen"], row["rejected"])
        for at, (row, prompt) in enumerate(zip(rows, asked, strict=True))
    ]


def test_a_sample_keeps_whole_prompts_in_any_order() -> None:
    pairs = [pair for pair in pairs_of(clean(300)) for _ in range(3)]
    samples = [Sample(100), Sample(100)]
    for sample, some in zip(samples, (pairs, pairs[::-1]), strict=True):
        for pair in some:
            sample.add(pair.key, pair)
    one, other = (sorted(pair.where for pair in sample.pairs) for sample in samples)
    assert one == other
    assert 50 < len(one) <= 100
    assert all(one.count(where) == 3 for where in one)


def test_a_sample_is_bounded_by_characters_and_survives_a_single_prompt() -> None:
    small, single = Sample(10**6, characters=10_000), Sample(10)
    for pair in pairs_of(clean(300)):
        small.add(pair.key, pair)
        single.add(7, pair)
    assert 10 < len(small.pairs) < 60
    assert 10 <= len(single.pairs) <= 11


def test_what_is_common_is_found_beyond_the_sample(monkeypatch: pytest.MonkeyPatch, audited: Any) -> None:
    """Duplicates and single defects are looked for in all pairs, whatever the sample holds."""
    monkeypatch.setattr(core, "Sample", lambda: Sample(50))
    rows = PLANTS["contradiction"][1](PLANTS["duplicate-row"][1](PLANTS["control"][1](clean())))
    found = by_code(audited(rows))
    assert {code: found[code].count for code in ("duplicate-row", "contradiction", "control")} == {
        "duplicate-row": 5, "contradiction": 20, "control": 6,
    }  # fmt: skip


def test_near_duplicates_leak_across_the_split_only() -> None:
    """Of a crowd on both sides every test pair leaks, of crowds on one side none; equal prompts are no near ones."""
    chance = random.Random(7)
    rows = [{**row, "prompt": f"{chance.getrandbits(400):x}"} for row in clean(120)]
    pairs = [pair._replace(test=at % 2 == 0) for at, pair in enumerate(pairs_of(rows))]

    def crowd(like: Pair, n: int, test: Callable[[int], bool]) -> list[Pair]:
        asked = [f"{like.asked} {chance.choice(WORDS)[:4]}{at}" for at in range(n)]
        more = pairs_of([{"prompt": text, "chosen": sentence(chance), "rejected": sentence(chance)} for text in asked])
        return [pair._replace(test=test(at)) for at, pair in enumerate(more)]

    within = pairs + crowd(pairs[0], 15, lambda at: True) + crowd(pairs[1], 15, lambda at: False)
    found = by_code(core.audit(lambda: within).findings)
    assert found["near-prompt"].count == 30
    assert "leak-near" not in found
    across = pairs + crowd(pairs[0], 20, lambda at: at % 2 == 0)
    assert by_code(core.audit(lambda: across).findings)["leak-near"].count == 1 + 10
    equal = [*pairs, *(pair._replace(test=not pair.test, chosen=pair.rejected, rejected="No.") for pair in pairs[:10])]
    assert not {"near-prompt", "leak-near"} & by_code(core.audit(lambda: equal).findings).keys()


def test_too_many_prompts_are_not_compared_and_that_is_said() -> None:
    pairs = pairs_of(near(clean(60)))
    assert "near-prompt" in {one.code for one in core.audit(lambda: pairs).findings}
    found = by_code(core.audit(lambda: pairs, near=50).findings)
    assert "near-prompt" not in found
    assert found["near-not-searched"].severity == "note"
    assert not {"near-not-searched", "near-prompt"} & {one.code for one in core.audit(lambda: pairs, near=0).findings}


def test_nothing_at_all() -> None:
    for rows in ([], [Bad("line 1", "unreadable", "no object")]):
        found = by_code(core.audit(lambda rows=rows: rows).findings)
        assert found["no-pairs"].severity == "error"
        assert found.keys() == {"no-pairs", *(["unreadable"] if rows else [])}


# --- tokens --------------------------------------------------------------------------------------------------------

TURNS = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
READY = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def tokenized(rows: list[Row], tokenizer: Any = None, max_length: int | None = None, **more: Any) -> dict[str, Finding]:
    return by_code(token_findings(pairs_of(rows), tokenizer or make_tokenizer(TURNS + READY), max_length, **more))


def templated(template: str) -> Any:
    return make_tokenizer(template)


def merging() -> Any:
    """A tokenizer with one merge: full stop and capital letter, across the border of prompt and answer."""
    from tokenizers import Tokenizer

    tokenizer = make_tokenizer(None)
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    new = "ĊĊ" + "Z"
    model["model"]["merges"] = [["Ċ", "Ċ"], ["ĊĊ", "Z"]]
    model["model"]["vocab"] |= {"ĊĊ": len(tokenizer), new: len(tokenizer) + 1}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(model))
    return tokenizer


def test_clean_tokens() -> None:
    assert tokenized(clean(20)) == {}


def test_what_does_not_fit_is_counted() -> None:
    rows = changed(clean(20), 3, lambda row, at: {"prompt": "x" * 400, "chosen": "y", "rejected": "z"})
    rows[7] = {**rows[7], "chosen": "y" * 500}
    found = tokenized(rows, max_length=330)
    assert {code: one.count for code, one in found.items()} == {"prompt-cut": 3, "too-long": 1}
    assert found["prompt-cut"].examples[0].where == "line 0"
    assert "(the longest: 411 tokens)" in found["prompt-cut"].sentence or "tokens)" in found["prompt-cut"].sentence
    assert "max_length 330" in found["too-long"].sentence
    assert tokenized(rows) == {}


def test_the_longest_is_what_would_be_enough() -> None:
    """With as many tokens as a finding names, nothing is cut; with one less, that pair is."""
    rows = clean(20)
    needed = int(tokenized(rows, max_length=150)["prompt-cut"].sentence.split("the longest: ")[1].split()[0].replace(",", ""))
    assert tokenized(rows, max_length=needed) == {}
    assert tokenized(rows, max_length=needed - 1)["prompt-cut"].count == 1


def test_an_end_within_an_answer() -> None:
    for text in ("Well.<|end|> More.", "Twice.<|end|><|end|>"):
        rows = changed(clean(20), 2, lambda row, at, text=text: {"rejected": text})
        assert tokenized(rows)["eos-inside"].count == 2
    assert tokenized(changed(clean(20), 2, lambda row, at: {"rejected": "Once.<|end|>"})) == {}


def test_special_tokens_in_the_texts() -> None:
    """Also those that only this tokenizer has."""
    rows = changed(clean(20), 3, lambda row, at: ({"prompt": "Say <|end|> now"}, {"chosen": "<pad> it"}, {})[at // 6])
    assert {code: one.count for code, one in tokenized(rows).items()} == {"special-read": 2}


def test_two_beginnings() -> None:
    found = tokenized(clean(20), templated("<bos><bos>" + TURNS + READY))
    assert found["double-bos"].count == 20
    assert "<bos>" in found["double-bos"].what_to_do
    assert tokenized(clean(20), templated("<bos>" + TURNS + READY)) == {}


def test_no_end_at_all() -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    assert tokenized(clean(20), tokenizer)["no-eos"].severity == "error"


def test_a_border_that_would_merge() -> None:
    tokenizer = merging()
    found = tokenized(changed(clean(20), 4, lambda row, at: {"chosen": "Zebra."}), tokenizer)
    assert found["merged"].count == 4
    assert found["merged"].severity == "note"
    assert tokenized(
        changed(clean(20), 4, lambda row, at: {"chosen": "Zebra.", "prompt": "Which?\n\n"}), tokenizer, encoder_decoder=True
    ).keys() == {"no-template"}


def test_a_missing_template_is_grave_for_chats_only() -> None:
    rows = clean(20)
    assert tokenized(rows, make_tokenizer(None))["no-template"].severity == "note"
    chat = (Message(role="user", content="a"), Message(role="assistant", content="b"), Message(role="user", content="c"))
    pairs = [pair._replace(prompt=chat) for pair in pairs_of(rows)]
    assert by_code(token_findings(pairs, make_tokenizer(None), None))["no-template"].severity == "warning"


def test_a_template_that_refuses_a_system_message() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    pairs = pairs_of(clean(20))
    told = (Message(role="system", content="Be brief."), *pairs[4].prompt)
    pairs[4] = pairs[4]._replace(prompt=told)
    found = by_code(token_findings(pairs, templated(refusing + TURNS + READY), None))
    assert found.keys() == {"template-refuses"}
    assert found["template-refuses"].count == 1
    assert "System role not supported" in found["template-refuses"].sentence


def test_a_generation_prompt_that_no_chat_begins_with() -> None:
    found = tokenized(clean(20), templated(TURNS + "{% if add_generation_prompt %}<|assistant|>Hm: {% endif %}"))
    assert found.keys() == {"template-prefix"}


def test_a_template_with_todays_date() -> None:
    found = tokenized(clean(20), templated("{{ strftime_now('%d %b %Y') }}" + TURNS + READY))
    assert found.keys() == {"template-date"}
    assert f"{datetime.now():%Y}" not in found["template-date"].sentence


def test_answers_that_differ_in_what_the_tokenizer_does_not_see() -> None:
    """A tokenizer that strips white space, as T5's does."""
    from tokenizers import normalizers

    tokenizer = make_tokenizer(TURNS + READY)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")
    rows = changed(clean(20), 2, lambda row, at: {"chosen": "one\ntwo", "rejected": "one two"})
    rows[1] = {**rows[1], "rejected": rows[1]["chosen"]}  # which the raw texts show already
    found = tokenized(rows, tokenizer)
    assert {code: one.count for code, one in found.items()} == {"same-tokens": 2}


def test_signs_without_a_token() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ. "
    vocabulary = {token: at for at, token in enumerate(["<unk>", "</s>", *letters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    rows = changed(clean(20), 2, lambda row, at: {"chosen": "warm 🙂 day"})
    found = tokenized(rows, tokenizer, encoder_decoder=True)
    assert found["unknown-tokens"].count == 2
    assert found["unknown-tokens"].examples[0].text == "🙂"


# --- a view --------------------------------------------------------------------------------------------------------


def test_the_view_is_what_is_trained_on() -> None:
    pair = pairs_of([{"prompt": "Says <b>who</b>?", "chosen": "Ünlike 🙂\n", "rejected": "No & no"}])[0]
    same = pair._replace(rejected=pair.chosen)
    chosen, rejected = view([same, pair, pair], make_tokenizer(TURNS + READY), 1)
    assert (chosen.side, rejected.side) == ("chosen", "rejected")
    assert "".join(token.text for token in chosen.tokens) == "<|user|>Says <b>who</b>?<|end|><|assistant|>Ünlike 🙂\n<|end|>"
    learned = [token.text for token in chosen.tokens if token.learned]
    assert learned == ["Ü", *"nlike ", "🙂", "\n", "<|end|>"]  # signs of several bytes in one piece
    assert [token.text for token in chosen.tokens if token.special] == ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert chosen.tokens[-1].learned

    text = as_text(chosen)
    assert "↵" in text.plain
    assert {str(span.style).split()[0] for span in text.spans} == {"bold", "green", "bright_black"}
    assert {str(span.style).split()[0] for span in as_text(rejected).spans} == {"bold", "red", "bright_black"}
    assert not text.style


def test_the_view_is_safe_html() -> None:
    from html.parser import HTMLParser

    pair = pairs_of([{"prompt": "<script>alert(1)</script>", "chosen": "a\u202e\"'><img src=x>", "rejected": "b"}])[0]
    page = as_html(view([pair._replace(where="<i>")], make_tokenizer(TURNS + READY), 1)[0])
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert tags == {"p", "div", "span"}
    assert "\u202e" not in page
    assert page.count('class="learned special"') == 1
    whole = Seen(where="w", side="chosen", tokens=(Token(text="<script>", learned=True),))
    assert "<script>" not in as_html(whole)
    assert "&lt;script&gt;" in as_html(whole)


def test_the_view_shows_what_is_left_of_a_cut_prompt() -> None:
    (one, _) = view(pairs_of([{"prompt": "x" * 100, "chosen": "yes", "rejected": "no"}]), make_tokenizer(TURNS + READY), 1, 30)
    assert len(one.tokens) == 30


# --- files ---------------------------------------------------------------------------------------------------------


def test_formats(tmp_path: Path) -> None:
    """What TRL takes: with a prompt or without, texts or chats, in any kind of file."""
    import pandas

    rows = clean(40)
    rows[5]["rejected"] = rows[5]["chosen"]
    asked = [{"role": "user", "content": "Who?"}]
    chats = [
        {
            **row,
            **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
            "prompt": [{"role": "user", "content": row["prompt"]}],
        }
        for row in rows
    ]
    shapes = {
        "texts": rows,
        "chats": chats,
        "whole": [{side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")} for row in chats],
        "implicit": [{side: f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected")} for row in rows],
    }
    del asked
    for name, shape in shapes.items():
        frame = pandas.DataFrame(shape)
        (tmp_path / f"{name}.jsonl").write_text("\ufeff" + "\n".join(json.dumps(row) for row in shape), encoding="utf-8")
        (tmp_path / f"{name}.json").write_text(json.dumps(shape), encoding="utf-8")
        frame.to_parquet(tmp_path / f"{name}.parquet")
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(shape[0]))
            writer.writeheader()
            writer.writerows(shape)  # chats as Python writes them
        for kind in ("jsonl", "json", "parquet", "csv"):
            found = above_notes(audit_file(tmp_path / f"{name}.{kind}"))
            # Of two equal texts nobody can say where their prompt ends.
            assert found.keys() == {"same-answer", *(["empty-prompt"] if name == "implicit" else [])}, (name, kind)
            assert found["same-answer"].count == 1
            where = {"jsonl": "line 6", "json": "entry 6", "parquet": "row 6", "csv": "line 7"}[kind]
            assert found["same-answer"].examples[0].where == where


def test_torn_and_strange_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row) for row in clean(40)]
    strange = [
        '{"prompt": "torn',
        "[1, 2]",
        '{"prompt": "p", "chosen": "c"}',
        '{"prompt": "p", "chosen": NaN, "rejected": "r"}',
        '{"prompt": {"a": 1}, "chosen": "c", "rejected": "r"}',
    ]
    path.write_bytes("\n".join([*good, *strange]).encode() + b'\n{"prompt": "\xff"}\n\n')
    found = by_code(audit_file(path))
    assert (found["unreadable"].count, found["unreadable"].of) == (5, 46)
    assert [example.where for example in found["unreadable"].examples] == ["line 41", "line 42", "line 43"]
    assert found["not-text"].count == 1
    assert found["not-text"].examples[0].text == "chosen holds nothing"


@pytest.mark.parametrize("implicit", [True, False])
def test_half_a_character(tmp_path: Path, tiny: Path, implicit: bool) -> None:
    """A lone surrogate is valid JSON that no tokenizer and no file takes; it is read as the mark of a broken sign."""
    path = tmp_path / "rows.jsonl"
    rows = changed(clean(40), 2, lambda row, at: {"chosen": row["chosen"] + " \ud83d"})
    if implicit:
        rows = [{side: f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = above_notes(audit_file(path, str(tiny)))
    assert {code: one.count for code, one in found.items()} == {"mojibake": 2}
    "".join(lines(found.values())).encode()


def test_two_files(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    rows = clean(60)
    train.write_text("".join(json.dumps(row) + "\n" for row in rows[:50]), encoding="utf-8")
    test.write_text("".join(json.dumps({**row, "chosen": row["chosen"] + "!"}) + "\n" for row in rows[40:]), encoding="utf-8")
    found = by_code(audit_file(train, held_out=test))
    assert (found["leak"].count, found["leak"].of) == (10, 20)
    assert found["leak"].examples[0].where == "test.jsonl, line 1"
    assert found["few-held-out"].count == 20


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.txt", "a\n", "not a file of pairs"),
        ("absent.jsonl", None, "no such file"),
        ("rows.jsonl", '{"prompt": "a", "completion": "b", "label": true}\n', "single answers with a label"),
        ("rows.csv", "Question,Best\nwho,me\n", "prompts.pairs"),
        ("rows.parquet", "PAR", "not valid Parquet"),
    ],
)
def test_what_holds_no_pairs_is_said_in_one_line(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        audit_file(tmp_path / name)


def test_a_view_of_a_file(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    secret = {**clean(1)[0], "prompt": "sk-" + "Z9y8" * 8}
    path.write_text(
        "not JSON\n" + "".join(json.dumps(row) + "\n" for row in [*clean(1), secret, *clean(5)[1:]]), encoding="utf-8"
    )
    seen = view_file(path, str(tiny), 2)
    assert [(one.where, one.side) for one in seen] == [
        ("line 2", "chosen"), ("line 2", "rejected"), ("line 4", "chosen"), ("line 4", "rejected"),
    ]  # fmt: skip
    assert "".join(token.text for token in seen[3].tokens if token.learned) == clean(2)[1]["rejected"] + "<|end|>"


def test_with_a_tokenizer(tiny: Path, audited: Any) -> None:
    rows = changed(clean(40), 2, lambda row, at: {"prompt": row["prompt"] * 20})
    assert above_notes(audited(rows, tokenizer_name=str(tiny))).keys() == {"prompt-cut"}


# --- runs ----------------------------------------------------------------------------------------------------------


def preferred(prompt: Prompt, row: Row, margin: float) -> PreferencePair:
    ids = {f"{side}_id": completion(prompt, row[side]).id for side in ("chosen", "rejected")}
    return PreferencePair(
        prompt=prompt.messages,
        chosen=(Message(role="assistant", content=row["chosen"]),),
        rejected=(Message(role="assistant", content=row["rejected"]),),
        margin=margin,
        flip_probability=0,
        provenance={"prompt_id": prompt.id, **ids},
    )


def made(run: Run, rows: list[Row], test: Sequence[Row] = (), cut: int = 0, margin: float | None = None) -> Run:
    """Write the pairs of a run, and the prompts and completions that they were made from."""
    asked: list[Prompt] = []
    for split, some, path in (("train", rows, run.pairs_jsonl), ("test", test, run.held_out_pairs_jsonl)):
        prompts = [Prompt.of((Message(role="user", content=row["prompt"]),), split) for row in some]
        margins = (margin or (at % 7 + 1) / 7 for at in range(len(some)))
        write_jsonl(path, map(preferred, prompts, some, margins))
        asked += prompts
    put(run, *((prompt, [row["chosen"], row["rejected"]]) for prompt, row in zip(asked, [*rows, *test], strict=True)))
    if cut:
        lines = run.completions_jsonl.read_text().splitlines(keepends=True)
        shorter = [line.replace('"stop"', '"length"') if at % 2 == 0 and at < 2 * cut else line for at, line in enumerate(lines)]
        run.completions_jsonl.write_text("".join(shorter))
    return run


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> Run:
    return start(tmp_path, model={"name_or_path": str(tiny)}, train={"max_length": 2000})


def test_a_clean_run(run: Run) -> None:
    made(run, clean(340)[:300], clean(340)[300:])
    counts = audit(run)
    assert counts == {"pairs": 340, "errors": 0, "warnings": 0, "notes": counts["notes"]}
    kept = AuditFile.model_validate(read_json(run.path / "audit.json"))
    assert kept.pairs == 340
    assert "margins-equal" not in {one.code for one in kept.findings}
    assert list(kept.findings) == audit_run(run)[0]
    assert list(kept.view) == view_run(run)
    assert [seen.where for seen in kept.view] == [f"prompt {prompt.id}" for prompt in run.prompts()[:3] for _ in range(2)]


def test_a_run_that_compares_nothing_needs_no_prompts_for_it(tmp_path: Path, tiny: Path) -> None:
    run = start(tmp_path, model={"name_or_path": str(tiny)})
    run.recipe = run.recipe.model_copy(update={"evaluate": None})
    made(run, clean(53)[:50], clean(53)[50:])
    assert "few-held-out" not in by_code(audit_run(run)[0])


def test_a_run_whose_prompts_are_nearly_the_same_on_both_sides(run: Run) -> None:
    rows = clean(120)
    made(run, rows[:100], [{**row, "prompt": before["prompt"] + " Ok"} for row, before in zip(rows[100:], rows, strict=False)])
    found = by_code(audit_run(run)[0])
    assert (found["leak-near"].count, found["leak-near"].of) == (20, 20)
    assert "leak" not in found


def test_a_run_of_eleven_pairs_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made(run, clean(14)[:11], clean(14)[11:])
    counts = audit(run)
    assert counts["warnings"] == 2
    told = capsys.readouterr().out
    assert "14 pairs of 14 prompts cannot show a win rate below" in told
    assert "on 3 held-out prompts, compared once each, cannot show any effect at all" in told
    assert f"Hold out {prompts_to_show(0.1)} prompts to see a win rate of 0.60" in told


def test_a_run_with_answers_that_were_cut_and_equal_margins(run: Run) -> None:
    found = by_code(audit_run(made(run, clean(60), cut=6, margin=1.0))[0])
    assert found["answer-cut"].count == 6
    assert found["margins-equal"].count == 60
    assert found["answer-cut"].examples[0].where.startswith("prompt ")


def test_a_run_with_a_judge_that_cannot_be_trusted(tmp_path: Path, tiny: Path) -> None:
    """It names what comes first, contradicts itself after a swap, and fails its canaries."""
    run = start(tmp_path, model={"name_or_path": str(tiny)}, judges=[llm("llm", canaries=3), llm("other")], pair={"judge": "llm"})
    made(run, clean(60))
    prompts = run.prompts()
    verdicts = [
        compared(prompt, *two, "first")
        for prompt, row in zip(prompts, clean(60), strict=True)
        for two in ((row["chosen"], row["rejected"]), (row["rejected"], row["chosen"]))
    ]
    write_jsonl(run.judgments("llm"), verdicts)
    write_jsonl(run.judgments("other"), [])
    write_jsonl(run.canaries("llm"), [])
    found = by_code(audit_run(run)[0])
    assert (found["judge-flips"].count, found["judge-flips"].of) == (60, 60)
    assert (found["judge-position"].count, found["judge-position"].of) == (120, 120)
    assert found["canaries"].severity == "error"
    assert "llm" in found["canaries"].sentence


def test_a_run_whose_answers_are_poor(tmp_path: Path, tiny: Path) -> None:
    """By the judge that scores them, on its own scale: the best of these has 4 of 10."""
    from scripted import rated

    run = start(tmp_path, model={"name_or_path": str(tiny)}, judges=[{**LLM, "ask": "pointwise"}])
    made(run, clean(60))
    ratings = [
        rated(prompt, row[side], score + (at >= 20), "llm")
        for at, (prompt, row) in enumerate(zip(run.prompts(), clean(60), strict=True))
        for side, score in (("chosen", 4), ("rejected", 2))
    ]
    write_jsonl(run.judgments("llm"), ratings)
    found = by_code(audit_run(run)[0])
    assert (found["both-poor"].count, found["both-poor"].of) == (20, 60)
    assert "(1 to 10)" in found["both-poor"].sentence


def test_a_run_without_pairs(run: Run) -> None:
    with pytest.raises(InputError, match="tiebreak pair"):
        audit_run(run)
    made(run, [])
    assert audit_run(run)[0][0].code == "no-pairs"


def recipe(tmp_path: Path, model: Path, **prompts: Any) -> Run:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"model": {"name_or_path": str(model)}, "prompts": prompts}), encoding="utf-8")
    return Run.start(path, tmp_path / "run")


def test_the_source_of_a_recipe_is_audited_before_anything_is_made(tmp_path: Path, tiny: Path) -> None:
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Question", "good", "bad"])
        writer.writerows(
            [row["prompt"], row["chosen"], row["chosen" if at < 4 else "rejected"]] for at, row in enumerate(clean(60))
        )
    run = recipe(tmp_path, tiny, source="rows.csv", column="Question", pairs={"chosen": "good", "rejected": "bad"})
    found, pairs = audit_run(run)
    assert pairs == 60
    assert by_code(found)["same-answer"].count == 4
    assert not run.pairs_jsonl.exists()


# --- real data -----------------------------------------------------------------------------------------------------


@real
def test_polite_and_rude() -> None:
    """Six rows with equal answers, 1,100 rows of 1,075 prompts."""
    found = by_code(audit_file(DATA / "rasbt_preference" / "instruction-data-with-preference.json"))
    assert (found["same-answer"].count, found["same-answer"].of) == (6, 1100)
    assert found["repeated-prompt"].count == 1100 - 1075
    assert "1,075 different prompts" in found["repeated-prompt"].sentence
    assert "words-bias" in found


@real
def test_titles_split_by_row_leak_and_split_by_idea_do_not(tmp_path: Path) -> None:
    with (DATA / "youtube_titles" / "preferences.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    chance = random.Random(0)
    ideas = sorted({row["idea"] for row in rows})
    held = set(chance.sample(ideas, len(ideas) // 10))
    for name, is_test in (("row", lambda row: chance.random() < 0.1), ("idea", lambda row: row["idea"] in held)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({**row, "split": ("train", "test")[is_test(row)]}) + "\n" for row in rows), encoding="utf-8"
        )
    leaking, clean = (by_code(audit_file(tmp_path / f"{name}.jsonl")) for name in ("row", "idea"))
    assert leaking["leak"].severity == "error"
    assert leaking["leak"].count == leaking["leak"].of > 80
    assert "leak" not in clean


@real
def test_other_real_data(tmp_path: Path, tiny: Path) -> None:
    found = by_code(audit_file(DATA / "llamafactory_demo" / "dpo_en_demo.json", str(tiny)))
    assert found["duplicate-row"].count == 5
    assert "prompt-cut" in found
    with pytest.raises(InputError, match="single answers with a label"):
        audit_file(DATA / "llamafactory_demo" / "kto_en_demo.json")
    columns = {"chosen": "Best Answer", "rejected": "Best Incorrect Answer"}
    source = str(DATA / "truthfulqa" / "TruthfulQA.csv")
    found = by_code(audit_run(recipe(tmp_path, tiny, source=source, column="Question", pairs=columns))[0])
    assert not {"error"} & {one.severity for one in found.values()}
