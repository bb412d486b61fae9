"""How often the promotion gate is wrong, and what a crash leaves behind. Results: docs/gate.md."""
