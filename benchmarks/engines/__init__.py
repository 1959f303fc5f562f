"""One module an engine, each with `run(job, gate)`: from the raw files of a case to an evaluated model."""
