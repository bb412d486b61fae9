"""Simulations of what a verdict claims: `python -m benchmarks.proof.simulate`."""
