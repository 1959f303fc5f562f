"""Layouts whose rows become preference pairs, a module each."""
