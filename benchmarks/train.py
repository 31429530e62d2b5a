"""Measure `PreferenceTrainer` beside TRL's `DPOTrainer`: pairs per second, peak memory, share of the machine's limit.

    python benchmarks/train.py --models DIR --data DIR [--workload NAME…] [--precision fp32 bf16] [--steps N] [--epochs E]
    python benchmarks/train.py --models DIR --data DIR --t5 | --vocabulary | --curves

Every measurement is a process of its own, so that its peak memory is its own, and those of the two sides take turns.
All sides get the same model, pairs, order, batch size, precision, learning rate, optimiser and `max_length`.
A Markdown table goes to stdout, progress to stderr, every single time and count into the JSON of `--out`.
Nothing heavy is imported at the top: a process that starts another lends it its own peak.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, list[dict[str, str]]]
Ids = tuple[int, ...]
PairIds = tuple[Ids, Ids, Ids]
"""Prompt, chosen, rejected."""

WORKLOADS = {
    "llamafactory_demo": ("llamafactory_demo/dpo_en_demo.json", 4),
    "rasbt_preference": ("rasbt_preference/instruction-data-with-preference.json", 4),
    "youtube_titles": ("youtube_titles/preferences.csv", 10),
}
"""File and pairs per batch; the last one's batch is one prompt with all its pairs."""

TRL = {
    "TRL": {"gradient_checkpointing": False},
    "TRL as it comes": {"gradient_checkpointing": True},
    "TRL, reference first": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    "TRL, reference first, our products": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}
OURS, CHECKPOINTED, PLAIN = "tiebreak", "tiebreak, checkpointing", "two passes, two models"
FAST = "fp32 in oneDNN"
LEARNING_RATE, CURVE_LEARNING_RATE = 1e-6, 1e-5
ORDERS = ("shuffled", OURS, "one prompt a batch")
"""The learning curves: pairs in any order, in the trainer's own, and with all of a prompt's pairs in one batch."""


@dataclass(frozen=True)
class Job:
    """One measurement, as its process is told of it."""

    part: str
    side: str
    model: str
    data: str
    workload: str
    precision: str
    steps: int | None
    seed: int
    max_length: int
    vocabulary: int = 0


# --- pairs ---------------------------------------------------------------------------------------------------------


