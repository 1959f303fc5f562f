"""Versions of a model in ZenML's Model Control Plane."""
