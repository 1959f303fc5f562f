"""Services for running steps: the step decorator, MLflow, training checkpoints, files."""
