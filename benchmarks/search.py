"""Search the demo's settings, once through and once killed twice, and print both.

    python benchmarks/search.py [RUN_DIR] [KEY=VALUE…]

Eight trials: two values of beta, four learning rates. Started again with the same RUN_DIR it goes on; times are of the stages.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPACE = (
    "search={space: {train.beta: [0.05, 0.3], train.learning_rate: [1.0e-6, 3.0e-6, 1.0e-5, 3.0e-5]}, objective: win_rate.rate}"
)
KILLS = 2


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "search"
    command = [sys.executable, "-m", "tiebreak", "search", "demo", SPACE, *sys.argv[2:], "--run"]
    subprocess.run([*command, str(folder)], check=True)
    loop = report(folder)
    killed, chance = folder.with_name(f"{folder.name}-killed"), random.Random(0)
    seconds = sum(sum(times(folder / row["path"]).values()) for row in loop["rows"][:-1])
    for _ in range(KILLS):
        process = subprocess.Popen([*command, str(killed)])
        time.sleep(chance.uniform(0.2, 0.8) * seconds / KILLS)
        process.kill()
        print(f"killed with {len(list(killed.glob('trials/*/recipe.json')))} trials begun", flush=True)
        process.wait()
    subprocess.run([*command, str(killed)], check=True)
    again = json.loads((killed / "loop.json").read_text())
    pairs = zip(loop["rows"], again["rows"], strict=True)
    apart = max(abs(one["numbers"]["win_rate"]["rate"] - other["numbers"]["win_rate"]["rate"]) for one, other in pairs)
    print(f"the same winner: {again['best'] == loop['best']}; numbers differ by {apart:.3f} at most")


def report(folder: Path) -> dict[str, Any]:
    loop: dict[str, Any] = json.loads((folder / "loop.json").read_text())
    keys = list(loop["rows"][0]["settings"])
    print(f"\n| | {' | '.join(keys)} | win rate over base | held-out pairs | seconds |\n|{'---|' * (len(keys) + 4)}")
    for row in loop["rows"]:
        cells = [f"{row['settings'][key]:g}" for key in keys] + [
            cell(row["numbers"].get(key)) for key in ("win_rate", "accuracy")
        ]
        name = f"**{row['name']}**" if row["name"] == loop["best"] else row["name"]
        print(f"| {name} | {' | '.join(cells)} | {sum(times(folder / row['path']).values()):.0f} |")
    print(
        f"\n{loop['sentence']}\nWhat mattered: {loop['settings']['importance']}\n{os.cpu_count()} cores, seconds of the stages:"
    )
    for row in loop["rows"]:
        print(f"{row['name']}: {', '.join(f'{stage} {seconds:.0f}' for stage, seconds in times(folder / row['path']).items())}")
    return loop


def times(run: Path) -> dict[str, float]:
    """Return the seconds of the stages that a run did itself."""
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    return {name: entry["seconds"] for name, entry in stages.items() if "taken_from" not in entry}


def cell(raw: dict[str, Any] | None) -> str:
    return "" if raw is None else f"{raw['rate']:.2f} ({raw['low']:.2f}–{raw['high']:.2f}), n = {raw['n']}"


if __name__ == "__main__":
    main()
