"""Finds training pairs whose labels are probably wrong, by models that were not trained on them."""
