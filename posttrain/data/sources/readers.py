"""Readers of one file: JSON, JSON Lines, CSV (each also compressed), Parquet or Arrow."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from posttrain.errors import UserError

SUFFIX = re.compile(r"\.(?:(jsonl|ndjson|json|csv|tsv)(\.gz|\.zst)?|(parquet|arrow))$", re.IGNORECASE)
"""Matches the suffix of a data file."""
SUFFIXES = ".jsonl, .ndjson, .json, .csv, .tsv (.gz or .zst may follow), .parquet or .arrow"
_ABOUT = re.compile(
    r"(dataset_infos?|dataset_dict|state|metadata|croissant|config|package|tsconfig)\.json|cache-[^/]*\.arrow",
    re.IGNORECASE,
)
"""Names of files that describe or cache a dataset, as `save_to_disk` and the Hub write them."""
_BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

_MISSING_CELLS = ("nan", "NaN")

LINE_AT_MOST = 64 * 2**20
"""Characters of the longest line. A compressed file of a megabyte can hold a line of gigabytes."""
ARRAY_AT_MOST = 4 * 2**30
"""Characters of the longest JSON array, which is parsed as a whole."""

Row = tuple[str, dict[str, Any] | None]
"""Location of a row in its file and its values, or None if it cannot be parsed."""


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Turn errors while reading a file into a `UserError` that names the file as `shown`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # Arrow's decompression raises OSError
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{shown}: cannot be read completely ({why}): copy or download it again") from error


def is_data(name: str) -> bool:
    """Return whether a file in a folder is a data file, judged by its name."""
    return SUFFIX.search(name) is not None and _ABOUT.fullmatch(name) is None


def read_rows(file: Path, shown: str, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        file: the file.
        shown: its name in error messages.
        encoding: of a text file; None: UTF-8, or UTF-16 if the file begins like it.

    Raises:
        UserError: the file cannot be read completely, or its columns are not unique.
    """
    kind = _kind(file)
    if kind in ("parquet", "arrow"):
        yield from _table_rows(file, kind, shown)
        return
    with reading(shown), _open_text(file, encoding) as text:
        if kind in ("csv", "tsv"):
            yield from _csv_rows(text, shown)
        elif kind == "json" and _begins_array(file, encoding):
            yield from _json_array_rows(text, shown)
        else:
            yield from _json_line_rows(text, shown)


def count_rows(file: Path, shown: str, encoding: str | None = None) -> int:
    """Return the number of rows that `read_rows` yields, without parsing them where possible."""
    kind = _kind(file)
    if kind == "parquet":
        return int(_parquet_file(file, shown).metadata.num_rows)
    if kind in ("jsonl", "ndjson"):
        with reading(shown), _open_text(file, encoding) as text:
            return sum(1 for line in _lines(text, shown) if not line.isspace())
    return sum(1 for _ in read_rows(file, shown, encoding))


def _kind(file: Path) -> str:
    match = SUFFIX.search(file.name)
    assert match is not None, f"{file} was not chosen by its suffix"
    return (match.group(1) or match.group(3)).lower()


def _open_text(file: Path, encoding: str | None) -> TextIO:
    """Open a file as text. Invalid bytes become lone surrogates or U+FFFD, which the check `broken_encoding` finds."""
    suffix = file.suffix.lower()
    binary: Any
    if suffix == ".zst":
        import pyarrow as pa

        binary = io.BufferedReader(_ArrowBytes(pa.input_stream(str(file), compression="zstd")))
    else:
        binary = gzip.open(file) if suffix == ".gz" else file.open("rb")  # noqa: SIM115 (closed with the text)
    found = _encoding(binary.peek(4)[:4]) if encoding is None else encoding
    errors = "replace" if codecs.lookup(found).name.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(binary, encoding=found, errors=errors, newline="")


def _encoding(start: bytes) -> str:
    """Return the encoding of a text that begins with these bytes.

    UTF-16 has a byte order mark, or begins with two ASCII characters, each beside a null. A null elsewhere is a damaged byte.
    """
    for mark, name in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return name
    for name in ("utf-16-le", "utf-16-be"):
        text = start.decode(name, errors="replace")
        if (
            len(start) == 4
            and text.isascii()
            and text[0].isprintable()
            and (text[1].isprintable() or text[1].isspace())
        ):
            return name
    return "utf-8-sig"


