"""Layouts of instruction datasets, one module each."""
