"""Training checkpoints: saving them, and continuing an interrupted training from them."""
