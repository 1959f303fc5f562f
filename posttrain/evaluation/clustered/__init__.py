"""Uncertainty of figures: prompts as the unit of sampling, paired gains with their tests, and statistical power."""
