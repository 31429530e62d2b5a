"""The door: one command per verb, nothing else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import tiebreak

if TYPE_CHECKING:
    from tiebreak.run import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From prompts to a preference-tuned language model, and an honest answer whether it got better.",
)

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe (demo), or a run directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Replace values, e.g. train.beta=0.05.")]
RunDir = Annotated[Path | None, typer.Option("--run", help="Run directory. Default: runs/<name of the recipe>.")]
Profile = Annotated[str | None, typer.Option(help="A profile of the recipe.")]
Redo = Annotated[str | None, typer.Option(metavar="STAGE", help="Delete what STAGE made and all that came of it; then repeat.")]
Accept = Annotated[
    bool,
    typer.Option("--accept-canary-failures", help="Go on with judges that fail questions with a known answer; the report tells."),
]
ExistingRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]

STAGE_HELP = {
    "prepare": "Read or write the prompts, filter them, split them into train and test.",
    "generate": "Draw several completions for every prompt; asks again for those that failed.",
    "judge": "Have the judges decide; asks again where the answer was an error.",
    "pair": "Turn verdicts into preference pairs, and count what did not become one.",
    "pretrain": "Go on with raw text, where the recipe has a section pretrain.",
    "sft": "Teach the model completions, where the recipe has a section sft.",
    "train": "Train the model on the pairs.",
    "evaluate": "Compare models, as they stand before and after training or any others, on held-out prompts.",
    "report": "Write report.html.",
}


@app.command()
def run(
    recipe: RecipeArg,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    profile: Profile = None,
    *,
    redo: Redo = None,
    accept_canary_failures: Accept = False,
) -> None:
    """Go through all stages, from prompts to the report; go on where an earlier start stopped."""
    from tiebreak.api import check_stage, whole

    _refuse_several("run")
    check_stage(redo)
    current = _open(recipe, overrides, run_dir, profile)
    with _at_work(current):
        if accept_canary_failures:
            current.accept_canary_failures()
        whole(current, redo)
    print(current.report_html)


def _stage_command(stage: str) -> None:
    def command(
        recipe: RecipeArg,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        profile: Profile = None,
        *,
        redo: Annotated[
            bool, typer.Option("--redo", help="Delete what this stage made and all that came of it; then repeat.")
        ] = False,
        accept_canary_failures: Accept = False,
    ) -> None:
        from tiebreak.run import TRAINING
        from tiebreak.stages import check, perform

        if stage not in TRAINING:
            _refuse_several(stage)
        current = _open(recipe, overrides, run_dir, profile)
        _refuse_variants(current, stage)
        with _at_work(current):
            if accept_canary_failures:
                current.accept_canary_failures()
            check(current, [stage])
            if redo:
                current.redo(stage)
            # A model that is trained is not trained again unless asked: --redo.
            perform(current, stage, again=stage not in TRAINING)

    app.command(stage, help=STAGE_HELP[stage])(command)


for _name in STAGE_HELP:
    _stage_command(_name)


@app.command()
def iterate(
    recipe: RecipeArg,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    profile: Profile = None,
    *,
    rounds: Annotated[int | None, typer.Option(min=1, help="The most rounds. Default: iterate.rounds of the recipe.")] = None,
    accept_canary_failures: Accept = False,
) -> None:
    """Repeat the stages in rounds, each from the model that the one before made, until one shows no gain or drifts off."""
    from tiebreak.loops.iterate import iterate as go_round
    from tiebreak.records import InputError

    _refuse_several("iterate")
    if (Path(recipe) / "recipe.json").is_file():
        raise InputError(f"iterate: {recipe} is a run directory; name the recipe, and where its rounds are with --run {recipe}")
    current = _open(recipe, overrides, run_dir, profile)
    with _at_work(current):
        if accept_canary_failures:
            current.accept_canary_failures()
        loop = go_round(current, rounds)
    print(loop.sentence)
    if loop.rows:
        print(current.report_html)


@app.command()
def search(
    recipe: RecipeArg,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    profile: Profile = None,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all. Default: search.n_trials of the recipe.")] = None,
    accept_canary_failures: Accept = False,
) -> None:
    """Try other settings on a part of the training prompts; train the best on all of them, and test it once.

    The same command in a second terminal joins in.
    """
    from tiebreak.loops import search as searching
    from tiebreak.recipe_yaml import find_recipe
    from tiebreak.records import InputError

    _refuse_several("search")
    if (Path(recipe) / "recipe.json").is_file():
        raise InputError(f"search: {recipe} is a run directory; name the recipe, and where its trials are with --run {recipe}")
    current = searching.start(find_recipe(recipe), run_dir, profile, tuple(overrides or ()))
    _refuse_variants(current, "search")
    if accept_canary_failures:
        current.manifest["accepts_canary_failures"] = True  # written with the trials
    try:
        print(searching.search(current, trials).sentence)
    except KeyboardInterrupt:
        print("tiebreak: stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    print(current.report_html)


@app.command()
def status(run_dir: ExistingRun) -> None:
    """Show how far a run is and what each stage counted."""
    from tiebreak.run import Run
    from tiebreak.samplers.ledger import spent
    from tiebreak.stages import describe

    current = Run(run_dir)
    held = current.held()
    for stage in current.stages:
        state, counts = current.state(stage), current.counts(stage)
        if state == "running" and not held:
            state = "killed"
        print(f"{stage:9} {state:8} {describe(stage, counts) if counts else ''}".rstrip())
    for part, used in spent(current.calls_sqlite).items():
        print(f"{part}: {used}")


@app.command()
def show(run_dir: ExistingRun, prompt_id: Annotated[str, typer.Argument(metavar="PROMPT_ID")]) -> None:
    """Show one prompt's whole life: its completions, verdicts, pairs, and what both models answer now."""
    from tiebreak.run import Run
    from tiebreak.show import life

    print(life(Run(run_dir), prompt_id))


