"""What leaves a run: files for other tools, and repositories on the Hub with their cards."""
