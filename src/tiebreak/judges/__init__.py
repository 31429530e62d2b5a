"""Who decides: rules and language models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from tiebreak.records import Comparison, Completion, Prompt, Rating


class Match(NamedTuple):
    """Two completions of a prompt in the order the judge sees them."""

    prompt: Prompt
    first: Completion
    second: Completion


class Answer(NamedTuple):
    """A completion with its prompt."""

    prompt: Prompt
    completion: Completion


class Comparer(Protocol):
    """A judge of two completions; it owns concurrency and batching, the stage owns durability."""

    name: str

    def compare(self, matches: Iterable[Match]) -> Iterator[Comparison]:
        """Yield one record per match, a verdict or an error, in any order."""
        ...


class Rater(Protocol):
    """A judge of one completion."""

    name: str

    def rate(self, answers: Iterable[Answer]) -> Iterator[Rating]:
        """Yield one record per answer, a score or an error, in any order."""
        ...
