"""The rows that prompts are made from: a file, a folder or a Hub dataset, each row with the place it stands."""

from __future__ import annotations

import ast
import csv
import difflib
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.records import InputError, Message
from tiebreak.run import Run

Chat = tuple[Message, ...]

HUB_SECONDS = 10.0
ROLES: dict[Any, Any] = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant", "tool")}
SURROGATE = re.compile("[\ud800-\udfff]")
CHAT_LITERAL = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
"""How a chat list begins that was written into a text cell, as Python or as JSON."""


class Row(NamedTuple):
    """One row of a source and where it stands, in words."""

    where: str
    cells: dict[str, Any]


def find_source(run: Run, key: str) -> Path | None:
    """Return the file or folder that is the source in the recipe's section `key`, None for a Hub dataset.

    Raises InputError where it is none of them.
    """
    section = getattr(run.recipe, key)
    source = section.source or ""
    path = run.resolve(source)
    named_as_file = Path(source).suffix.lower() in READERS or source.startswith((".", "/", "~"))
    if path.is_dir():
        return path
    if not path.exists() and not named_as_file:
        if "/" not in source:  # load_dataset reads a bare `csv` or `text` as every such file it can find here
            raise InputError(f"{key}.source: {source!r} is no file or folder beside the recipe, and no Hub id (owner/name)")
        return None
    if not path.exists():
        raise InputError(f"{key}.source: there is no file {path}")
    if section.subset is not None or section.hub_split != "train":
        raise InputError(f"{key}.source: {path} is a file; subset and hub_split are for Hub datasets, leave them out")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{key}.source: {path} is not a kind that can be read; use {', '.join(READERS)}")
    return path


def read_rows(run: Run, key: str = "prompts") -> list[Row]:
    """Read every row of the source in the recipe's section `key`; raises InputError where one cannot be read."""
    section, path = getattr(run.recipe, key), find_source(run, key)
    if path is None or path.is_dir():
        return _dataset(key, str(path or section.source), section.subset, section.hub_split)
    rows = list(READERS[path.suffix.lower()](path))
    if not rows:
        raise InputError(f"{path}: holds no rows")
    return rows


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return every column that some row has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.cells))


def need_column(name: str, columns: Iterable[str], key: str) -> None:
    """Raise InputError where `name`, which the recipe gives under `key`, is not one of `columns`."""
    columns = list(columns)
    if name not in columns:
        near = sorted(columns, key=lambda column: -difflib.SequenceMatcher(None, name.lower(), column.lower()).ratio())
        more = f" and {len(near) - 10} more" if len(near) > 10 else ""
        raise InputError(f"{key}: no column {name!r}; there is {', '.join(map(repr, near[:10])) or 'none'}{more}")


# --- files and datasets ---------------------------------------------------------------------------------------------


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default cuts in at 131,072 characters: a long chat
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if name and header.count(name) > 1})
                if twice:
                    raise InputError(f"{where}: two columns are called {twice[0]!r}; rename one")
            elif len(cells) != len(header):
                raise InputError(f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that hold commas")
            else:  # a column without a name is the row number that table programs write
                yield Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if name})
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not valid CSV: {error}") from None


def _json(path: Path) -> Iterator[Row]:
    data = _parse(read_text(path), str(path), "; a file with one object per line is named .jsonl")
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else None
    if not isinstance(data, list):
        raise InputError(f"{path}: holds no list of objects")
    for number, cells in enumerate(data, start=1):
        yield _row(f"{path}, entry {number}", cells)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: U+2028 is text
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(where, _parse(line, where))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid Parquet: {_first_line(error)}") from None
    for number, cells in enumerate(rows, start=1):
        yield Row(f"{path}, row {number}", cells)


def _txt(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield Row(f"{path}, line {number}", {"prompt": line.strip()})


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _txt,
}


