"""Commands of an operator: stacks, schedules, clean-up, history."""