@app.command()
def audit(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A recipe, a run directory, or a file of pairs.")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    profile: Profile = None,
    *,
    held_out: Annotated[Path | None, typer.Option(help="For a file: a second one, with pairs that are not trained on.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="For a file: the model whose tokens training would see.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 at a warning too, not only at an error.")] = False,
) -> None:
    """Say what is wrong with pairs before anybody trains on them."""
    from tiebreak.stages import audit as auditing
    from tiebreak.stages import check, perform

    if Path(target).suffix in (".jsonl", ".json", ".csv", ".parquet"):
        findings = tuple(auditing.audit_file(Path(target), tokenizer, held_out))
    else:
        current = _open(target, overrides, run_dir, profile)
        _refuse_variants(current, "audit")
        with _at_work(current):
            check(current, ["audit"])
            perform(current, "audit", again=True)
        findings = auditing.read_findings(current)
    for line in auditing.lines(findings):
        print(line)
    raise typer.Exit(auditing.exit_code(findings, strict=strict))


@app.command()
def compare(
    columns: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two or more run directories, or AlpacaEval's annotations.json files.")
    ],
) -> None:
    """Show runs side by side: their results, and the settings in which they differ."""
    from tiebreak.records import InputError
    from tiebreak.run import Run
    from tiebreak.stages.compare import compare as lines_of

    if len(columns) < 2:
        raise InputError("compare: name two runs or more")
    lines = lines_of([path if path.is_file() else Run(path) for path in columns])
    _print_table(("", *map(str, columns)), [[name, *cells] for name, cells in lines])


@app.command()
def gate(
    run_dir: ExistingRun,
    win_rate: Annotated[float | None, typer.Option(min=0, max=1, help="It wins more than this share, for certain.")] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="How certain.")] = 0.95,
    no_regression: Annotated[
        list[str] | None, typer.Option(metavar="MEASURE", help="A measure that is not worse; may be given again.")
    ] = None,
) -> None:
    """Exit with 0 where a run shows what is asked, with 1 where it does not, with 2 where it cannot be told."""
    from tiebreak.run import Run
    from tiebreak.stages.gate import gate as passes

    shown, why = passes(Run(run_dir), win_rate, confidence, no_regression or ())
    print(why)
    raise typer.Exit(0 if shown else 1)