def _dataset(key: str, name: str, subset: str | None, split: str) -> list[Row]:
    """Load a Hub dataset, or a folder in the form of one."""
    import datasets
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    try:
        if not Path(name).is_dir() and not is_offline_mode():
            # load_dataset alone retries for half a minute before it says that there is no network;
            # where the Hub answers with an error, load_dataset says it better.
            with suppress(HfHubHTTPError):
                HfApi().dataset_info(name, timeout=HUB_SECONDS)
        table = datasets.load_dataset(name, subset, split=split)
        rows = [Row(f"{name}, row {number}", dict(cells)) for number, cells in enumerate(table, start=1)]
    except Exception as error:
        raise InputError(f"{key}.source: dataset {name!r}: {_first_line(error)}; check the name and the network") from None
    if not rows:
        raise InputError(f"{key}.source: dataset {name!r}, split {split!r}: holds no rows")
    return rows


def read_text(path: Path) -> str:
    """Return what a text file holds; raises InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: is empty")
    return text


def _parse(text: str, where: str, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise InputError(f"{where}{line}: not valid JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets a thousand deep
        raise InputError(f"{where}: not JSON that can be read: {_first_line(error)}") from None


def _row(where: str, cells: Any) -> Row:
    if not isinstance(cells, dict):
        raise InputError(f"{where}: not an object with named fields")
    return Row(where, cells)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- cells ---------------------------------------------------------------------------------------------------------


def content_of(row: Row, column: str) -> str | Chat:
    """Return a cell as text, or as turns where it holds a chat."""
    value, where = row.cells.get(column), f"{row.where}, column {column!r}"
    if isinstance(value, str) and CHAT_LITERAL.match(value):
        value = _literal(value.strip(), where)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return text_of(value, where)
    if column.lower() == "turns" and (texts := texts_of(value)):  # MT-bench's: all that the user asks, one after the other
        return texts[0]
    if column.lower() == "conversations" and all(isinstance(turn, str) for turn in value):
        value = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(value)]
    return tuple(_turn(turn, where) for turn in value)


def _literal(text: str, where: str) -> Any:
    with suppress(ValueError, RecursionError):  # JSON first: its \ud83d\ude00 is one character, Python's two halves
        return json.loads(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash in a text is no concern of ours
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{where}: begins as a chat list and cannot be read as one") from None


def _turn(turn: Any, where: str) -> Message:
    if isinstance(turn, dict):
        for role, content in (("role", "content"), ("from", "value")):
            if turn.keys() >= {role, content}:
                if not isinstance(turn[role], str) or turn[role] not in ROLES:
                    raise InputError(f"{where}: a turn's {role} is one of {', '.join(ROLES)}")
                return Message(role=ROLES[turn[role]], content=text_of(turn[content], where))
    raise InputError(f"{where}: a chat is a list of {{role, content}} or {{from, value}}; this holds something else")


def text_of(value: Any, where: str) -> str:
    """Return a cell as text that can be written; a missing one, and the NaN that tables write for it, are empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = {bool: "true or false", dict: "an object", list: "a list"}.get(type(value), type(value).__name__)
        raise InputError(f"{where}: holds {kind} where text belongs")
    return _writable(str(value))


def texts_of(value: Any) -> list[str]:
    """Return a cell that is a list of texts as they can be written; nothing of one that is something else."""
    is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return [_writable(text) for text in value] if is_list else []


def scalars_of(row: Row, without: tuple[str, ...], whole: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a row that are text, numbers or truth values, as they can be written, and the `whole` ones."""
    return {
        _writable(name): _writable(value) if isinstance(value, str) else value
        for name, value in row.cells.items()
        if name not in without and (_is_scalar(value) or name in whole)
    }


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return not CHAT_LITERAL.match(value)
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _writable(text: str) -> str:
    """Replace the lone surrogates that JSON may hold and UTF-8 may not."""
    return SURROGATE.sub("\ufffd", text)
