"""Preference pairs and instructions: loading them from their sources, checked and split, and storing them."""

from posttrain.data.loader import load_instructions, load_pairs, load_preferences
from posttrain.data.stored import EXAMPLE_SCHEMA, PAIR_SCHEMA, Instructions, Preferences

__all__ = [
    "EXAMPLE_SCHEMA", "PAIR_SCHEMA", "Instructions", "Preferences", "load_instructions", "load_pairs", "load_preferences",
]  # fmt: skip
