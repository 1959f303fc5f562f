"""The sections of a config: one pydantic model for each."""
