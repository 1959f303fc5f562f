"""Who feeds whom."""

from pathlib import Path

from posttrain import configure

ROOT = Path(__file__).parent.parent

configure()  # before ZenML and MLflow read their variables
