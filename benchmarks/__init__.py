"""Side-by-side measurements; run them as modules from the repository root."""
