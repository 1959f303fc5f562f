"""One file per pipeline: which step feeds which."""

from pathlib import Path

from posttrain import configure

ROOT = Path(__file__).parent.parent

configure()  # before ZenML and MLflow read their variables
