"""Benchmarks of lm-evaluation-harness: what each model scores on the same items, and what training gained or lost."""
