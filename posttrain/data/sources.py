"""Rows as their source has them: local files, the Hub or the demo, read lazily and in the source's own order."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from posttrain.config import Source
from posttrain.errors import UserError

DEMO = "demo"
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""What a source may call the split that is watched during training."""

_SUFFIX = re.compile(r"\.(jsonl|json|csv|parquet)(\.gz)?$", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MISSING_CELLS = ("nan", "NaN")


class Record(NamedTuple):
    """One row of a source."""

    source: str
    """Short name of where it is from, the same on any machine."""
    split: str
    """The split that its source puts it in: train, validation or test."""
    where: str
    """File and line, or the like, for people."""
    values: dict[str, Any] | None
    """Column name to value; None where the row cannot be read."""


Row = tuple[str, dict[str, Any] | None]
"""Where a row is inside its file, and its values."""


@dataclass(frozen=True)
class OpenSource:
    """A source that was found, and is ready to be read."""

    splits: frozenset[str]
    """The splits that the source itself has."""
    digest: str | None
    """sha256 over the bytes of local files."""
    revision: str | None
    """The commit on the Hub, where it could be found out."""
    read: Callable[[], Iterator[Record]]
    """The rows: training first, each split in the source's order."""


def open_source(source: Source) -> OpenSource:
    """The source, found and ready to be read.

    A path that exists, has wildcards or ends like a data file is local; `organisation/name` is on the Hub.

    Raises:
        UserError: there is no such source, it cannot be read, or it has no training rows.
    """
    if source.path == DEMO:
        return _open_demo(source)
    if _is_local(source.path):
        return _open_files(source)
    if _HUB_ID.fullmatch(source.path):
        return _open_hub(source)
    raise UserError(
        f"{source.path}: there is no such file or folder, and it is no Hub id, which has the form organisation/name: "
        "correct the path"
    )


def count_rows(source: Source) -> dict[str, int] | None:
    """The number of rows in each split, before any check; None for the Hub, which is not asked.

    Raises:
        UserError: as `open_source`.
    """
    if source.path == DEMO:
        from posttrain.data import demo

        return {"train": _limited(demo.N_ROWS, source)}
    if not _is_local(source.path):
        if source.path.startswith((".", "/", "~")):
            _find_files(source.path)  # says that there is none
        return None
    return {
        split: _limited(sum(_n_rows(file) for file in files), source)
        for split, files in _files_by_split(source).items()
    }


def _limited(n_rows: int, source: Source) -> int:
    return n_rows if source.limit is None else min(n_rows, source.limit)


def _split_names(source: Source) -> dict[str, str]:
    """What the source calls a split: what we call it."""
    names = dict.fromkeys(VALIDATION_NAMES, "validation")
    if source.test_split is not None:
        names[source.test_split] = "test"
    names[source.train_split] = "train"
    return names


def _open_demo(source: Source) -> OpenSource:
    from posttrain.data import demo

    def read() -> Iterator[Record]:
        for n, values in enumerate(islice(demo.rows(), source.limit), start=1):
            yield Record(DEMO, "train", f"demo:{n}", values)

    return OpenSource(frozenset({"train"}), digest=None, revision=None, read=read)


# Local files


def _is_local(path: str) -> bool:
    return Path(path).expanduser().exists() or glob.has_magic(path) or _SUFFIX.search(path) is not None


def _open_files(source: Source) -> OpenSource:
    by_split = _files_by_split(source)

    def read() -> Iterator[Record]:
        for split, files in by_split.items():
            yield from islice(_records(files, split, source), source.limit)

    return OpenSource(frozenset(by_split), _digest(by_split), revision=None, read=read)


def _records(files: list[Path], split: str, source: Source) -> Iterator[Record]:
    for file in files:
        label = _label(file, source)
        for where, values in _rows(file):
            yield Record(label, split, f"{file}:{where}", values)


def _files_by_split(source: Source) -> dict[str, list[Path]]:
    """The files of each split that the source has, train first, files in order of their paths.

    A file is of the split that is a word of its name, or else the name of a folder that it is in below the source's own.
    Files named after no split are for training, unless the user chose a `train_split` of another name than train.
    """
    names = _split_names(source)
    by_split: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    passed_over = []
    for file in _find_files(source.path):
        split_name = _split_name(file, names | {"test": "test", "train": "train"}, source.path)
        if split_name is None and source.train_split == "train":
            split_name = "train"
        if split := names.get(split_name or ""):
            by_split[split].append(file)
        else:
            passed_over.append(file.name)
    if not by_split["train"]:
        found = ", ".join(sorted({file.name for files in by_split.values() for file in files} | set(passed_over)))
        raise UserError(
            f"{source.path}: has no file for training, only {found}: nothing can be learned. A file's name tells its "
            f"split; name the one to train on with `train_split` (it is {source.train_split!r})"
        )
    return {split: files for split, files in by_split.items() if files}


def _find_files(path: str) -> list[Path]:
    root = Path(path).expanduser()
    if root.is_file():
        if not _SUFFIX.search(root.name):
            raise UserError(
                f"{path}: must end in .jsonl, .json, .csv or .parquet (.gz may follow): rename or convert it"
            )
        return [root]
    candidates = root.rglob("*") if root.is_dir() else map(Path, glob.iglob(str(root), recursive=True))
    files = sorted(
        file for file in candidates if _SUFFIX.search(file.name) and file.is_file() and not _is_hidden(file, root)
    )
    if not files:
        raise UserError(f"{path}: there is no such file, and no .jsonl, .json, .csv or .parquet file: correct it")
    return files


def _is_hidden(file: Path, root: Path) -> bool:
    """Whether a file found under a folder is a tool's own, such as `.cache/x.json`."""
    return root.is_dir() and any(part.startswith(".") for part in file.relative_to(root).parts)


def _split_name(file: Path, names: Iterable[str], path: str) -> str | None:
    """The first of the names that is a word of the file's name, else of its nearest folder below `path`; case is ignored."""
    root = Path(path).expanduser()
    while glob.has_magic(str(root)) or root.is_file():
        root = root.parent
    folders = file.relative_to(root).parts[:-1]
    for part in (file.name, *reversed(folders)):
        found = [(match.start(), -len(name), name) for name in names if (match := _as_word(name).search(part))]
        if found:
            return min(found)[2]
    return None


def _as_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z]){re.escape(name)}(?![a-z])", re.IGNORECASE)


