"""The files of a base model: they must be files, and hold what their names promise."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from huggingface_hub.errors import StrictDataclassError

from posttrain.errors import UserError

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of the files that transformers may read."""
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "model.safetensors.index.json",
)  # fmt: skip
"""Files that contain one JSON object."""
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, StrictDataclassError)
"""What transformers raises for settings of a wrong kind."""


def files_of(folder: Path, shown: str) -> list[str]:
    """Return the names of a base model's files, sorted.

    Raises:
        UserError: one of them is a pipe, a device or a broken link, on which reading would hang or fail, or is damaged JSON.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in READ)
    for path in paths:
        if not path.is_file():
            raise UserError(f"model.base: {shown}: {path.name} is not a regular file: replace or remove it")
        if path.name in OBJECTS:
            _check_object(path, shown)
    return [path.name for path in paths]


def _check_object(path: Path, shown: str) -> None:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"model.base: {shown}: {path.name} is damaged ({str(error) or type(error).__name__}): download it again"
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"model.base: {shown}: {path.name} contains a {type(found).__name__} where a JSON object is expected: download it again"
        )


class Undamaged:
    """Inside, errors of transformers about wrong content of a model's files become a `UserError`.

    The tokenizers library raises plain `Exception`.
    """

    def __init__(self, source: str, what: str) -> None:
        self._source, self._what = source, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and (kind is Exception or issubclass(kind, DAMAGE)):
            reason = " ".join(str(error).split())[:200] or kind.__name__
            raise UserError(
                f"{self._source}: {self._what} cannot be loaded ({reason}): download the model again, or correct its files"
            ) from error
