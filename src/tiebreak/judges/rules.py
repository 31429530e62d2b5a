"""Checks written in the recipe: a score in [0, 1], the reason in words, and no model anywhere."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator

from tiebreak.judges import Answer
from tiebreak.recipe import AnyCheck, Edge, Length, Match, NoMarkdown, OneLine, PromptWords, Repetition, RulesJudge
from tiebreak.records import InputError, Prompt, Rating


class Rules:
    """A rater that gives each answer the weighted share of the checks it passes: 1.0 exactly when it passes all.

    Every check looks at the text without the whitespace around it. `raw` is a JSON object {label: passed} in the
    recipe's order. InputError where a check wants a field that the prompt does not have.
    """

    def __init__(self, section: RulesJudge) -> None:
        self.name = section.name
        self.checks = section.checks
        names = [label(check) for check in self.checks]
        earlier = [names[:at].count(name) for at, name in enumerate(names)]
        self.labels = [f"{name} ({count + 1})" if count else name for name, count in zip(names, earlier, strict=True)]

    def rate(self, answers: Iterable[Answer]) -> Iterator[Rating]:
        """Yield one rating per answer, in order."""
        for prompt, completion in answers:
            faults = [fault(check, completion.text.strip(), prompt) for check in self.checks]
            passed = dict(zip(self.labels, (fault is None for fault in faults), strict=True))
            yield Rating(
                prompt_id=prompt.id,
                completion_id=completion.id,
                judge=self.name,
                score=self._score(faults),
                reason=_reason(faults),
                raw=json.dumps(passed, ensure_ascii=False),
            )

    def _score(self, faults: list[str | None]) -> float:
        if not any(faults):
            return 1.0
        passed = math.fsum(check.weight for check, fault in zip(self.checks, faults, strict=True) if fault is None)
        share = passed / math.fsum(check.weight for check in self.checks)
        return min(share, math.nextafter(1, 0))  # a failed check too light for a float still costs something


def label(check: AnyCheck) -> str:  # noqa: PLR0911  one return a check
    """Return the check's name, or a short one made from what it wants."""
    if check.name is not None:
        return check.name
    match check:
        case Length(min=least, max=most):
            if least == most:
                return f"exactly {_count(least, check.unit)}"
            if most is None:
                return f"at least {_count(least, check.unit)}"
            return f"{least}–{most} {check.unit}" if least else f"at most {_count(most, check.unit)}"
        case OneLine():
            return "one line"
        case Match():
            return f"{'with' if check.check == 'match' else 'without'} /{_short(check.pattern)}/"
        case Edge():
            return f"{'starts' if check.check == 'starts_with' else 'ends'} with {_either(check.texts)}"
        case NoMarkdown():
            return "no Markdown"
        case PromptWords():
            whose = check.of or "the prompt"
            return f"names {whose}" if check.min == 1 else f"{check.min} words of {whose}"
        case Repetition():
            return f"at most {check.max * 100:g} % repeated"


def fault(check: AnyCheck, text: str, prompt: Prompt) -> str | None:  # noqa: PLR0911  one return a check
    """Return why stripped `text` fails, with the value measured; None where it passes."""
    match check:
        case Length(min=least, max=most):
            length = len(text) if check.unit == "characters" else len(text.split())
            if length < least:
                return f"shorter than {_count(least, check.unit)} ({length})"
            return f"longer than {_count(most, check.unit)} ({length})" if most is not None and length > most else None
        case OneLine():
            lines = len(text.splitlines())
            return f"has {lines} lines" if lines > 1 else None
        case Match():
            found = re.search(check.pattern, text)
            if check.check == "match":
                return None if found else f"has no /{_short(check.pattern)}/"
            return f"has {_quoted(found[0])}" if found and found[0] else f"has /{_short(check.pattern)}/" if found else None
        case Edge(check="starts_with"):
            return None if text.startswith(check.texts) else f"starts with {_quoted(text)}, not {_either(check.texts)}"
        case Edge():
            return None if text.endswith(check.texts) else f"ends with {_quoted(text, end=True)}, not {_either(check.texts)}"
        case NoMarkdown():
            marks = ((kind, pattern.search(text)) for kind, pattern in MARKDOWN.items())
            return next((f"has Markdown ({kind} {_quoted(found[0])})" for kind, found in marks if found), None)
        case PromptWords():
            shared = _shared_words(_source(check, prompt), text)
            if shared >= check.min:
                return None
            return f"shares {shared or 'no'} word{'s' * (shared > 1)} with {check.of or 'the prompt'}, needs {check.min}"
        case Repetition():
            repeated = repetition(text)
            return f"repeats {repeated:.0%} of its three-word sequences" if repeated > check.max else None


def repetition(text: str) -> float:
    """Return the share of three-word sequences, casefolded, that repeat an earlier one; 0 for under three words."""
    words = text.casefold().split()
    sequences = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


# --- Markdown ------------------------------------------------------------------------------------------------------

