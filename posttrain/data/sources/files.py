"""Local files: finding them, assigning them to splits, and reading their rows."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from posttrain.config import Source
from posttrain.data.sources import readers
from posttrain.data.sources.readers import SUFFIX, SUFFIXES
from posttrain.data.sources.records import OpenSource, SourceRecord, split_names
from posttrain.errors import UserError

_SHARD = re.compile(r"data-\d+-of-\d+\.arrow")
"""Names of the files that `save_to_disk` of `datasets` writes."""


@dataclass(frozen=True)
class DataFile:
    """A file of a local or S3 source."""

    shown: str
    """Path or URL for display."""
    path: PurePath
    """Absolute path at the source; its last parts become the name of the rows' source."""
    below: PurePath
    """Path relative to the source's path, whose parts may name the split."""
    local: Path
    """Path of the local copy."""


def is_local(location: str) -> bool:
    """Return whether a location is a path of local files, existing or not."""
    return "://" not in location and (
        Path(location).expanduser().exists() or glob.has_magic(location) or SUFFIX.search(location) is not None
    )


def open_files(source: Source) -> OpenSource:
    """Open local files given by a path, a folder or a glob."""
    return open_found(source, find_files(source.location))


def open_found(source: Source, found: Iterable[DataFile], objects: dict[str, str] | None = None) -> OpenSource:
    """Return a source of files, ready for reading.

    Args:
        source: the source with the names of its splits.
        found: the files, in the order of reading.
        objects: version by URL, for files from S3.
    """
    by_split = _by_split(source, found)
    before = {file: _state(file) for files in by_split.values() for file in files}

    def read() -> Iterator[SourceRecord]:
        for split, files in by_split.items():
            yield from islice(_records(files, split, source), source.row_limit)
        for file, state in before.items():
            if _state(file) != state:
                raise UserError(f"{file.shown}: changed while it was read: run again when it is complete")

    return OpenSource(frozenset(by_split), _digest(by_split), revision=None, read=read, objects=objects or {})


def count_rows(source: Source) -> dict[str, int]:
    """Return the number of rows in each split, ignoring the limit."""
    by_split = _by_split(source, find_files(source.location))
    return {
        split: sum(readers.count_rows(file.local, file.shown, source.encoding) for file in files)
        for split, files in by_split.items()
    }


def find_files(location: str) -> list[DataFile]:
    """Return the data files at a path, in a folder or matching a glob, sorted by path.

    Raises:
        UserError: there are none.
    """
    root = Path(location).expanduser()
    if root.is_file():
        if not SUFFIX.search(root.name):
            raise UserError(f"{location}: must end in {SUFFIXES}: rename or convert it")
        return [DataFile(str(root), _absolute(root), PurePath(root.name), root)]
    candidates = root.rglob("*") if root.is_dir() else map(Path, glob.iglob(str(root), recursive=True))
    files = sorted(
        file for file in candidates if readers.is_data(file.name) and file.is_file() and not _is_hidden(file, root)
    )
    if not files:
        raise UserError(f"{location}: no data file found (supported suffixes: {SUFFIXES}): correct the path")
    while glob.has_magic(str(root)):
        root = root.parent
    return [DataFile(str(file), _absolute(file), file.relative_to(root), file) for file in files]


def _absolute(path: Path) -> Path:
    """Return the absolute path without following links, so that a source has the same name in every working directory."""
    return Path(os.path.abspath(path))


def _is_hidden(file: Path, root: Path) -> bool:
    """Return whether a file in a folder is hidden, such as `.cache/x.json`."""
    return root.is_dir() and any(part.startswith(".") for part in file.relative_to(root).parts)


def _records(files: list[DataFile], split: str, source: Source) -> Iterator[SourceRecord]:
    for file in files:
        label = _label(file.path, source)
        for where, values in readers.read_rows(file.local, file.shown, source.encoding):
            yield SourceRecord(label, split, f"{file.shown}:{where}", values)


def _by_split(source: Source, found: Iterable[DataFile]) -> dict[str, list[DataFile]]:
    """Return the files of each split of the source, train first.

    A file belongs to the split whose name is a word of its file name, or else of a folder below the source's path. Other files
    are for training, unless `train_split` has another value than train.
    """
    names = split_names(source)
    by_split: dict[str, list[DataFile]] = {"train": [], "validation": [], "test": []}
    passed_over = []
    for file in found:
        split_name = _split_name(file.below, names | {"test": "test", "train": "train"})
        if split_name is None and source.train_split == "train":
            split_name = "train"
        if split := names.get(split_name or ""):
            by_split[split].append(file)
        else:
            passed_over.append(file.path.name)
    if not by_split["train"]:
        names_found = {file.path.name for files in by_split.values() for file in files} | set(passed_over)
        raise UserError(
            f"{source.path}: has no training file, only {', '.join(sorted(names_found))}: set `train_split` (now "
            f"{source.train_split!r}) to the word in the file names that marks the training split"
        )
    return {split: files for split, files in by_split.items() if files}


def _split_name(below: PurePath, names: Iterable[str]) -> str | None:
    """Return the first name that is a word of the file name, or else of the nearest folder, ignoring case."""
    for part in reversed(below.parts):
        found = [(match.start(), -len(name), name) for name in names if (match := _as_word(name).search(part))]
        if found:
            return min(found)[2]
    return None


def _as_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z]){re.escape(name)}(?![a-z])", re.IGNORECASE)


def _label(path: PurePath, source: Source) -> str:
    """Return the last two parts of a path without suffix. Names that tell only the split or the shard are left out.

    Examples: `hh-rlhf/harmless-base/train.jsonl.gz` is `hh-rlhf/harmless-base`, `/home/me/data/pairs.jsonl` is `data/pairs`.
    """
    stem = SUFFIX.sub("", path.name)
    folders = [part for part in path.parts[:-1] if part not in ("/", "..", ".")]
    if _SHARD.fullmatch(path.name):
        folders, stem = folders[:-1], folders[-1] if folders else stem
    tells_split_only = any(_as_word(name).match(stem) for name in split_names(source))
    return "/".join((folders if tells_split_only and folders else [*folders, stem])[-2:])


def _state(file: DataFile) -> tuple[int, int, int]:
    """Return values that change when the file changes."""
    with readers.reading(file.shown):
        found = file.local.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest(by_split: dict[str, list[DataFile]]) -> str:
    """Return the sha256 of the files' contents and splits; file names do not matter."""
    digest = hashlib.sha256()
    for split, files in by_split.items():
        for file in files:
            with readers.reading(file.shown), file.local.open("rb") as content:
                digest.update(f"{split} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
