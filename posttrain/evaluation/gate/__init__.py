"""The promotion gate: the decision, and one module per kind of condition."""