judges = typer.Typer(no_args_is_help=True, help="Look at judges by themselves.")
app.add_typer(judges, name="judges")


@judges.command("check")
def judges_check(
    recipe: RecipeArg,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    profile: Profile = None,
    *,
    gold: Annotated[
        Path, typer.Option(help="Labelled comparisons: LLMBar, JudgeBench, .csv, .jsonl, or a run that people labelled.")
    ],
    judge: Annotated[list[str] | None, typer.Option(help="Only this judge; may be given again. Default: all.")] = None,
) -> None:
    """Say whether judges are fit to label: accuracy, flips, ties, length, cost and time on comparisons with known labels."""
    from tiebreak.stages.qualify import COLUMNS, cells, qualify_judges

    current = _open(recipe, overrides, run_dir, profile)
    with _at_work(current):
        rows = qualify_judges(current, gold, judge or ())
    _print_table(COLUMNS, [cells(name, row) for name, row in rows])
    for name, row in rows:
        print(f"{name}: {row.sentence}")


@app.command("app")
def open_app(
    runs: Annotated[Path, typer.Argument(metavar="RUNS_DIR", help="A directory of runs, or one run.")] = Path("runs"),
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is for other machines too.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 7860, or the next free one.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Open a public address, through Gradio's servers.")] = False,
    auth: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", envvar="TIEBREAK_APP_AUTH", show_envvar=True, help="Ask everybody for these."),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Whether the pages can start runs.")] = True,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in the browser.")] = False,
) -> None:
    """Open pages to try models, label pairs, watch, compare and start runs."""
    from tiebreak.app import app as open_pages

    user, _, password = (auth or "").partition(":")
    open_pages(
        runs, host=host, port=port, share=share, auth=None if auth is None else (user, password), start=start, inbrowser=browser
    )


@app.command()
def push(
    run_dir: ExistingRun,
    dataset: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Push the pairs to this dataset.")] = None,
    model: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Push the tuned model to this model.")] = None,
    *,
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a model trained with lora, the adapter. The default.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Of a model trained with lora, the whole model.")] = False,
    private: Annotated[bool, typer.Option("--private", help="For nobody else to see.")] = False,
    license: Annotated[str | None, typer.Option(metavar="ID", help="As the Hub spells it, e.g. apache-2.0.")] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the folder of a Space, too, in which --model answers.")
    ] = None,
    dry_run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write what would be sent, and send nothing.")] = None,
) -> None:
    """Push a run's pairs and its model to the Hugging Face Hub, with cards; go on where an earlier push stopped."""
    from tiebreak.publish.push import push as pushed
    from tiebreak.records import InputError
    from tiebreak.run import Run

    if adapter and merged:
        raise InputError("push: --adapter or --merged, not both")
    if space is not None and model is None:
        raise InputError("--space: is about a model on the Hub; name it with --model OWNER/NAME")
    current = Run(run_dir)
    with _at_work(current):
        if space is not None and model is not None:
            from tiebreak.app.space import write_space

            write_space(current, space, model)
            print(space)
        form: Literal["adapter", "merged"] | None = "adapter" if adapter else "merged" if merged else None
        for place in pushed(current, dataset, model, form, private=private, folder=dry_run, license=license):
            print(place)


