"""Log-probs of the reference, cached by content: what a model's weights once said of a completion is not asked again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tiebreak.training.trees import Ids

Asked = tuple[Ids, Ids]
"""A prompt's ids and a completion's."""


def fingerprint(model: nn.Module, *words: str, adapter: bool = True) -> str:
    """Return a hash of a model's configuration, weights and buffers, and of `words`.

    Without `adapter`, of the model that PEFT's adapter was put on, under the names it had before.
    """
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}  # type: ignore[union-attr, operator]
    config.pop("use_cache", None)
    hasher = hashlib.sha256(json.dumps([config, *words], sort_keys=True, default=str).encode())
    tensors = model.state_dict()
    if not adapter:
        parts = ("base_model.model.", ".base_layer", ".original_module")
        tensors = {
            _without(name, parts): kept for name, kept in tensors.items() if "lora_" not in name and "modules_to_save" not in name
        }
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _without(name: str, parts: Sequence[str]) -> str:
    for part in parts:
        name = name.replace(part, "")
    return name


class Cache:
    """Log-probs of completion tokens under one reference, in an SQLite file that several processes may share."""

    def __init__(self, path: Path, reference: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.reference = path, reference
        with closing(self._open()) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, tokens BLOB) WITHOUT ROWID")

    def read(self, wanted: Iterable[Asked]) -> dict[Asked, torch.Tensor]:
        """Return the log-probs, (tokens,), of those completions that are known."""
        known = {}
        with closing(self._open()) as file:
            for asked in wanted:
                row = file.execute("SELECT tokens FROM logps WHERE key = ?", (self._key(asked),)).fetchone()
                if row is not None:
                    known[asked] = torch.from_numpy(np.frombuffer(row[0], dtype=np.float32).copy())
        return known

    def write(self, logps: dict[Asked, torch.Tensor]) -> None:
        """Add log-probs; all of them or, when killed, none."""
        rows = [(self._key(asked), tokens.numpy().astype(np.float32).tobytes()) for asked, tokens in logps.items()]
        with closing(self._open()) as file, file:
            file.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def _key(self, asked: Asked) -> bytes:
        return hashlib.sha256(json.dumps([self.reference, *asked]).encode()).digest()[:16]
