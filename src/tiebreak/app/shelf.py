"""The models that can be asked: what a run has made, what is typed in; each is loaded once, when it is first asked."""

from __future__ import annotations

import gc
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from tiebreak import models
from tiebreak.recipe import ApiModel, ApiSampler, Endpoint, LocalModel, LocalSampler, Model
from tiebreak.records import InputError
from tiebreak.run import TRAINING, Run
from tiebreak.samplers.api import PRESETS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Choice = Model | Endpoint

SPARE = 256 << 20
"""Bytes that are to be free beside a model's weights: for what it remembers of a chat, and for what it computes."""
CGROUP = Path("/sys/fs/cgroup")


# --- what there is to ask ------------------------------------------------------------------------------------------


def models_of(run: Run) -> dict[str, Choice]:
    """Return the models of a run by name: base, what training made, its checkpoints, and others that its recipe names."""
    own = run.recipe.model
    made = {"tuned" if stage == "train" else stage: run.training(stage).model for stage in TRAINING}
    # One that is being written, or that a crash left so, has no config yet, or not all of its weights.
    steps = {folder.name: folder for folder in run.train.glob("checkpoint-*") if (folder / "complete").is_file()}
    made |= dict(sorted(steps.items(), key=lambda step: (len(step[0]), step[0])))
    found: dict[str, Choice] = {"base": own}
    for name, folder in made.items():
        if folder.is_dir():
            found[name] = own.model_copy(update={"name_or_path": str(folder.resolve()), "revision": None})
    for other in (*run.recipe.generate, *(run.recipe.evaluate.models if run.recipe.evaluate else ())):
        match other:
            case ApiModel(provider="local"):
                found[other.model] = Model(name_or_path=other.model)
            case ApiSampler() | ApiModel():
                found[other.model] = Endpoint.model_validate(other.model_dump(include=set(Endpoint.model_fields)))
            case LocalSampler(model=Model() as model) | LocalModel(model=model):
                found[Path(model.name_or_path).name] = model
    return found


def named(name: str) -> Choice:
    """Return the model that somebody typed in: a Hub id, a folder, a builtin, `provider: model` or `address: model`.

    No key goes to an address that is typed in; a recipe can say which one does. Raises InputError.
    """
    provider, colon, model = (part.strip() for part in name.partition(": "))
    if not colon:
        return Model(name_or_path=name.strip())
    server = {"provider": provider} if provider in PRESETS else {"provider": "custom", "base_url": provider}
    try:
        return Endpoint.model_validate({**server, "model": model})
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        providers = ", ".join(name for name in PRESETS if name != "custom")
        raise InputError(f"model {name}: {what}; before the colon stands http://…, https://… or one of {providers}") from None


# --- what is loaded ------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A model that is ready to answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stops: list[int]
    """Ids that end an answer."""


class _Held:
    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.lent = loaded, 0


Key = tuple[Model, tuple[tuple[str, int, int], ...]]
"""A model, and the names, sizes and times of its files: what was trained anew is another model."""


