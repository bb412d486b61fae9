"""How much load one MLflow server can handle. Results: docs/operations.md."""
