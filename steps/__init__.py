"""One file per step. Each step unpacks its inputs, makes one call into the library, and publishes the result."""

from posttrain import configure

configure()  # before MLflow reads its variables
