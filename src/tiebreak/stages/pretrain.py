"""pretrain: go on with what the model was first trained by, raw text; for encoder-decoders, text with spans taken out."""

from __future__ import annotations

from typing import cast

from tiebreak.exchange.sources import columns_of, find_source, need_column, read_rows, read_text, text_of
from tiebreak.recipe import Pretrain
from tiebreak.records import InputError
from tiebreak.run import Counts, Run
from tiebreak.stages import fitting


def pretrain(run: Run) -> Counts:
    """Train on every document of the source, and save the model. Raises InputError."""
    settings = cast("Pretrain", run.recipe.pretrain)  # a run without it never comes here
    path = find_source(run, "pretrain")
    if path and path.suffix.lower() == ".txt":
        texts = [read_text(path)]  # its lines are no documents
    else:
        rows = read_rows(run, "pretrain")
        need_column(settings.column, columns_of(rows), "pretrain.column")
        texts = [text_of(row.cells.get(settings.column), f"{row.where}, column {settings.column!r}") for row in rows]
    if not any(map(str.strip, texts)):
        raise InputError(f"pretrain.source: {settings.source} holds no text")
    return fitting.fit_supervised(run, "pretrain", settings, [{"text": text} for text in texts])
