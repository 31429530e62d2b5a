"""Files that other tools wrote, and rows of any source, as records."""
