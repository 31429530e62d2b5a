"""Train three small models on polite against rude answers and print what they learned about held-out pairs.

    python benchmarks/learn.py --models DIR --data DIR [--only NAME…]

An encoder-decoder, a causal model, and an adapter on a third; an epoch or two on rasbt_preference, a tenth of the
prompts held out. Accuracy is the share of held-out pairs whose chosen completion gained more log-prob than the rejected.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """What is trained, and how."""

    folder: str
    epochs: int
    learning_rate: float
    lora: bool = False


CASES = {
    "FLAN-T5-small": Case("flan-t5-small-titles", 2, 1e-4),
    "TinyStories-15M": Case("tinystories-15m", 1, 3e-4),
    "SmolLM2-135M, LoRA": Case("smollm2-135m-instruct", 1, 5e-4, lora=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    options = parser.parse_args()
    file = options.data / "rasbt_preference" / "instruction-data-with-preference.json"
    for path in (file, *(options.models / CASES[name].folder for name in options.only)):
        if not path.exists():
            sys.exit(f"{path}: not found")
    pairs = list(read(file))
    print("| model | before | after | margin | seconds |\n|---|---|---|---|---|")
    for name in options.only:
        print(measured(name, CASES[name], options.models, pairs), flush=True)


def read(file: Path) -> Any:
    for row in json.loads(file.read_text()):
        if row["chosen"] != row["rejected"]:
            prompt = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
            yield {
                "prompt": [message("user", prompt)],
                **{side: [message("assistant", row[side])] for side in ("chosen", "rejected")},
            }


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def measured(name: str, case: Case, models: Path, pairs: list[Any]) -> str:
    from peft import LoraConfig
    from transformers import AutoConfig

    from tiebreak import PreferenceConfig, PreferenceTrainer
    from tiebreak.metrics.winrate import rate

    prompts = sorted({pair["prompt"][0]["content"] for pair in pairs})
    held = set(random.Random(0).sample(prompts, len(prompts) // 10))
    folder = str(models / case.folder)
    kind = "SEQ_2_SEQ_LM" if AutoConfig.from_pretrained(folder).is_encoder_decoder else "CAUSAL_LM"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        trainer = PreferenceTrainer(
            folder,
            args=PreferenceConfig(
                output_dir=out, num_train_epochs=case.epochs, learning_rate=case.learning_rate, per_device_train_batch_size=8,
                save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", warmup_steps=0.1,
                optim="adamw_torch_fused",
            ),
            train_dataset=[pair for pair in pairs if pair["prompt"][0]["content"] not in held],
            eval_dataset=[pair for pair in pairs if pair["prompt"][0]["content"] in held],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=kind) if case.lora else None,
        )  # fmt: skip
        before = trainer.held_out_rewards()
        trainer.train()
        after = trainer.held_out_rewards()
    seconds = time.monotonic() - begun
    cells = []
    for rewards in (before, after):
        wins = rate(
            [
                [1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in group]
                for group in rewards
            ]
        )
        cells.append(f"{wins.value:.2f} ({wins.low:.2f}–{wins.high:.2f}), n = {wins.n}")
    margins = [chosen - rejected for group in after for chosen, rejected in group]
    return f"| {name} | {cells[0]} | {cells[1]} | {sum(margins) / len(margins):.2f} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
