"""Cache keys of steps, from the code that each step uses."""
