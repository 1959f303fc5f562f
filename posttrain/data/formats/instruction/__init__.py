"""Layouts whose rows are an instruction and its response, a module each."""
