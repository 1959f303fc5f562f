"""What earlier runs tell: costs, the history of a model, and why a step ran."""
