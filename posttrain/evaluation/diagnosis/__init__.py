"""Rules that detect problems of a run from its training curves, metrics and answers."""
