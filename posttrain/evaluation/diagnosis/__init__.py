"""Rules that find what is wrong with a run in its curves, figures and answers."""
