"""Training checkpoints: writing them, and continuing an interrupted training from them."""
