"""tiebreak: from prompts to a preference-tuned language model, and an honest answer whether it got better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiebreak.training.sft import SftConfig, SftTrainer
    from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

__version__ = "0.1.0"
__all__ = ["PreferenceConfig", "PreferenceTrainer", "SftConfig", "SftTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the trainer when it is first asked for: it takes torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tiebreak.training.{'sft' if name.startswith('Sft') else 'trainer'}"), name)