def read(name: str, data: Path) -> list[Row]:
    """Return a workload's rows as chats with prompt, chosen, rejected."""
    path = data / WORKLOADS[name][0]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [{key: ast.literal_eval(row[key]) for key in ("prompt", "chosen", "rejected")} for row in rows]
    rows = json.loads(path.read_text(encoding="utf-8"))
    if name == "llamafactory_demo":
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        chats = ({"prompt": row["conversations"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]} for row in rows)
        return [
            {part: [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns] for part, turns in chat.items()}
            for chat in chats
        ]
    return [
        {
            "prompt": [{"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


def usable(job: Job, tokenizer: Any, *, encoder_decoder: bool = False) -> tuple[list[list[tuple[Row, PairIds]]], int]:
    """Return the workload's pairs that every side keeps, prompt by prompt, and how many of them are cut.

    TRL drops a prompt that fills `max_length` and cuts the ends of completions; tiebreak drops equal completions and
    cuts the beginning of the prompt: the ids here are tiebreak's. A sequence is equally long either way.
    """
    from tiebreak import models
    from tiebreak.records import Message

    groups: dict[Ids, list[tuple[Row, PairIds]]] = defaultdict(list)
    cut = 0
    for row in read(job.workload, Path(job.data)):
        asked = [Message(**turn) for turn in row["prompt"]]
        prompt = tuple(models.prompt_ids(tokenizer, asked, encoder_decoder=encoder_decoder))
        chosen, rejected = (tuple(models.completion_ids(tokenizer, row[side][0]["content"])) for side in ("chosen", "rejected"))
        room = job.max_length - max(len(chosen), len(rejected)) - 1  # TRL ends a chat with one token more
        if chosen != rejected and len(prompt) < job.max_length and room >= 1:
            cut += len(prompt) > room
            groups[prompt].append((row, (prompt[-room:], chosen, rejected)))
    return list(groups.values()), cut


def draw(job: Job, tokenizer: Any, *, encoder_decoder: bool) -> tuple[list[Row], list[PairIds], dict[str, int]]:
    """Return pairs for a first step that warms up and `job.steps` more, whole prompts drawn by the seed.

    They come in the order in which tiebreak's trainer would draw them.
    """
    from tiebreak.training.examples import ByPrompt

    groups, cut = usable(job, tokenizer, encoder_decoder=encoder_decoder)
    random.Random(job.seed).shuffle(groups)
    drawn = [pair for group in groups for pair in group]
    batch = WORKLOADS[job.workload][1]
    batches = min((job.steps or 8) + 1, len(drawn) // batch)
    left, some = batches * batch, []
    for group in groups:
        if part := group[:left]:
            some.append(part)
            left -= len(part)
    kept = [pair for group in some for pair in group]
    rows, ids = zip(*(kept[at] for at in ByPrompt(some, job.seed, batch)), strict=True)
    return list(rows), list(ids), {"usable": len(drawn), "cut": cut}


# --- what the tree must do -----------------------------------------------------------------------------------------


def work(pairs: Sequence[PairIds], model: Any) -> tuple[int, float]:
    """Return the tokens of the pairs' trees, and the FLOPs of one forward pass over them.

    A product of (m, k) and (k, n) is 2 m k n FLOPs, so a linear layer costs 2 per weight and token. The head is
    needed only where a completion's token is predicted: at the prompt's end, once for all branches, and at every
    token of a completion but its last. Attention scores a query with a key, and adds up a value, at 2 x heads x
    head_dim each, for the pairs of positions that may see each other: the prompt's with itself, a branch's with the
    prompt and itself, both causal. A training step is three forward passes: backward multiplies each product's
    gradient once with the weights and once with the inputs. Norms, rotations, softmax and optimiser count as nothing.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config, head = model.config, model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    trees: dict[Ids, dict[Ids, None]] = defaultdict(dict)
    for prompt, chosen, rejected in pairs:
        trees[prompt] |= {chosen: None, rejected: None}
    tokens = predicting = visible = 0
    for prompt, completions in trees.items():
        sizes = [*map(len, completions)]
        tokens += len(prompt) + sum(sizes)
        predicting += 1 + sum(size - 1 for size in sizes)
        visible += len(prompt) * (len(prompt) + 1) // 2 + sum(size * len(prompt) + size * (size + 1) // 2 for size in sizes)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return tokens, 2.0 * (linear * tokens + head.weight.numel() * predicting) + 4.0 * visible * width * config.num_hidden_layers


def product_rates(config: Any, device: Any) -> dict[str, dict[str, float]]:
    """Return FLOP/s of matrix products by kind and shape, the best within a second: PyTorch's, then tiebreak's in fp32."""
    import torch
    from torch.nn.functional import linear

    from tiebreak import models

    large = 8192 if device.type == "cuda" else 2048
    shapes = [(1024, config.hidden_size, config.intermediate_size), (1024, config.intermediate_size, config.hidden_size)]
    rates: dict[str, dict[str, float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), (FAST, torch.float32)):
        if name == FAST and not models.fast_products():
            break
        rates[name] = {}
        for rows, inner, columns in [*shapes, (large, large, large)]:
            inputs = torch.randn(rows, inner, dtype=dtype, device=device)
            weights = torch.randn(columns, inner, dtype=dtype, device=device)
            times: list[float] = []
            while len(times) < 5 or sum(times) < 1:
                begun = now()
                linear(inputs, weights)
                times.append(now() - begun)
            rates[name][f"({rows}x{inner})@({inner}x{columns})"] = 2 * rows * inner * columns / min(times)
    return rates


def bare_rate(job: Job) -> float:
    """Return FLOP/s of the model alone, as PyTorch comes: 1,024 tokens forward and backward, half of them predicted."""
    import torch
    from torch.nn.functional import cross_entropy

    from tiebreak import models

    model = models.load_model(named(job), torch.float32)
    torch.set_float32_matmul_precision("highest")
    ids = torch.randint(5, model.config.vocab_size, (1, 1024), generator=torch.Generator().manual_seed(0)).to(model.device)
    known, wanted = ids[0, :512].tolist(), ids[0, 512:].tolist()
    times = []
    for _ in range(4):  # the first takes its memory
        model.zero_grad()
        begun = now()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            logits = model(input_ids=ids, logits_to_keep=513, use_cache=False).logits[0, :-1]
            loss = cross_entropy(logits.float(), ids[0, 512:])
        loss.backward()
        times.append(now() - begun)
    return 3 * work([(tuple(known), tuple(wanted), tuple(wanted))], model)[1] / min(times)


# --- measuring, in a process of its own ----------------------------------------------------------------------------


def now() -> float:
    """Return the time once the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def resident() -> int:
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the peak of resident memory in bytes, or of the GPU's where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Meter:
    """Adds up the time spent in functions and the tokens, padding included, that go through models."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.tokens = 0
        self.first_lookup = 0.0
        self.steps: list[dict[str, float]] = []

    def time(self, owner: Any, method: str, label: str) -> None:
        """Time every call of a method that `owner` may or may not have."""
        call: Callable[..., Any] | None = getattr(owner, method, None)
        if call is None:
            return

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = now()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[label] += now() - begun

        setattr(owner, method, timed)

    def watch(self, model: Any) -> None:
        """Count the token ids that a model looks up."""
        from torch import nn

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            self.first_lookup = self.first_lookup or now()
            self.tokens += inputs[0].numel()

        size = model.get_input_embeddings().num_embeddings
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.num_embeddings == size:
                module.register_forward_pre_hook(count)

    def begin(self) -> None:
        """Note what came before the first step, and start its clock."""
        self.before = {"tokens": self.tokens, **self.spent}
        self.start_step()

    def start_step(self) -> None:
        self._mark = (now(), self.tokens, dict(self.spent))

    def end_step(self) -> None:
        """Note what has happened since the last step ended; its data are part of a step."""
        at, tokens, spent = self._mark
        parts = {label: self.spent[label] - spent.get(label, 0.0) for label in ("forward", "backward", "optimiser")}
        self.steps.append({"seconds": now() - at, "tokens": self.tokens - tokens, **parts})
        print(f"    step {len(self.steps)}: {self.steps[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        self.start_step()


def arguments(job: Job, batch: int, **more: Any) -> dict[str, Any]:
    """Return the training arguments that all sides share."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": os.environ["BENCHMARK_FOLDER"],
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "optim": "adamw_torch_fused",
        "bf16": job.precision == "bf16",
        "max_length": job.max_length,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "seed": job.seed,
        **more,
    }


def train(trainer: Any, meter: Meter) -> dict[str, Any]:
    """Train with any Trainer and return what the meter saw."""
    from transformers import TrainerCallback

    begun, entered, looked_up = now(), 0.0, -1

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.spent["before"] = now() - begun
            if meter.tokens == looked_up:  # the Trainer's own preparations, the same for any number of pairs
                meter.spent["once"] += now() - entered
            meter.time(trainer.accelerator, "backward", "backward")
            meter.begin()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            self.at = now()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            meter.spent["optimiser"] += now() - self.at

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end_step()

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            meter.start_step()  # what an evaluation took is no part of a step

    inner = trainer._inner_training_loop

    @wraps(inner)
    def loop(*args: Any, **kwargs: Any) -> Any:
        nonlocal entered, looked_up
        entered, looked_up = now(), meter.tokens
        return inner(*args, **kwargs)

    trainer._inner_training_loop = loop
    trainer.add_callback(Steps())
    meter.time(trainer, "compute_loss", "forward")
    meter.time(trainer, "_check_reference", "once")
    if getattr(trainer, "ref_model", None) is not None:
        meter.watch(trainer.ref_model)
    begun = now()
    loss = trainer.train().training_loss
    # What is looked up before the first step is the reference's pass; what stands before that is paid once, too.
    once = meter.before.get("once", 0.0) + (meter.first_lookup - begun if meter.before["tokens"] else 0.0)
    return {"loss": loss, "once": once, "reference": meter.before["before"] - once}


def ours(job: Job, model: Any, tokenizer: Any, rows: list[Any], *, batch: int, meter: Meter) -> Any:
    from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

    meter.watch(model)
    args = PreferenceConfig(**arguments(job, batch, gradient_checkpointing=job.side == CHECKPOINTED))
    return PreferenceTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)


def trl(job: Job, model: Any, tokenizer: Any, rows: list[Any], *, batch: int, meter: Meter) -> Any:
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    datasets.disable_progress_bars()

    class Peer(DPOTrainer):
        def compute_ref_log_probs(self, *args: Any, **kwargs: Any) -> Any:
            begun = now()
            logps = super().compute_ref_log_probs(*args, **kwargs)  # type: ignore[no-untyped-call]
            meter.spent["reference"] += now() - begun
            return logps

    meter.watch(model)
    args = DPOConfig(**arguments(job, batch, **TRL[job.side]))
    return Peer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)


def two_passes(job: Job, policy: Any, pairs: Sequence[PairIds], batch: int, meter: Meter) -> dict[str, Any]:
    """Train an encoder-decoder the plain way: chosen and rejected apart, each through policy and frozen reference."""
    import torch
    from torch.nn.functional import logsigmoid
    from torch.nn.utils.rnn import pad_sequence

    from tiebreak import models

    device = models.device()
    reference: Any = models.load_model(named(job), torch.float32)
    reference.to(device).eval().requires_grad_(requires_grad=False)
    policy.to(device).eval()  # without dropout, as the trainer has it
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    meter.watch(policy)
    meter.watch(reference)

    def padded(ids: list[Ids], fill: int) -> torch.Tensor:
        return pad_sequence([*map(torch.tensor, ids)], batch_first=True, padding_value=fill).to(device)

    def logps(model: Any, prompts: list[Ids], completions: list[Ids]) -> torch.Tensor:
        labels, attention = padded(completions, -100), padded([(1,) * len(ids) for ids in prompts], 0)
        logits = model(
            input_ids=padded(prompts, model.config.pad_token_id), attention_mask=attention, use_cache=False,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels),
        ).logits  # fmt: skip
        each: torch.Tensor = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (each * (labels != -100)).sum(-1)

    half = torch.autocast(device.type, torch.bfloat16) if job.precision == "bf16" else nullcontext()
    total = 0.0
    meter.begin()
    for at in range(0, len(pairs), batch):
        prompts, chosen, rejected = (list(column) for column in zip(*pairs[at : at + batch], strict=True))
        begun = now()
        with half:
            won, lost = logps(policy, prompts, chosen), logps(policy, prompts, rejected)
            with torch.no_grad():
                ref_won, ref_lost = logps(reference, prompts, chosen), logps(reference, prompts, rejected)
        loss = -logsigmoid(0.1 * ((won - ref_won) - (lost - ref_lost))).mean()
        meter.spent["forward"] += now() - begun
        begun = now()
        loss.backward()
        meter.spent["backward"] += now() - begun
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        begun = now()
        optimizer.step()
        meter.spent["optimiser"] += now() - begun
        optimizer.zero_grad()
        total += loss.item() / (len(pairs) // batch)
        meter.end_step()
    return {"loss": total, "once": 0.0, "reference": 0.0}


def named(job: Job) -> Any:
    from tiebreak.recipe import Model

    return Model(name_or_path=job.model)


def measure_speed(job: Job) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig

    from tiebreak import models

    config = AutoConfig.from_pretrained(job.model)
    seq2seq, batch, meter = bool(config.is_encoder_decoder), WORKLOADS[job.workload][1], Meter()
    rates = product_rates(config, models.device()) if job.side == OURS and not seq2seq else {}
    tokenizer = models.load_tokenizer(named(job))
    rows, pairs, facts = draw(job, tokenizer, encoder_decoder=seq2seq)
    before_loading = resident()
    model = models.load_model(named(job), torch.float32)
    if job.side not in (OURS, CHECKPOINTED) and not job.side.endswith("our products"):
        torch.set_float32_matmul_precision("highest")  # as PyTorch comes; loading a model may have changed it
    batches = [pairs[at : at + batch] for at in range(0, len(pairs), batch)]
    trees = [work(one, model) for one in batches] if job.side == OURS and not seq2seq else []
    flops = {"flops": [3 * each for _, each in trees], "reference_flops": work(pairs, model)[1] if trees else 0.0}
    if job.side.startswith(PLAIN):
        before_training = resident()
        seen = two_passes(job, model, pairs, batch, meter)
    else:
        trainer = (trl if job.side in TRL else ours)(job, model, tokenizer, rows, batch=batch, meter=meter)
        before_training = resident()
        seen = train(trainer, meter)
        if job.side not in TRL and not meter.before["tokens"]:
            sys.exit("benchmark: the reference was not computed in this process; its time would be missing")
    if job.side in TRL:  # its pass is in the constructor, or in each step; the rest is not held against it
        seen |= {"once": 0.0, "reference": meter.spent["reference"]}
    highest = peak()
    return {
        **asdict(job), **facts, **seen, **flops, "batch": batch, "rates": rates, "bare": bare_rate(job) if rates else 0.0,
        "tree_tokens": [tokens for tokens, _ in trees], "reference_tokens": meter.before["tokens"], "step": meter.steps,
        "peak": highest, "before_loading": before_loading, "before_training": before_training, "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }  # fmt: skip


def measure_vocabulary(job: Job) -> dict[str, Any]:
    """Train a random llama on batches of 4 pairs of 512-token completions: 4 k completion tokens a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiebreak import models

    tokenizer, draws, meter = models.load_tokenizer(named(job)), random.Random(job.seed), Meter()
    # Words that stay one token where they are joined, so that a completion's length is known.
    words = [word for i in range(1000, 9000) if (word := str(tokenizer.decode([i]))).startswith(" ") and word[1:].isalpha()]
    steps, lengths = job.steps or 3, {"prompt": 32, "chosen": 511, "rejected": 511}
    rows = [{part: "".join(draws.choices(words, k=size)) for part, size in lengths.items()} for _ in range(4 * steps)]
    before_loading = resident()
    torch.manual_seed(job.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=job.vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    )  # fmt: skip
    trainer = ours(job, model, tokenizer, rows, batch=4, meter=meter)
    train(trainer, meter)
    tokens = sum(len(models.completion_ids(tokenizer, row[side])) for row in rows for side in ("chosen", "rejected"))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    # AdamW holds the weights, their gradients and two moments, all fp32.
    return {
        **asdict(job), "completion_tokens": tokens / steps, "own": 4 * weights, "peak": peak(),
        "before_loading": before_loading, "threads": torch.get_num_threads(), "step": meter.steps,
    }  # fmt: skip


def measure_curve(job: Job) -> dict[str, Any]:
    """Train on the pairs of most prompts, and evaluate at equal numbers of steps on those of the others."""
    import torch
    from torch.utils.data import RandomSampler

    from tiebreak import models
    from tiebreak.training.examples import ByPrompt
    from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

    class Ordered(PreferenceTrainer):
        """Draws pairs as TRL does, whatever their prompts, or as the trainer does, or a prompt's all at once."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            dataset = train_dataset or self.train_dataset
            if job.side == "shuffled":
                return RandomSampler(dataset, generator=torch.Generator().manual_seed(job.seed))
            return super()._get_train_sampler(dataset) if job.side == OURS else ByPrompt(dataset.groups, job.seed, 2 * batch)

    tokenizer, meter, batch = models.load_tokenizer(named(job)), Meter(), WORKLOADS[job.workload][1]
    groups, _ = usable(job, tokenizer)
    random.Random(0).shuffle(groups)  # the same held-out prompts for every seed
    held_out = len(groups) // 5
    kept, unseen = ([row for group in part for row, _ in group] for part in (groups[held_out:], groups[:held_out]))
    steps = job.steps or len(kept) // batch
    model = models.load_model(named(job), torch.float32)
    more = arguments(
        job, batch, learning_rate=CURVE_LEARNING_RATE, eval_strategy="steps", eval_steps=max(1, steps // 8), max_steps=steps
    )
    del more["train_sampling_strategy"]
    meter.watch(model)
    trainer = Ordered(model, args=PreferenceConfig(**more), train_dataset=kept, eval_dataset=unseen, processing_class=tokenizer)
    train(trainer, meter)
    points = [
        {"step": point["step"], "loss": point["eval_loss"], "accuracy": point["eval_rewards/accuracies"]}
        for point in trainer.state.log_history if "eval_loss" in point
    ]  # fmt: skip
    return {
        **asdict(job), "points": points, "held_out": len(unseen), "prompts": held_out, "step": meter.steps,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


# --- the figures ---------------------------------------------------------------------------------------------------

Run = dict[str, Any]


def settled(runs: list[Run]) -> Run:
    """Return one run in which every time and peak is the median over the runs of one side."""
    steps = [
        {part: statistics.median(step[part] for step in same) for part in same[0]}
        for same in zip(*(run["step"] for run in runs), strict=True)
    ]
    names = ("once", "reference", "peak", "before_loading", "before_training")
    medians = {name: statistics.median(run[name] for run in runs) for name in names}
    return {**runs[0], **medians, "step": steps, "pairs": runs[0]["batch"] * len(steps), "runs": len(runs)}


def pairs_per_second(run: Run, epochs: int) -> float:
    """Return the rate at which a run goes over the whole workload, put together from the parts that were measured.

    Each pair costs its share of the steps after the first, every epoch, and its share of the reference's pass, once.
    What the first step took beyond its tokens' share, the check of the reference, and what comes before and after its
    pass, are paid once for all pairs.
    """
    first, *steps = run["step"]
    seconds, tokens = (sum(step[name] for step in steps) for name in ("seconds", "tokens"))
    once = run["once"] + max(0.0, first["seconds"] - first["tokens"] * seconds / tokens)
    a_pair = epochs * seconds / (run["batch"] * len(steps)) + run["reference"] / run["pairs"]
    return float(epochs * run["usable"] / (once + run["usable"] * a_pair))


def efficiency(run: Run) -> list[str]:
    """Return shares of a product rate: steps, without AdamW, a first epoch, steps of the best rate, the model alone."""
    rates = {kind: max(of_shape.values()) for kind, of_shape in run["rates"].items()}
    rate = rates[run["precision"]]
    best = max(rate for kind, rate in rates.items() if kind.startswith(run["precision"]))
    steps, flops = run["step"][1:], sum(run["flops"][1:])
    a_pair = flops / (run["batch"] * len(steps)) + run["reference_flops"] / run["pairs"]
    whole, inner = (sum(step["seconds"] for step in steps), sum(step["forward"] + step["backward"] for step in steps))
    return [
        *(f"{flops / each / rate:.0%}" for each in (whole, inner)),
        f"{a_pair * pairs_per_second(run, 1) / rate:.0%}",
        f"{flops / whole / best:.0%}",
        f"{run['bare'] / rate:.0%}",
    ]


def spread(values: Sequence[float]) -> str:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def table(columns: Sequence[str], lines: Iterator[Sequence[str]]) -> None:
    for line in (columns, ["---"] * len(columns), *lines):
        print("| " + " | ".join(line) + " |")
    print()


def compared(own: Run, peer: Run, epochs: int) -> list[str]:
    """Return rates, step times and peak memory beside a peer's."""
    cells = []
    for count in (1, epochs):
        ours, theirs = pairs_per_second(own, count), pairs_per_second(peer, count)
        cells.append(f"{ours:.2f} : {theirs:.2f} = **{ours / theirs:.2f}**")
    times = [theirs["seconds"] / mine["seconds"] for mine, theirs in zip(own["step"][1:], peer["step"][1:], strict=True)]
    memory = f"{own['peak'] / 1e9:.2f} : {peer['peak'] / 1e9:.2f} = **{own['peak'] / peer['peak']:.2f}**"
    return [*cells, spread(times), memory]


def measured(run: Run) -> list[str]:
    """Return one side's step times, tokens and peak as they were measured."""
    steps = run["step"][1:]
    parts = [f"{statistics.median(step[part] for step in steps):.2f}" for part in ("forward", "backward", "optimiser")]
    tokens = sum(step["tokens"] for step in run["step"]) / run["pairs"]
    memory = [f"{size / 1e9:.2f}" for size in (run["peak"], run["peak"] - run["before_loading"])]
    count = f"{len(steps)} x {run['batch']} ({run['runs']})"
    times = spread([step["seconds"] for step in steps])
    return [run["side"], count, times, *parts, f"{run['reference']:.2f}", f"{tokens:.0f}", *memory, f"{run['loss']:.4f}"]


NOTES = """
Pairs per second are those of the whole workload, put together from measured parts: the steps after the first, the
reference's pass over the drawn pairs (once), and what is paid once for all pairs. "TRL, reference first" stores the
reference's log-probs before it trains; "TRL as it comes" checkpoints gradients, which is its default.
Step times are medians with quartiles; peer/own compares them batch by batch. Tokens per pair are all that the models
were given while training, with padding, and with TRL's reference where it runs in each step. Peak GB is that of the
process, own GB is without what it held before the model was loaded. Efficiency is the tree's FLOPs over PyTorch's best
product rate in this precision, in the steps and in a first epoch with its reference; it may pass 100 % where tiebreak
has fp32 products done by oneDNN, whose rate is that of "the best rate". "Our products" gives TRL these, too.
"""


def print_speed(runs: list[Run], epochs: int) -> None:
    sides: dict[tuple[str, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        sides[run["workload"], run["precision"]][run["side"]].append(run)
    cases = {case: {side: settled(same) for side, same in both.items()} for case, both in sides.items()}
    rates = ["pairs/s, first epoch", f"pairs/s over {epochs} epochs", "step time, peer/own", "peak GB"]
    table(
        ["workload", "precision", "own", "peer", *rates],
        (
            [*case, own, side, *compared(both[own], run, epochs)]
            for case, both in cases.items()
            for side, run in both.items()
            for own in (OURS, CHECKPOINTED)
            if side not in (OURS, CHECKPOINTED) and (own == OURS or ("as it comes" in side and own in both))
        ),
    )
    table(
        [
            "workload",
            "precision",
            "efficiency, steps",
            "forward and backward alone",
            "with the reference, first epoch",
            "steps, of the best rate",
            "the model alone, 1,024 tokens",
        ],
        ([*case, *efficiency(both[OURS])] for case, both in cases.items() if both[OURS]["rates"]),
    )
    parts = ["side", "steps x pairs (runs)", "s per step", "forward", "backward", "optimiser", "reference s"]
    table(
        ["workload", "precision", *parts, "tokens per pair", "peak GB", "own GB", "loss"],
        ([*case, *measured(run)] for case, both in cases.items() for run in both.values()),
    )
    for case, both in cases.items():
        own = both[OURS]
        trees = f"; the trees hold {sum(own['tree_tokens']) / own['pairs']:.0f} tokens per pair" if own["tree_tokens"] else ""
        print(f"{', '.join(case)}: {own['pairs']} of {own['usable']} usable pairs ({own['cut']} of these cut to fit){trees}.")
        for kind, of_shape in own["rates"].items():
            for shape, rate in of_shape.items() if kind.startswith(own["precision"]) else ():
                print(f"  {kind}, {shape}: {rate / 1e9:.0f} GFLOP/s")
    print(NOTES)


def print_vocabulary(runs: list[Run]) -> None:
    lines = []
    for run in runs:
        peak_above, first_above = (one["peak"] - one["before_loading"] for one in (run, runs[0]))
        growth = peak_above - run["own"] - (first_above - runs[0]["own"])
        sizes = [f"{size / 1e9:.2f}" for size in (peak_above, run["own"], peak_above - run["own"])]
        cells = [f"{run['vocabulary']:,}", f"{run['completion_tokens']:.0f}", *sizes]
        lines.append([*cells, f"{growth / 1e9:+.2f} ({growth / first_above:+.0%} of the first peak)"])
    columns = [
        "vocabulary",
        "completion tokens per step",
        "peak GB",
        "weights, gradients, AdamW GB",
        "rest GB",
        "growth of the rest GB",
    ]
    table(columns, iter(lines))


def print_curves(runs: list[Run]) -> None:
    sides = {side: [run for run in runs if run["side"] == side] for side in ORDERS}
    lines = []
    for at, point in enumerate(runs[0]["points"]):
        cells = [str(point["step"])]
        for name in ("loss", "accuracy"):
            for same in sides.values():
                values = [run["points"][at][name] for run in same]
                cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})")
        lines.append(cells)
    columns = [f"held-out {name}, {side}" for name in ("loss", "accuracy") for side in sides]
    table(["steps", *columns], iter(lines))
    tokens = [f"{side} {statistics.mean(s['tokens'] for run in same for s in run['step']):.0f}" for side, same in sides.items()]
    about = f"{runs[0]['held_out']} held-out pairs of {runs[0]['prompts']} prompts; learning rate {CURVE_LEARNING_RATE:g}"
    print(f"Mean and range over {len(sides[OURS])} seeds; {about}; tokens per step: {', '.join(tokens)}.")


# --- the commands --------------------------------------------------------------------------------------------------


def spawn(job: Job) -> Run:
    """Run one measurement in a process of its own, with caches of its own that start empty."""
    words = [job.part, job.workload, job.precision, job.side, f"{job.vocabulary:,}" if job.vocabulary else ""]
    print("  " + ", ".join(filter(None, words)), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        own = {"BENCHMARK_FOLDER": folder, "XDG_CACHE_HOME": folder, "HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        quiet = {
            "TQDM_DISABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",
        }
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--child", json.dumps(asdict(job)), str(result)]
        if subprocess.run(command, env={**os.environ, **own, **quiet}, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit(1)
        measured: Run = json.loads(result.read_text())
        return measured


def child(job: Job, result: Path) -> None:
    from tiebreak.records import InputError

    try:
        part = {"speed": measure_speed, "t5": measure_speed, "vocabulary": measure_vocabulary, "curves": measure_curve}[job.part]
        result.write_text(json.dumps(part(job)))
    except InputError as error:
        sys.exit(f"benchmark: {error}")


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield the measurements in their order; tiebreak's turn comes before each peer's."""
    parts = [part for part in ("t5", "vocabulary", "curves") if getattr(options, part)] or ["speed"]
    shared = {"data": str(options.data), "steps": options.steps, "seed": options.seed, "max_length": options.max_length}
    for part in parts:
        model = options.model or ("flan-t5-small-titles" if part == "t5" else "smollm2-135m-instruct")
        some = Job(part=part, side=OURS, model=str(options.models / model), workload="youtube_titles", precision="fp32", **shared)
        if part == "vocabulary":
            yield from (replace(some, vocabulary=size) for size in (49_152, 262_144))
        elif part == "curves":
            seeds = range(options.seed, options.seed + options.seeds)
            yield from (replace(some, side=side, seed=seed) for seed in seeds for side in ORDERS)
        else:
            peers = [PLAIN, f"{PLAIN}, our products"] if part == "t5" else [CHECKPOINTED, *TRL] if options.peer == "trl" else []
            for workload, precision in ((w, p) for w in options.workload for p in options.precision):
                one = replace(some, workload=workload, precision=precision)
                for peer in peers * options.rounds:
                    if not (precision == "bf16" and peer.endswith("our products")):  # they are of fp32
                        yield from (one, replace(one, side=peer))
                if not peers:
                    yield from [one] * options.rounds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of model folders")
    parser.add_argument("--data", type=Path, required=True, help="folder of the workloads' data")
    parser.add_argument("--model", help="model folder in --models, instead of the usual one")
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument(
        "--steps", type=int, help="steps that are timed, after one that is not (8; vocabulary: 3; curves: an epoch)"
    )
    parser.add_argument("--epochs", type=int, default=3, help="of the second rate")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2, help="of the learning curves")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--peer", choices=["trl", "none"], default="trl")
    parser.add_argument("--t5", action="store_true", help="an encoder-decoder beside a plain implementation")
    parser.add_argument("--vocabulary", action="store_true", help="peak memory with a large vocabulary")
    parser.add_argument("--curves", action="store_true", help="held-out pairs while training, pairs in three orders")
    parser.add_argument("--out", type=Path, help="JSON file for everything that was measured")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Job(**json.loads(sys.argv[2])), Path(sys.argv[3]))
        return
    options = parse()
    todo = [*jobs(options)]
    needed = {Path(job.model) for job in todo} | {
        options.data / WORKLOADS[job.workload][0] for job in todo if job.part != "vocabulary"
    }
    for path in sorted(needed):
        if not path.exists():
            print(f"benchmark: {path}: not found; see --models and --data", file=sys.stderr)
            sys.exit(2)
    if any(job.side in TRL for job in todo) and importlib.util.find_spec("trl") is None:
        print("benchmark: TRL is not installed; pip install -e '.[dev]', or --peer none", file=sys.stderr)
        sys.exit(2)
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", *(["trl"] if options.peer == "trl" else []))
    )
    facts = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "packages": packages}
    runs: list[Run] = []
    for number, job in enumerate(todo, start=1):
        print(f"{number} of {len(todo)}", file=sys.stderr, flush=True)
        runs.append(spawn(job))
        if options.out is not None:  # after each, so that a break loses one
            options.out.write_text(json.dumps({"facts": facts, "runs": runs}, indent=1))
    machine = f"{runs[0].get('device', 'CPU')}, {facts['cores']} cores, {runs[0]['threads']} threads"
    print(f"{machine}, load {facts['load']:.1f} at the start; {packages}\n")
    for part in dict.fromkeys(run["part"] for run in runs):
        same = [run for run in runs if run["part"] == part]
        if part == "vocabulary":
            print_vocabulary(same)
        elif part == "curves":
            print_curves(same)
        else:
            print_speed(same, options.epochs)


if __name__ == "__main__":
    main()
