"""import: labels that people and other tools gave become pairs for `prompts.source`; what makes no pair is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from tiebreak.exchange.annotated import argilla, distilabel
from tiebreak.exchange.asked import Asked, paired
from tiebreak.exchange.sources import READERS, Row
from tiebreak.exchange.votes import arena, labelled, thumbs
from tiebreak.files import write_text
from tiebreak.records import InputError

Format = Literal["argilla", "distilabel", "thumbs", "arena"]
READ: dict[str, Callable[[Iterable[Row]], Iterator[Asked]]] = {
    "argilla": argilla,
    "distilabel": distilabel,
    "thumbs": thumbs,
    "arena": arena,
}
KINDS = tuple(kind for kind in READERS if kind != ".txt")


def import_labels(source: Path, form: Format, target: Path, *, unpaired: bool = False) -> list[str]:
    """Read labels, write pairs as JSON lines, and say in lines what came of them.

    `unpaired`: of thumbs, every answer with its label instead, as trainers take them with kto. Raises InputError.
    """
    if unpaired and form != "thumbs":
        raise InputError(f"--unpaired is for thumbs; {form} sets answers against each other")
    if target.suffix != ".jsonl" or target.exists():
        raise InputError(f"{target}: name a .jsonl file that is not there yet")
    if source.suffix.lower() not in KINDS:
        raise InputError(f"{source}: is not a kind that can be read; use {', '.join(KINDS)}")
    rows = list(READERS[source.suffix.lower()](source))
    made, left_out = labelled(rows) if unpaired else paired(READ[form](rows))
    what = "labelled answers" if unpaired else "pairs"
    why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    if not made:
        raise InputError(f"{source}: no {what} come of {len(rows):,} rows ({why or 'it is empty'})")
    write_text(target, "".join(f"{json.dumps(row)}\n" for row in made))
    line = f"{target}: {len(made):,} {what} from {len(rows):,} rows" + (f"; left out: {why}" if why else "")
    section = "labels: {}}, train: {loss_type: kto}" if unpaired else "pairs: {}}"
    return [line, f"in a recipe: prompts: {{source: {target.name}, {section}"]