class _ArrowBytes(io.RawIOBase):
    """Adapts an Arrow stream to `io.RawIOBase`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _lines(text: TextIO, shown: str) -> Iterator[str]:
    """Yield the lines of a file, none of which is read beyond the limit.

    Raises:
        UserError: a line is too long.
    """
    n = 0
    while line := text.readline(LINE_AT_MOST + 1):
        n += 1
        if len(line) > LINE_AT_MOST:
            raise UserError(
                f"{shown}:{n}: the line has more than {LINE_AT_MOST // 2**20} Mi characters, more than a row of text can need: "
                "write one row per line, or remove the line"
            )
        yield line


def _json_line_rows(text: TextIO, shown: str) -> Iterator[Row]:
    for n, line in enumerate(_lines(text, shown), start=1):
        if not line.isspace():
            yield str(n), _as_values(_parse_json(line))


def _json_array_rows(text: TextIO, shown: str) -> Iterator[Row]:
    content = text.read(ARRAY_AT_MOST + 1)
    if len(content) > ARRAY_AT_MOST:
        raise UserError(
            f"{shown}: has more than {ARRAY_AT_MOST // 2**30} Gi characters, which do not fit into memory as one JSON array: "
            "write one row per line (.jsonl)"
        )
    rows = _parse_json(content)
    if not isinstance(rows, list):
        yield "1", None
        return
    for n, row in enumerate(rows, start=1):
        yield f"[{n}]", _as_values(row)


def _begins_array(file: Path, encoding: str | None) -> bool:
    with _open_text(file, encoding) as text:
        return text.read(4096).lstrip().startswith("[")


def _parse_json(text: str) -> Any:
    """Return the parsed value, or None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_values(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _csv_rows(text: TextIO, shown: str) -> Iterator[Row]:
    """Yield the rows below the header. Cells that pandas writes for missing values become None."""
    csv.field_size_limit(LINE_AT_MOST)
    lines = _lines(text, shown)
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), strict=True, delimiter=_delimiter(first))
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{shown}: the header cannot be parsed ({error}): correct the first line") from error
    repeated = [name for name, n in Counter(header).items() if n > 1]
    if repeated:
        raise UserError(
            f"{shown}: the header has {', '.join(map(repr, repeated))} more than once: rename or remove one of the columns"
        )
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


def _delimiter(header: str) -> str:
    """Return the separator of columns: the most frequent of semicolons, tabs and bars if the header has no comma."""
    names = re.sub(r'"[^"]*"', "", header)
    separator = max(";\t|", key=names.count)
    return separator if "," not in names and separator in names else ","


def _parquet_file(file: Path, shown: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shown}: is not a valid Parquet file ({error}): copy or download it again") from error


def _batches(file: Path, kind: str, shown: str) -> Iterator[Any]:
    """Yield the rows of a Parquet or Arrow file in batches. `datasets` writes Arrow files as streams."""
    import pyarrow as pa

    if kind == "parquet":
        parquet = _parquet_file(file, shown)
        _check_names(parquet.schema_arrow.names, shown)
        yield from parquet.iter_batches(batch_size=1024)
        return
    with pa.OSFile(str(file)) as opened:
        try:
            batches = iter(pa.ipc.open_stream(opened))
        except pa.ArrowInvalid:
            opened.seek(0)
            arrow = pa.ipc.open_file(opened)
            batches = map(arrow.get_batch, range(arrow.num_record_batches))
        for batch in batches:
            _check_names(batch.schema.names, shown)
            for start in range(0, batch.num_rows, 1024):
                yield batch.slice(start, 1024)


def _check_names(names: list[str], shown: str) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"{shown}: two columns have the same name: rename or remove one of them")


def _table_rows(file: Path, kind: str, shown: str) -> Iterator[Row]:
    import pyarrow as pa

    n = 0
    try:
        for batch in _batches(file, kind, shown):
            for row in batch.to_pylist():
                n += 1
                yield str(n), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read after row {n} ({error}): copy or download it again") from error
