"""Layouts of preference datasets, one module each."""
