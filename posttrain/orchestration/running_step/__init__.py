"""What the steps of a pipeline use while they run: the step decorator, MLflow, training checkpoints, files."""
