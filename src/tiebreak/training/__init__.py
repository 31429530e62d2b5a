"""The engine: preference trees, log-probs, losses, and a thin Trainer."""
