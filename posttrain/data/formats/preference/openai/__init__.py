"""Layouts of OpenAI's datasets and API."""
