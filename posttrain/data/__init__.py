"""Reads data from files, S3, the Hub or the built-in demo, checks it and splits it."""