@app.command()
def pull(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of pairs on the Hub, or a folder of that form.")],
    recipe: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe that starts from pushed pairs."""
    from tiebreak.publish.pull import pull as pulled

    for line in pulled(dataset, recipe):
        print(line)


@app.command("export")
def export_run(
    run_dir: ExistingRun,
    target: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", help="Where to write; a folder takes all splits.")],
    form: Annotated[
        Literal["parquet", "csv", "trl", "llama-factory", "jsonl", "alpaca_eval", "mt_bench"],
        typer.Option("--format", help="The last two: evaluated models' answers and verdicts; the others: pairs."),
    ],
) -> None:
    """Write pairs, or evaluated models' answers and verdicts, as files that other tools read."""
    from tiebreak.publish.export import export
    from tiebreak.run import Run

    for line in export(Run(run_dir), target, form):
        print(line)


@app.command("import")
def import_file(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv, .json, .jsonl or .parquet file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where to write the pairs.")],
    form: Annotated[
        Literal["argilla", "distilabel", "thumbs", "arena"],
        typer.Option("--format", help="Whose file: of these tools, a log of thumbs up and down, or of battles."),
    ],
    *,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Of thumbs: every answer with its label, for kto.")] = False,
) -> None:
    """Turn labels that people or other tools gave into pairs for a recipe's prompts.source."""
    from tiebreak.exchange.imports import import_labels

    for line in import_labels(source, form, target, unpaired=unpaired):
        print(line)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.yaml")) -> None:
    """Write a commented recipe to start from."""
    from tiebreak.recipe_yaml import SHIPPED
    from tiebreak.records import InputError

    if path.exists():
        raise InputError(f"{path}: is there already; name another file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")
    path.write_text((SHIPPED / "starter.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{path}: edit it, then run: tiebreak run {path}")


@app.command()
def keys(prefix: Annotated[str, typer.Argument(help="Only keys that start so, e.g. train.")] = "") -> None:
    """List every key of a recipe with its type, default and meaning."""
    from tiebreak.recipe_yaml import outline
    from tiebreak.records import InputError

    rows = [row for row in outline() if row[0].startswith(prefix)]
    if not rows:
        raise InputError(f"no key starts with {prefix!r}; tiebreak keys lists them all")
    for key, kind, default, meaning in rows:
        print(f"{key}  ({kind}{f', default {default}' if default not in ('', 'required') else ''})  {meaning}".rstrip())


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(f"tiebreak {tiebreak.__version__}")
        raise typer.Exit


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(Text(name)) for name in columns))
    for row in rows:
        table.add_row(*map(Text, row))  # not str, whose brackets rich would take for its own marks
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _refuse_several(command: str) -> None:
    """Raise InputError for a command that several processes would only get in each other's way at."""
    from tiebreak.records import InputError
    from tiebreak.run import TRAINING

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{command}: accelerate launch is for {', '.join(TRAINING)}; start this one without it")


def _refuse_variants(run: Run, command: str) -> None:
    """Raise InputError for a stage of a recipe that stands for several runs."""
    from tiebreak.records import InputError

    if names := list(run.recipe.variants):
        raise InputError(
            f"{command}: this recipe has the variants {', '.join(names)}, each a run of its own: tiebreak run makes them, and "
            f"tiebreak {command} {run.path / 'variants' / names[0]} then repeats a stage of one"
        )


def _open(recipe: str, overrides: list[str] | None, run_dir: Path | None, profile: str | None) -> Run:
    """Open the run of a recipe, or the run directory that was named in its place."""
    from tiebreak.api import open_run

    return open_run(recipe, profile, tuple(overrides or ()), run_dir)


@contextmanager
def _at_work(run: Run) -> Iterator[None]:
    """Hold the run; an interrupt ends in one line and exit code 130."""
    try:
        with run.lock():
            yield
    except KeyboardInterrupt:
        print("tiebreak: stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command; the user's mistakes end in one line and exit code 2."""
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        # Alone in its session, as the app starts it: an interrupt is meant for it, though a background job inherits that it
        # ignores them.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except Exception as error:
        from tiebreak.records import InputError  # not earlier: the help needs no pydantic

        if not isinstance(error, InputError):
            raise
        print(f"tiebreak: {error}", file=sys.stderr)
        sys.exit(2)
