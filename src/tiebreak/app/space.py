"""A Hugging Face Space for a run's model: one page on which it answers beside the model that it was made from."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from pprint import pformat
from string import Template
from typing import Any

from tiebreak import hub, models
from tiebreak.app.asked import SAMPLING
from tiebreak.files import read_json, write_text
from tiebreak.publish.cards import known_as
from tiebreak.recipe import LocalSampling
from tiebreak.records import InputError
from tiebreak.run import Run

EXAMPLES = 6
"""Test prompts that the page offers; they are published with it."""
NEEDED = ("torch", "transformers")
"""What the Space installs besides Gradio, in the versions that are here."""

APP = Template('''"""$title: models answer one prompt side by side. Written by tiebreak."""

import threading

import gradio as gr
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TextIteratorStreamer

MODELS = $models
SYSTEM = $system
EXAMPLES = $examples
SAMPLING = $sampling
ENCODER_DECODER = $encoder_decoder
REMOTE_CODE = $remote_code

loaded = {}


def load(name):
    if name not in loaded:
        kind = AutoModelForSeq2SeqLM if ENCODER_DECODER else AutoModelForCausalLM
        model = kind.from_pretrained(name, dtype="auto", use_safetensors=True, trust_remote_code=REMOTE_CODE)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=REMOTE_CODE)
        loaded[name] = model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
    return loaded[name]


def encode(tokenizer, text):
    """Write a prompt as in training: in the chat template, whose marks are the only ones, or plainly with a blank line."""
    if tokenizer.chat_template:
        system = [{"role": "system", "content": SYSTEM}] if SYSTEM else []
        chat = [*system, {"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")
    text = "\\n\\n".join(part for part in (SYSTEM, text) if part)
    return tokenizer(text if ENCODER_DECODER else text + "\\n\\n", return_tensors="pt")


def stream(name, text):
    model, tokenizer = load(name)
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = encode(tokenizer, text)
    inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
    problems = []

    def write():
        try:
            model.generate(**inputs, **SAMPLING, eos_token_id=sorted(ends) or None, streamer=streamer)
        except Exception as error:
            problems.append(error)
            streamer.end()

    threading.Thread(target=write, daemon=True).start()
    said = ""
    for piece in streamer:
        said += piece
        yield said
    if problems:
        raise problems[0]


def answer(text):
    if not text.strip():
        raise gr.Error("The prompt is empty.")
    said = dict.fromkeys(MODELS, "")
    yield list(said.values())
    for label, name in MODELS.items():
        for said[label] in stream(name, text):
            yield list(said.values())


with gr.Blocks(title=$page) as demo:
    prompt = gr.Textbox(label="Prompt", lines=4)
    go = gr.Button("Answer", variant="primary")
    with gr.Row():
        texts = [gr.Textbox(label=label, lines=8, max_lines=24, interactive=False) for label in MODELS]
    if EXAMPLES:
        gr.Examples([[example] for example in EXAMPLES], prompt, label="Prompts that training never saw")
    gr.on([go.click, prompt.submit], answer, prompt, texts, show_progress="minimal")

if __name__ == "__main__":
    demo.launch()
''')

README = """
# $title

$who on one prompt, side by side. $made

$sentence
$examples
A model that is private needs a token that may read it, in the secret `HF_TOKEN` of this Space.
"""


def write_space(run: Run, folder: Path, model_id: str) -> list[Path]:
    """Write a Space for the run's model, which is on the Hub as `model_id`: app.py, README.md, requirements.txt.

    The first of the run's test prompts stand in it as examples. Raises InputError.
    """
    from huggingface_hub import SpaceCardData

    hub.check_id("--model", model_id)
    if not run.tuned.is_dir():
        raise InputError(f"{run.path}: no model was trained, so there is none to show; run `tiebreak train {run.path}` first")
    title, base = f"{model_id.rpartition('/')[2]} playground", _base(run)
    shown = {"tuned": model_id} | ({"base": base} if base else {})
    adapter = (run.tuned / models.ADAPTER).is_file()
    examples = [prompt.text for prompt in run.prompts() if prompt.split == "test"][:EXAMPLES]
    settings = run.recipe.evaluate or LocalSampling()
    values: dict[str, Any] = {
        "models": shown,
        "system": run.recipe.prompts.system or "",
        "examples": examples,
        "sampling": _sampling(settings),
        "encoder_decoder": _encoder_decoder(run, adapter=adapter),
        "remote_code": run.recipe.model.trust_remote_code,
        "page": title,
    }
    app = APP.substitute({name: pformat(value, width=120, sort_dicts=False) for name, value in values.items()}, title=title)
    card = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        app_file="app.py",
        models=list(shown.values()),
        tags=["tiebreak"],
    )
    readme = Template(README).substitute(
        title=title,
        who="The tuned model and its base" if base else "The tuned model",
        made=f"tiebreak made `{model_id}`{f' from `{base}`' if base else ''}.",
        sentence=_sentence(run),
        examples=f"\nThe {len(examples)} examples are test prompts of the run.\n" if examples else "",
    )
    installed = [*NEEDED, *(["peft"] if adapter else [])]
    files = {
        "app.py": app,
        "README.md": f"---\n{card.to_yaml()}\n---\n{readme}",
        "requirements.txt": "".join(f"{name}=={metadata.version(name).partition('+')[0]}\n" for name in installed),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _base(run: Run) -> str | None:
    """Return what the model that training began with is called on the Hub, None where it is on this machine alone."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name, _ = known_as(run.recipe.model.name_or_path)
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return name


def _sampling(settings: LocalSampling) -> dict[str, Any]:
    """Return what `generate` is told, nothing of it left to what a model's own settings say."""
    if settings.temperature == 0:
        return {"do_sample": False, "max_new_tokens": settings.max_new_tokens}
    return {"do_sample": True, **{name: getattr(settings, name) for name in SAMPLING}}


def _encoder_decoder(run: Run, *, adapter: bool) -> bool:
    if adapter:
        return bool(read_json(run.tuned / models.ADAPTER).get("task_type") == "SEQ_2_SEQ_LM")
    return bool(read_json(run.tuned / "config.json").get("is_encoder_decoder"))


def _sentence(run: Run) -> str:
    """Return what the run says of its model."""
    verdict = read_json(run.summary_json)["verdict"] if run.summary_json.exists() else {}
    return str(verdict.get("sentence", ""))
