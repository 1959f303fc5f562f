"""The loop: rounds of collecting pairs and training on them, as a sequence of pipeline runs."""
