"""Who answers: a model in this process, or an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from tiebreak.records import Completion, Prompt


class Sampler(Protocol):
    """Iterable in, iterator out: draws come as they are ready, in any order."""

    label: str
    n: int
    failures: list[str]
    """One line for every draw that failed for good."""

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        """Yield draws 0 … n-1 of every prompt, save the (prompt id, draw) that are in `have`.

        A draw that failed for good is left out: it stays owed, and the caller counts it.
        """
        ...
