"""What a run's calls cost, kept in the run: no call is made that its budget would not cover at its dearest."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from tiebreak.files import database
from tiebreak.recipe import Price
from tiebreak.records import InputError
from tiebreak.samplers import CallError

PICO = 10**12
"""Money is counted in millionths of a millionth of a dollar, in whole numbers: sums are exact, in any order."""


class BudgetError(CallError):
    """A call that was not made, because the part of the run has none left, or no money."""


class Spent(NamedTuple):
    """What one part of a run has used, over all its starts."""

    calls: int
    """Tries that were sent, those that failed included."""
    failed: int
    """Tries without a reply."""
    cached: int
    """Replies that were known from an earlier call and cost nothing."""
    prompt_tokens: int
    tokens: int
    cost: float | None
    """US dollars; None where no price is known."""
    estimated: int
    """Tries whose tokens nobody told, such as those under way when the run was killed; they count at their upper bound."""

    def __str__(self) -> str:
        cost = "price unknown" if self.cost is None else dollars(self.cost)
        also = "".join(
            f", {count:,} {what}"
            for count, what in (
                (self.failed, "failed"),
                (self.cached, "answered from the cache"),
                (self.estimated, "counted at their most"),
            )
            if count
        )
        return f"{cost}, {self.calls:,} calls{also}, {self.prompt_tokens:,} tokens in and {self.tokens:,} out"


class Call(NamedTuple):
    """The most that one try may use."""

    prompt_tokens: int
    tokens: int


class Ledger:
    """The account of one part of a run; several threads may use it, and other processes may read it.

    Every try is entered at its upper bound before it is sent, in one step with the check of the limits, and corrected
    by what it used. What was never corrected, because the run was killed, keeps its upper bound.
    """

    def __init__(
        self,
        path: Path | None,
        name: str,
        price: Price | None = None,
        budget_usd: float | None = None,
        max_calls: int | None = None,
    ) -> None:
        """Open the account `name`; without a path it lasts as long as this object. Raises InputError."""
        self._path, self._name, self._budget_usd = path, name, budget_usd
        self._in, self._out = (round(price.input * 10**6), round(price.output * 10**6)) if price else (0, 0)
        self._priced = price is not None
        self._limits = (max_calls or 2**62, 2**62 if budget_usd is None else round(budget_usd * PICO))
        self._changed = threading.Condition()
        self._in_flight = 0
        with self._writing():
            self._file = database(path)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, calls INTEGER, failed INTEGER, cached INTEGER,"
                " prompt_tokens INTEGER, tokens INTEGER, cost INTEGER, estimated INTEGER)"
            )
            self._file.execute("INSERT OR IGNORE INTO parts VALUES (?, 0, 0, 0, 0, 0, NULL, 0)", (name,))
            if price is not None:  # what was used before a price was known has its cost now
                self._file.execute(
                    "UPDATE parts SET cost = prompt_tokens * ? + tokens * ? WHERE name = ? AND cost IS NULL",
                    (self._in, self._out, name),
                )

    def reserve(self, most: Call) -> None:
        """Enter a try before it is sent; where only others in flight stand in its way, wait for them. Raises BudgetError."""
        cost = most.prompt_tokens * self._in + most.tokens * self._out
        with self._changed:
            while not self._enter(most, cost):
                calls = self._row("calls")
                if calls >= self._limits[0]:
                    raise BudgetError(f"max_calls of {self._limits[0]} reached")
                if not self._in_flight:
                    raise BudgetError(f"budget of {dollars(self._budget_usd or 0)} reached")
                self._changed.wait()
            self._in_flight += 1

    def _enter(self, most: Call, cost: int) -> bool:
        with self._writing():
            entered = self._file.execute(
                "UPDATE parts SET calls = calls + 1, estimated = estimated + 1, prompt_tokens = prompt_tokens + ?,"
                " tokens = tokens + ?, cost = cost + ? WHERE name = ? AND calls < ? AND coalesce(cost, 0) + ? <= ?",
                (*most, cost, self._name, self._limits[0], cost, self._limits[1]),
            )
            return entered.rowcount == 1

    def settle(self, most: Call, prompt_tokens: int | None, tokens: int | None, *, failed: bool = False) -> float | None:
        """Correct a try by what it used, None being unknown, and return its cost in dollars, None without a price."""
        told = prompt_tokens is not None and tokens is not None
        used = Call(most.prompt_tokens if prompt_tokens is None else prompt_tokens, most.tokens if tokens is None else tokens)
        less = Call(used.prompt_tokens - most.prompt_tokens, used.tokens - most.tokens)
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()
            with self._writing():
                self._file.execute(
                    "UPDATE parts SET failed = failed + ?, estimated = estimated - ?, prompt_tokens = prompt_tokens + ?,"
                    " tokens = tokens + ?, cost = cost + ? WHERE name = ?",
                    (failed, told, *less, less.prompt_tokens * self._in + less.tokens * self._out, self._name),
                )
        return (used.prompt_tokens * self._in + used.tokens * self._out) / PICO if self._priced else None

    def count_cached(self) -> None:
        """Enter a reply that was known."""
        with self._changed, self._writing():
            self._file.execute("UPDATE parts SET cached = cached + 1 WHERE name = ?", (self._name,))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _row(self, column: str) -> int:
        with self._writing():
            return int(self._file.execute(f"SELECT {column} FROM parts WHERE name = ?", (self._name,)).fetchone()[0])  # noqa: S608

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            problem = str(error)
        else:
            return
        raise InputError(f"{self._path}: the account of calls cannot be kept ({problem}), so no call is made; is the disk full?")


def spent(path: Path) -> dict[str, Spent]:
    """Return what every part of a run has used, by name; nothing where no call was made. Raises InputError."""
    if not path.exists():
        return {}
    try:
        # Where nobody is writing, a file is read that need not be writable, and nothing is left beside it.
        idle = not path.with_name(f"{path.name}-wal").exists()
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{'immutable=1' if idle else 'mode=ro'}", uri=True)) as file:
            rows = file.execute("SELECT * FROM parts ORDER BY name").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{path}: the account of calls cannot be read: {error}") from None
    return {
        name: Spent(calls, failed, cached, asked, answered, None if cost is None and calls else (cost or 0) / PICO, estimated)
        for name, calls, failed, cached, asked, answered, cost, estimated in rows
    }


def dollars(amount: float) -> str:
    """Write an amount to the cent, and a small one to three digits."""
    return f"${amount:.2f}" if amount >= 1 or round(amount, 2) == amount else f"${amount:.3g}"
