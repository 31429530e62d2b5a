"""Replies of servers by the content of what was asked, in the user's cache: no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiebreak.files import database
from tiebreak.progress import say
from tiebreak.samplers import Question, Reply

FORM = 1
"""Counts up when the way a reply is written changes."""


def key_of(url: str, model: str, question: Question) -> bytes:
    """Return the hash of all that decides what a reply may be."""
    messages = [(message.role, message.content) for message in question.messages]
    asked = json.dumps([FORM, url, model, messages, *question[1:]], sort_keys=True)
    return hashlib.sha256(asked.encode()).digest()


class Replies:
    """An SQLite file that threads and processes may share; where it cannot be used, that is said once and nothing is kept.

    What is stored outlives the process from the moment that `put` returns.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._asking: dict[bytes, threading.Event] = {}
        self._file: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = database(path)
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT)")
        except (sqlite3.Error, OSError) as error:
            self._do_without(error)

    def get(self, key: bytes) -> Reply | None:
        """Return a known reply, at no cost."""
        row = self._execute("SELECT reply FROM replies WHERE key = ?", key)
        if row is None:
            return None
        with suppress(ValueError, TypeError):
            text, finish_reason, tokens, prompt_tokens, logprobs = json.loads(row[0])
            return Reply(text, finish_reason, tokens, prompt_tokens, 0.0, tuple((token, top) for token, top in logprobs))
        return None

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a reply."""
        row = (reply.text, reply.finish_reason, reply.tokens, reply.prompt_tokens, reply.logprobs)
        self._execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(row))

    @contextmanager
    def alone(self, key: bytes) -> Iterator[None]:
        """Hold a question, so that others of this object with the same one wait for its reply."""
        while True:
            with self._lock:
                other = self._asking.get(key)
                if other is None:
                    mine = self._asking[key] = threading.Event()
                    break
            other.wait()
        try:
            yield
        finally:
            with self._lock:
                del self._asking[key]
            mine.set()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _execute(self, command: str, *values: Any) -> Any:
        with self._lock:
            try:
                return self._file.execute(command, values).fetchone() if self._file else None
            except sqlite3.Error as error:
                self._do_without(error)
                return None

    def _do_without(self, error: Exception) -> None:
        self.close()
        self._file = None
        say(f"{self._path}: the cache of replies cannot be used ({error}); replies are not kept")
