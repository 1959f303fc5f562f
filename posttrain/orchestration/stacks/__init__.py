"""ZenML stacks and the schedules on them."""