def _label(file: Path, source: Source) -> str:
    """The last two parts of a file's path without suffix, less the last if it only tells the split.

    Examples: `hh-rlhf/harmless-base/train.jsonl.gz` is `hh-rlhf/harmless-base`, `pairs.jsonl` is `pairs`.
    """
    stem = _SUFFIX.sub("", file.name)
    folders = [part for part in file.parts[:-1] if part not in ("/", "..", ".")]
    tells_split_only = any(_as_word(name).match(stem) for name in _split_names(source))
    return "/".join((folders if tells_split_only and folders else [*folders, stem])[-2:])


def _digest(by_split: dict[str, list[Path]]) -> str:
    """sha256 over the files' bytes and splits, whatever the files are called."""
    digest = hashlib.sha256()
    for split, files in by_split.items():
        for file in files:
            with _reading(file), file.open("rb") as content:
                digest.update(f"{split} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into an answer."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{file}: cannot be read to its end ({why}): copy or download it again") from error


def _rows(file: Path) -> Iterator[Row]:
    """A file's rows."""
    kind = _kind(file)
    if kind == "parquet":
        yield from _parquet_rows(file)
        return
    with _reading(file), _open_text(file) as text:
        if kind == "csv":
            yield from _csv_rows(text)
        elif kind == "json" and _begins_array(text):
            yield from _json_array_rows(text)
        else:
            yield from _json_line_rows(text)


def _n_rows(file: Path) -> int:
    """The number of rows that `_rows` gives, found as cheaply as the file's kind allows."""
    kind = _kind(file)
    if kind == "parquet":
        return int(_parquet_file(file).metadata.num_rows)
    if kind == "jsonl":
        with _reading(file), _open_text(file) as text:
            return sum(1 for line in text if not line.isspace())
    return sum(1 for _ in _rows(file))


def _kind(file: Path) -> str:
    match = _SUFFIX.search(file.name)
    assert match is not None, f"{file} was not chosen by its suffix"
    return match.group(1).lower()


def _open_text(file: Path) -> TextIO:
    """The file as text. A byte that is not UTF-8 becomes a lone surrogate, for which its row is dropped later."""
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    return opened(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[return-value]


def _json_line_rows(text: TextIO) -> Iterator[Row]:
    for n, line in enumerate(text, start=1):
        if not line.isspace():
            yield str(n), _as_values(_parse_json(line))


def _json_array_rows(text: TextIO) -> Iterator[Row]:
    rows = _parse_json(text.read())
    if not isinstance(rows, list):
        yield "1", None
        return
    for n, row in enumerate(rows, start=1):
        yield f"[{n}]", _as_values(row)


def _begins_array(text: TextIO) -> bool:
    start = text.read(4096).lstrip()
    text.seek(0)
    return start.startswith("[")


def _parse_json(text: str) -> Any:
    """The value, or None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_values(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _csv_rows(text: TextIO) -> Iterator[Row]:
    """The rows under a header. A cell that pandas wrote for a missing value is None."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(text, strict=True)
    header = next(reader, [])
    while True:
        where = str(reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error:
            yield where, None
            continue
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(header):
            yield where, None
        else:
            yield (
                where,
                {name: None if cell in _MISSING_CELLS else cell for name, cell in zip(header, cells, strict=True)},
            )


def _parquet_file(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is not a readable Parquet file ({error}): copy or download it again") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa

    n = 0
    try:
        for batch in _parquet_file(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                n += 1
                yield str(n), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read after row {n} ({error}): copy or download it again") from error


# The Hub


def _open_hub(source: Source) -> OpenSource:
    """A dataset on the Hub, downloaded into the Hub's own cache."""
    import datasets

    revision = _resolve_revision(source)
    had_no_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            source.path, source.subset, data_dir=source.data_dir, revision=revision or source.revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(source, error) from error
    finally:
        if not had_no_bars:
            datasets.enable_progress_bars()
    names = _split_names(source)
    by_split = {names[name]: rows for name, rows in dataset.items() if name in names}
    if "train" not in by_split:
        raise UserError(
            f"{source.path}: has no split {source.train_split!r}, only {', '.join(dataset)}: "
            "name the one to train on with `train_split`"
        )
    label = "/".join(part for part in (source.path, source.subset, source.data_dir) if part)

    def read() -> Iterator[Record]:
        for split in sorted(by_split, key=("train", "validation", "test").index):
            for n, values in enumerate(islice(by_split[split], source.limit), start=1):
                yield Record(label, split, f"{label}:{split}:{n}", values)

    return OpenSource(frozenset(by_split), digest=None, revision=revision, read=read)


def _resolve_revision(source: Source) -> str | None:
    """The commit that `source.revision` stands for; None where the Hub is out of reach, for a copy may be at hand."""
    from huggingface_hub import HfApi, errors

    if source.revision and _COMMIT.fullmatch(source.revision):
        return source.revision
    try:
        return HfApi().dataset_info(source.path, revision=source.revision).sha
    except errors.HfHubHTTPError as error:
        raise _unreachable(source, error) from error
    except (errors.HTTPError, OSError):  # type: ignore[attr-defined]  # of the HTTP client, whichever that is
        return None


def _unreachable(source: Source, error: Exception) -> UserError:
    why = str(error).strip().split("\n", 1)[0]
    return UserError(
        f"{source.path}: there is no such file or folder, and the Hub did not give the dataset (revision "
        f"{source.revision or 'newest'}): {why}. Check the id, revision, subset and data_dir, the network, and for a "
        "private or gated dataset HF_TOKEN; or download the files and give their folder as path"
    )