class Shelf:
    """Loaded models, the one that was asked last at the end; what stands first makes room where memory is short."""

    def __init__(self, free: Callable[[], int] | None = None) -> None:
        """`free` tells the bytes of memory that a model could take."""
        self._free = free or free_memory
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._changing, self._loading = threading.Lock(), threading.Lock()

    def __contains__(self, model: Model) -> bool:
        """Tell whether a model is loaded."""
        return any(key[0] == model for key in list(self._held))

    @contextmanager
    def borrow(self, model: Model) -> Iterator[Loaded]:
        """Lend a model, and load it first where that is owed; while it is lent it stays. Raises InputError."""
        models.check(model)
        key = model, _stamp(model)
        held = self._take(key)
        if held is None:
            with self._loading:  # one after the other: two at a time would count on the same memory
                held = self._take(key) or self._load(key)
        try:
            yield held.loaded
        finally:
            with self._changing:
                held.lent -= 1

    def _take(self, key: Key) -> _Held | None:
        with self._changing:
            held = self._held.get(key)
            if held is not None:
                held.lent += 1
                self._held.move_to_end(key)
            return held

    def _load(self, key: Key) -> _Held:
        from tiebreak.samplers import local

        model, _ = key
        self._make_room(model)
        try:
            held = _Held(Loaded(*local.load(model)))
        except (MemoryError, RuntimeError) as error:  # torch's is one of the latter
            raise InputError(
                f"model {model.name_or_path}: cannot be loaded: {str(error).strip().splitlines()[0][:160]}"
            ) from None
        held.lent = 1
        with self._changing:
            self._held[key] = held
        return held

    def _make_room(self, model: Model) -> None:
        """Unload what is out of date, and what was not asked for longest, until a model has room. Raises InputError."""
        self._unload(lambda key: key[0] == model)  # trained anew
        needed = weight(model)
        while needed and (free := self._free()) < needed + SPARE:
            if not self._unload(lambda _: True, most=1):
                also = ", and what else is loaded is answering" if self._held else ""
                raise InputError(
                    f"model {model.name_or_path}: takes {_size(needed + SPARE)} of memory, and {_size(free)} is free{also}; "
                    "close other programs, or choose a smaller model"
                )

    def _unload(self, which: Callable[[Key], bool], most: int | None = None) -> int:
        """Unload models that are not lent, those that were not asked for longest first, and return how many."""
        with self._changing:
            idle = [key for key, held in self._held.items() if not held.lent and which(key)][:most]
            for key in idle:
                del self._held[key]
        if idle:
            _give_back()
        return len(idle)


def free_memory() -> int:
    """Return the bytes that are free where models are put: on the GPU where there is one, else in main memory."""
    import torch

    if models.device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    import psutil  # accelerate needs it too

    return int(min(psutil.virtual_memory().available, _container()))


def _container() -> float:
    """Return the bytes that this container has left (cgroup v2), infinity where it has no limit."""
    try:
        most, used, details = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = dict(line.split() for line in details.splitlines())["inactive_file"]  # files that would make way
        return int(most) - int(used) + int(cached)
    except (OSError, ValueError, KeyError):  # no such files, or "max"
        return math.inf


def _give_back() -> None:
    """Have the memory of models that nobody holds any longer be free: they refer to themselves."""
    import torch

    gc.collect()
    if models.device().type == "cuda":
        torch.cuda.empty_cache()


def weight(model: Model) -> int:
    """Return the bytes that a model's weights take once they are loaded; 0 where that cannot be told beforehand."""
    import torch

    each = torch.bfloat16.itemsize if models.has_bf16(models.device()) else torch.float32.itemsize
    return each * _parameters(model)


def _parameters(model: Model) -> int:
    folder = _folder(model)
    if folder is None:
        from huggingface_hub import get_safetensors_metadata

        try:
            return sum(get_safetensors_metadata(model.name_or_path, revision=model.revision).parameter_count.values())
        except Exception:  # not there, not to be reached, in another format: loading it will say which
            return 0
    own = sum(map(_numbers, folder.glob("*.safetensors")))
    return own + (_parameters(models.base_of(folder, model)) if (folder / models.ADAPTER).is_file() else 0)


def _numbers(weights: Path) -> int:
    """Return how many numbers a file of weights holds, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  no mapping
    except SafetensorError:  # loading it will say so
        return 0


def _folder(model: Model) -> Path | None:
    """Return the folder of a model's files, None where they are not on this machine yet."""
    from huggingface_hub import try_to_load_from_cache

    name = models.locate(model)[0]
    if Path(name).is_dir():
        return Path(name)
    config = try_to_load_from_cache(name, "config.json", revision=model.revision)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and any(folder.glob("*.safetensors")) else None


def _stamp(model: Model) -> tuple[tuple[str, int, int], ...]:
    folder = Path(model.name_or_path).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return tuple((file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()])


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
