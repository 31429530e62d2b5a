"""Files that a crash cannot harm: JSON lines that are appended, everything else written whole or not at all.

Of several processes at one training, the first writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tiebreak.progress import first_process
from tiebreak.records import InputError

R = TypeVar("R", bound=BaseModel)
WAIT = 60.0
"""Seconds that a process waits for another one's turn at a database."""


def read_jsonl(path: Path, record: type[R]) -> Iterator[R]:
    """Yield the records of a file that may end in a torn line; an absent file holds none."""
    if not path.exists():
        return
    with path.open("rb") as lines:  # only a newline byte ends a line: U+2028 and its like are text
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors(include_url=False, include_input=False)[0]
                raise InputError(
                    f"{path}, line {number}: not a {record.__name__}: {'.'.join(map(str, problem['loc']))} {problem['msg']}; "
                    "mend or delete the line"
                ) from None


@contextmanager
def appending(path: Path) -> Iterator[Callable[[BaseModel], None]]:
    """Yield a function that appends one record as one line, in the file as soon as it returns."""
    if not first_process():
        yield lambda _: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        _cut_torn_line(stream)

        def append(record: BaseModel) -> None:
            stream.write(_line(record))
            stream.flush()

        yield append


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """Write a whole file of records, or nothing."""
    _atomically(path, (_line(record) for record in records))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, or not at all."""
    _atomically(path, [json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"])


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, or not at all."""
    _atomically(path, [text.encode()])


def _atomically(path: Path, pieces: Iterable[bytes]) -> None:
    if not first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        stream.writelines(pieces)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _line(record: BaseModel) -> bytes:
    text = record.model_dump_json()
    for mark in "\u2028\u2029\u0085":  # readers that split lines as str.splitlines does would cut here
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode() + b"\n"


def _cut_torn_line(stream: Any) -> None:
    stream.seek(0, os.SEEK_END)
    end = stream.tell()
    at = end
    while at > 0:
        step = min(1 << 16, at)
        stream.seek(at - step)
        block = stream.read(step)
        newline = block.rfind(b"\n")
        if newline >= 0:
            at = at - step + newline + 1
            break
        at -= step
    if at != end:
        stream.truncate(at)
    stream.seek(0, os.SEEK_END)


def read_json(path: Path) -> Any:
    """Read a JSON file; raises InputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def digest(path: Path, size: int | None = None) -> str:
    """Return `size:sha256` of a file, or of its first `size` bytes."""
    digest = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    whole = left
    with path.open("rb") as stream:
        while block := stream.read(min(1 << 20, left)):
            digest.update(block)
            left -= len(block)
    return f"{whole - left}:{digest.hexdigest()}"


def grew(path: Path, earlier: str) -> bool:
    """Tell whether lines were appended to a file since its digest was taken, and nothing else."""
    size = int(earlier.partition(":")[0])
    return path.exists() and path.stat().st_size > size and digest(path, size) == earlier


def database(path: Path | None) -> sqlite3.Connection:
    """Open an SQLite file, or one in memory, that threads and processes write to at once. Raises sqlite3.Error.

    A write that is in the log outlives the process, though perhaps not a power cut; nothing is flushed for it.
    """
    file = sqlite3.connect(path or ":memory:", timeout=WAIT, isolation_level=None, check_same_thread=False)
    until = time.monotonic() + WAIT
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # The one statement for which SQLite does not wait, where another process makes the same change to a new file.
            if "locked" not in str(error) or time.monotonic() > until:
                file.close()
                raise
            time.sleep(0.01)
    file.execute("PRAGMA synchronous = NORMAL")
    return file
