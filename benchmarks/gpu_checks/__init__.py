"""Checks of the training path on a GPU. `benchmarks/gpu.py` runs them, each in a process of its own."""
