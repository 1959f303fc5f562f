"""Layouts of OpenAssistant's message trees."""
