"""Votes in a SQLite database: stored as they come, from several people at once."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import UserError
from posttrain.feedback.ballots import Ballot, Vote

TABLES = """
CREATE TABLE IF NOT EXISTS votes (
    answers TEXT NOT NULL, rater TEXT NOT NULL, id TEXT NOT NULL, vote TEXT NOT NULL,
    stored_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (answers, rater, id)
);
CREATE TABLE IF NOT EXISTS link (token TEXT NOT NULL);
"""
BUSY_S = 30.0
"""How long a vote waits for others that are being stored."""


@dataclass(frozen=True)
class VoteStore:
    """A database of votes. Each call has a connection of its own, so that threads and processes may share the file."""

    path: Path

    def prepare(self) -> str:
        """Create the database if it is missing, and return the token of its link, which stays the same.

        Raises:
            UserError: the file is no database of votes.
        """
        try:
            with self._connected() as connection:
                connection.executescript(TABLES)
                connection.execute("BEGIN IMMEDIATE")
                row = connection.execute("SELECT token FROM link").fetchone()
                token = row[0] if row else secrets.token_urlsafe(16)
                if not row:
                    connection.execute("INSERT INTO link VALUES (?)", (token,))
                return str(token)
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: is no database of votes ({error}): choose another file with --votes"
            ) from error

    def put(self, answers: str, rater: str, id: str, vote: Vote) -> None:
        """Store a vote, in place of an earlier one by the same person on the same prompt."""
        with self._connected() as connection:
            connection.execute(
                "INSERT INTO votes (answers, rater, id, vote) VALUES (?, ?, ?, ?) ON CONFLICT (answers, rater, id) "
                "DO UPDATE SET vote = excluded.vote, stored_at = CURRENT_TIMESTAMP",
                (answers, rater, id, vote.model_dump_json()),
            )

    def ballots(self) -> list[Ballot]:
        """Return the votes of each person.

        Raises:
            ValueError: the file is no database of votes.
        """
        found: dict[tuple[str, str], dict[str, Vote]] = {}
        try:
            with self._connected() as connection:
                rows = connection.execute(
                    "SELECT answers, rater, id, vote FROM votes ORDER BY stored_at, id"
                ).fetchall()
        except sqlite3.Error as error:
            raise ValueError(str(error)) from error
        for answers, rater, id, vote in rows:
            found.setdefault((answers, rater), {})[id] = Vote.model_validate_json(vote)
        return [Ballot(answers=answers, rater=rater, choices=votes) for (answers, rater), votes in found.items()]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=BUSY_S)
        try:
            with connection:  # commits, or takes back after an error
                yield connection
        finally:
            connection.close()
