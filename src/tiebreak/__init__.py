"""tiebreak: from prompts to a preference-tuned language model, and an honest answer whether it got better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

__version__ = "0.1.0"
__all__ = ["PreferenceConfig", "PreferenceTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the trainer when it is first asked for: it takes torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tiebreak.training import trainer

    return getattr(trainer, name)
