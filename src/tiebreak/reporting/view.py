"""Pairs as training sees them, token by token with the loss mask: for a terminal, and as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Literal

from tiebreak.metrics.findings import Finding, spelled
from tiebreak.records import Record

if TYPE_CHECKING:
    from rich.text import Text


class Token(Record):
    """A piece of text that is one token, or several that only together are text."""

    text: str
    learned: bool
    """Whether training learns it; else it is given."""
    special: bool = False


class Seen(Record):
    """One answer behind its prompt."""

    where: str
    side: Literal["chosen", "rejected"]
    tokens: tuple[Token, ...]


class AuditFile(Record):
    """What `audit.json` holds."""

    pairs: int
    findings: tuple[Finding, ...]
    view: tuple[Seen, ...] = ()


def as_text(seen: Seen) -> Text:
    """Return an answer for a terminal: the prompt grey, what is learned green or red, tokens in turn underlined."""
    from rich.text import Text

    text = Text().append(f"{seen.where}, {seen.side}\n", style="bold")
    colour = "green" if seen.side == "chosen" else "red"
    for at, token in enumerate(seen.tokens):
        marks = " reverse" if token.special else " underline" if at % 2 else ""
        text.append(_visible(token.text), style=(colour if token.learned else "bright_black") + marks)
    return text.append("\n")


CSS = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { color: #6b6b6b; }
.tokens.chosen .learned { color: #00795a; background: #009e731f; }
.tokens.rejected .learned { color: #b34b00; background: #d55e001f; }
.tokens span:nth-child(even) { text-decoration: underline; text-decoration-color: #8888; text-underline-offset: 3px; }
.tokens .special { outline: 1px solid currentColor; border-radius: 3px; }
@media (prefers-color-scheme: dark) {
  .tokens span { color: #a3a3a3; }
  .tokens.chosen .learned { color: #3ecfa3; }
  .tokens.rejected .learned { color: #ff9a4d; }
}
"""
"""What `as_html` looks best with."""


def as_html(seen: Seen) -> str:
    """Return an answer as HTML; everything that comes from the data is escaped."""
    spans = []
    for token in seen.tokens:
        names = " ".join(name for name in ("learned", "special") if getattr(token, name))
        spans.append(f'<span class="{names}">{escape(_visible(token.text))}</span>')
    return f'<p>{escape(seen.where)}, {seen.side}</p><div class="tokens {seen.side}">{"".join(spans)}</div>'


def _visible(text: str) -> str:
    """Return a token's text with what cannot be seen spelled out, and a mark where a line ends."""
    return "".join(spelled(sign) + ("\n" if sign == "\n" else "") for sign in text)
