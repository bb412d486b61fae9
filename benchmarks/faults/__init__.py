"""What was tried to break a run, and what it cost. Results: docs/reliability.md."""
