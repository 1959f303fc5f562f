"""The answers that models write: generation, judging, figures."""
