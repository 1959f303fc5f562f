"""Runs of collect_pipeline: the models that answer, where their answers are stored, and the pairs as a source."""
