"""Verifiers: scoring answers, and how good a verifier is on held-out questions."""
