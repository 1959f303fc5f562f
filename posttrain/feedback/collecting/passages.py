"""Documents as passages: text, Markdown, HTML, and a column of Parquet files."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import DocumentsSection
from posttrain.errors import UserError

SUFFIXES = (".txt", ".md", ".html", ".htm", ".parquet")
UNSEEN = {"script", "style", "nav", "header", "footer", "noscript", "template", "svg"}
"""HTML elements whose text is no part of the document."""
BLOCKS = {
    "p",
    "div",
    "section",
    "article",
    "li",
    "br",
    "tr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "pre",
    "ul",
    "ol",
}


class Passage(NamedTuple):
    """A part of a document."""

    where: str
    """Name of the file and number of the passage in it."""
    text: str


def read_passages(section: DocumentsSection, counts: Counter[str]) -> Iterator[Passage]:
    """Yield the passages of all documents in the order of their names; those that are not used are counted by reason.

    Raises:
        UserError: there is no document, or one cannot be read.
    """
    for path in _files(section.paths):
        n = 0
        for text in _texts(path, section.text_column):
            for passage in cut(text, section.max_passage_chars):
                n += 1
                if len(passage) < section.min_passage_chars:
                    counts["passage_too_short"] += 1
                elif section.languages and _language(passage) not in section.languages:
                    counts["other_language"] += 1
                else:
                    yield Passage(f"{path.name}#{n}", passage)


def cut(text: str, max_chars: int) -> list[str]:
    """Return the passages of a text: paragraphs joined up to a length. A longer paragraph is cut after a sentence or a word."""
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(" ".join(paragraph.split()), max_chars):
            if passages and len(passages[-1]) + 2 + len(piece) <= max_chars:
                passages[-1] += f"\n\n{piece}"
            else:
                passages.append(piece)
    return passages


def _pieces(paragraph: str, max_chars: int) -> Iterator[str]:
    while len(paragraph) > max_chars:
        window = paragraph[: max_chars + 1]
        ends = [match.end() for match in re.finditer(r"[.!?] ", window)]
        end = ends[-1] if ends else window.rfind(" ")
        end = end if end > 0 else max_chars
        yield paragraph[:end].strip()
        paragraph = paragraph[end:].strip()
    if paragraph:
        yield paragraph


def _files(paths: list[str]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        root = Path(path).expanduser()
        candidates = (
            [root]
            if root.is_file()
            else root.rglob("*")
            if root.is_dir()
            else map(Path, glob.glob(path, recursive=True))
        )
        files = sorted(file for file in candidates if file.is_file() and file.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(
                f"collect.documents.paths: {path}: no document found (suffixes: {', '.join(SUFFIXES)}): correct the path"
            )
        found += files
    return list(dict.fromkeys(found))


def _texts(path: Path, column: str) -> Iterator[str]:
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            if column not in table.column_names:
                raise UserError(
                    f"{path}: has no column {column!r}, only {', '.join(table.column_names)}: set collect.documents.text_column"
                )
            yield from (text for text in table[column].to_pylist() if isinstance(text, str))
            return
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}): correct or remove the file") from error
    yield _visible(text) if path.suffix.lower() in (".html", ".htm") else text


class _Visible(HTMLParser):
    """Gathers the visible text of a page, with an empty line between its blocks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._unseen += tag in UNSEEN
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN and self._unseen:
            self._unseen -= 1
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)


def _visible(page: str) -> str:
    parser = _Visible()
    parser.feed(re.sub(r"(?is)<head\b.*?</head>", "", page))
    parser.close()
    return "".join(parser.parts)


def _language(text: str) -> str:
    from py3langid import classify  # takes a second to import

    return str(classify(text[:1000])[0])
