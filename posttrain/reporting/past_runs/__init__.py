"""Earlier runs as people read them: costs, history, and what changed between two of them."""
