"""Answers and scores, stored as soon as they exist, so that an interrupted collection continues and pays for nothing twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from posttrain.data.rows import canonical


@dataclass(frozen=True)
class PaidWork:
    """Results in a file store, one JSON file each, by a digest of everything that they depend on."""

    files: Callable[[], AbstractFileSystem]
    """Returns the store's file system. Called for each use, because a file system may hold keys that expire."""
    folder: str

    def get(self, *depends_on: Any) -> Any:
        """Return a stored result; None if there is none, or its file is damaged."""
        try:
            return json.loads(self.files().cat_file(self._path(depends_on)))
        except (FileNotFoundError, ValueError):
            return None

    def put(self, result: Any, *depends_on: Any) -> None:
        """Store a result."""
        path, files = self._path(depends_on), self.files()
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, json.dumps(result, ensure_ascii=False).encode())

    def _path(self, depends_on: tuple[Any, ...]) -> str:
        digest = hashlib.sha256(canonical(list(depends_on))).hexdigest()
        return f"{self.folder}/{digest[:2]}/{digest}.json"
