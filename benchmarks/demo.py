"""Run the demo from nothing and print the figures that the README quotes.

    python benchmarks/demo.py [RUN_DIR]

Times are wall-clock seconds on this machine; the model is converted and the libraries are loaded within them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "demo"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "tiebreak", "run", "demo", "--run", str(folder)], check=True)
    seconds = time.monotonic() - begun
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    print(f"\n{os.cpu_count()} cores; {seconds:.0f} s in all: " + ", ".join(f"{n} {s['seconds']:.0f}" for n, s in stages.items()))
    print("\n| | base | tuned |\n|---|---|---|")
    for name, both in [("passes every rule", summary["passing"]), *((c["name"], c) for c in summary["checks"])]:
        cells = [f"{both[m]['rate']:.2f} ({both[m]['low']:.2f}–{both[m]['high']:.2f})" for m in ("base", "tuned")]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    wins, pairs = summary["win_rate"], summary["held_out_pairs"]
    print(f"\nwin rate {wins['rate']:.2f} ({wins['low']:.2f}–{wins['high']:.2f}), n = {wins['n']}, {wins['prompts']} prompts")
    accuracy = pairs["accuracy"]
    print(f"held-out reward accuracy {accuracy['rate']:.2f} ({accuracy['low']:.2f}–{accuracy['high']:.2f}), n = {accuracy['n']}")


if __name__ == "__main__":
    main()
