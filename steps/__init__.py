"""One file a step. Each unpacks its inputs, makes one call into the library, and publishes what came out."""

from posttrain import configure

configure()  # before MLflow reads its variables
