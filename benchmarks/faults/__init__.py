"""Attempts to break a run, and what tracking costs. Results: docs/reliability.md."""
