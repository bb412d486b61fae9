"""The search against DSPy, against physics, and against its own promises."""
