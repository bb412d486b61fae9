"""The search compared with DSPy, with the physical limit, and with its own guarantees."""
