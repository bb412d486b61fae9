"""How much one MLflow server bears. Results: docs/operations.md."""
