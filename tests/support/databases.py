"""SQLite without waiting for the disk: ZenML and MLflow commit hundreds of times in a run, and a commit takes 20 ms on a disk."""

import sqlite3
from typing import Any

from sqlalchemy import Engine, event


@event.listens_for(Engine, "connect")
def _leave_writing_to_the_system(connection: Any, _: Any) -> None:
    """Only a machine that loses power could damage the database, and tests throw theirs away."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