# Marks count where CommonMark would render them and a writer of plain text would not have put them: "5 * 3", "#1",
# "snake_case", "2**3", "^_^" and a bare URL stay plain.
MARKDOWN = {
    "heading": re.compile(r"(?m)^ {0,3}#{1,6}[ \t]+\S|^[^\n]*\S[^\n]*\n {0,3}(?:={3,}|-{3,})[ \t]*$"),
    "emphasis": re.compile(
        r"(?<![A-Za-z0-9*])(\*{1,3})(?=[^\s*^).,;:!?])[^\n]*?[^\s*]\1(?![A-Za-z0-9*])"
        r"|(?<!\w)(_{1,3})(?=[^\s_^).,;:!?])[^\n]*?[^\s_]\2(?!\w)"
        r"|(?m:^)\*\*(?=\w)[^\n]*"  # opened and, as small models do, never closed
    ),
    "list": re.compile(r"(?m)^[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+\S[^\n]*"),
    "link": re.compile(
        r"!?\[[^\[\]\n]*\]\((?:[^\s()]|\([^\s()]*\))+(?:[ \t]+[\"'][^\n]*?[\"'])?\)"
        r"|(?m:^) {0,3}\[[^\[\]\n]+\]:[ \t]*<?\w+://\S+"
        r"|<(?:https?://|mailto:)[^<>\s]+>"
    ),
    "table": re.compile(r"(?m)^(?=[^\n]*---)(?=[^\n]*\|)[ \t|:-]+$"),
    "code": re.compile(r"(?m)^ {0,3}(?:`{3}|~{3})[^\n]*|(?<![\w`])(`{1,2})(?![\s`])[^`\n]*[^\s`]\1(?![\w`])"),
    "quote": re.compile(r"(?m)^ {0,3}>+[ \t]+\S[^\n]*"),
}


# --- words of the prompt -------------------------------------------------------------------------------------------

STOP_WORDS = frozenset(
    """ago all and any are big but can did far few for get got had has her him his how its let lot may new nor not now off old
    one our out own per put say see set she the too two use via was way who why yes yet you
    about above after again against along also always another around back because been before behind being below
    between both cannot come could does doing done down during each else enough even ever every everything from further
    gets give gives goes going have having here herself himself into itself just keep kind know less like made make makes
    making many might more most much must myself need needs never nothing once only onto other others ours ourselves over
    past rather really same shall should show since some something soon still such take takes than that their theirs them
    themselves then there these they thing things this those though through together toward towards under until upon used
    using very want wants well went were what whatever when where whether which while whole whom whose will with within
    without would your yours yourself""".split()  # noqa: SIM905  a list of literals would fill a screen
)
ENDING = re.compile(r"(?<=...)(?:ies|ing|ed|es|s|y|e)$")
UNSPACED = re.compile(r"[\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
HIRAGANA = re.compile(r"[\u3041-\u309f]+")


def content_words(text: str) -> set[str]:
    """Return the stems of the words that carry content.

    A word is a run of at least three letters and digits, casefolded and without accents, and no stop word. Its stem
    drops one English ending and a doubled last letter: baking, bakes → bak; histories → histor. Chinese characters and
    katakana, written without spaces, give every two neighbours as a word; hiragana, which is mostly grammar, gives none.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    bare = "".join(character if unicodedata.category(character)[0] in "LNM" else " " for character in bare)
    neighbours = {run[at : at + 2] for run in UNSPACED.findall(bare) for at in range(len(run) - 1)}
    words = {word for word in HIRAGANA.sub(" ", UNSPACED.sub(" ", bare)).split() if len(word) >= 3}
    return neighbours | {re.sub(r"(.)\1$", r"\1", ENDING.sub("", word)) for word in words - STOP_WORDS}


def _shared_words(wanted: str, text: str) -> int:
    words = content_words(text)
    return sum(any(_meet(one, other) for other in words) for one in content_words(wanted))


def _meet(one: str, other: str) -> bool:
    """Whether two stems are equal or begin alike: in five letters, and in two thirds of the longer one."""
    start = max(5, math.ceil(2 / 3 * max(len(one), len(other))))
    return one[:start] == other[:start]


def _source(check: PromptWords, prompt: Prompt) -> str:
    if check.of is None:
        return prompt.text
    if check.of not in prompt.meta:
        fields = ", ".join(sorted(prompt.meta)) or "none"
        raise InputError(f"check prompt_words: of names {check.of!r}, which is no field of the prompts; there is {fields}")
    value = prompt.meta[check.of]
    return "" if value is None else str(value)


# --- wording -------------------------------------------------------------------------------------------------------

SHORT = 40


def _reason(faults: list[str | None]) -> str:
    failed = [fault for fault in faults if fault is not None]
    if failed:
        return f"fails: {'; '.join(failed)}"
    return f"passes all {len(faults)} checks" if len(faults) > 1 else "passes the only check"


def _short(text: str) -> str:
    """Cut `text` to one line of at most SHORT characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"


def _quoted(text: str, *, end: bool = False) -> str:
    """Quote the start, or the end, of `text`; repr spells line breaks and invisible characters out."""
    if len(text) <= SHORT:
        return repr(text)
    return repr(f"…{text[1 - SHORT :]}" if end else f"{text[: SHORT - 1]}…")


def _either(texts: tuple[str, ...]) -> str:
    return _short(" or ".join(map(repr, texts)))


def _count(number: int, unit: str) -> str:
    return f"{number} {unit.removesuffix('s') if number == 1 else unit}"
