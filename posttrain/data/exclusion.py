"""Rows that are kept out of training and evaluation for good, by id or prompt, as when a person asks for erasure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.data.checks import Unusable
from posttrain.data.formats.turns import as_turns
from posttrain.data.rows import Turn
from posttrain.data.sources import readers, s3_objects
from posttrain.data.splits import normalise, prompt_key
from posttrain.errors import UserError

COLUMNS = ("id", "prompt")
"""Columns of a table of exclusions."""


class Exclusion:
    """The entries of a file of exclusions. An entry is an id or a prompt.

    An id is that of the data report and of `posttrain trace`, or the value of the column `id` of the source. A prompt equals the
    whole prompt of a row or one of its user messages, without regard to case and white space.
    """

    def __init__(self, file: str | None) -> None:
        """Read a file.

        Args:
            file: a text file with one entry per line, or a data file with a column `id`, `prompt` or both; None for no entries.

        Raises:
            UserError: it cannot be read, or has no entries.
        """
        self._entries: dict[bytes | str, str] = {}
        self._is_matched: dict[str, bool] = {}
        for shown, keys in _read(file) if file else ():
            if new := [key for key in keys if key not in self._entries]:
                self._entries.update(dict.fromkeys(new, shown))
                self._is_matched[shown] = False
        if file and not self._entries:
            raise UserError(f"{file}: names no rows: write one id or prompt per line, or remove data.exclude")

    def covers(self, row: Mapping[str, Any], own_id: Any = None) -> bool:
        """Return whether a row is excluded.

        Args:
            row: with `id` and `prompt`.
            own_id: its id in the source, if it has one.
        """
        if not self._entries:
            return False
        found = False
        for key in (row["id"], str(own_id), *_prompt_keys(row["prompt"])):
            if (shown := self._entries.get(key)) is not None:
                self._is_matched[shown] = found = True
        return found

    def unmatched(self) -> list[str]:
        """Return where the entries are that no row has matched so far. Their text is not repeated: it may be a person's."""
        return [shown for shown, is_matched in self._is_matched.items() if not is_matched]


def _prompt_keys(turns: list[Turn]) -> Iterator[bytes | str]:
    yield prompt_key(turns)
    yield from (f"text {normalise(turn['content'])}" for turn in turns if turn["role"] == "user")


def _read(file: str) -> Iterator[tuple[str, list[bytes | str]]]:
    """Yield each entry, as it is shown and with its keys."""
    path = _local(file)
    if not readers.is_data(path.name):
        with readers.reading(file), path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for n, line in enumerate(lines, start=1):
                if text := line.strip():
                    yield f"line {n}", [text, f"text {normalise(text)}"]
        return
    for where, values in readers.read_rows(path, file):
        columns = [name for name in COLUMNS if values and values.get(name) not in (None, "", [])]
        if values is None or not columns:
            has = ", ".join(map(str, values)) if values else "nothing that can be parsed"
            raise UserError(
                f"{file}:{where}: has neither an id nor a prompt (it has {has}): name the column id or prompt"
            )
        for name in columns:
            yield f"{name} in row {where}", _keys(name, values[name], f"{file}:{where}")


def _keys(column: str, value: Any, where: str) -> list[bytes | str]:
    if column == "id":
        return [str(value)]
    try:
        turns = as_turns(value, "user")
    except Unusable as error:
        raise UserError(f"{where}: the prompt is neither text nor messages: correct the row") from error
    return [prompt_key(turns)] if len(turns) > 1 else [f"text {normalise(turns[0]['content'])}"]


def _local(file: str) -> Path:
    if not s3_objects.is_url(file):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"{file}: no such file: correct data.exclude")
        return path
    from posttrain.storage import s3 as storage  # boto3 takes a third of a second to import

    store = storage.ObjectStore()
    found, _ = store.find(file, lambda _: True)
    if len(found) > 1:
        raise UserError(f"{file}: is {len(found)} objects: name one object in data.exclude")
    return store.fetch(found[0])
