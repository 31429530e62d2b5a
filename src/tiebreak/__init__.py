"""tiebreak: from prompts to a preference-tuned language model, and an honest answer whether it got better."""

__version__ = "0.1.0"
