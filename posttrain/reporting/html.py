"""Self-contained HTML pages from the templates in `templates/`: no scripts from the data, nothing fetched, printable.

Templates hold all HTML; Python passes plain values. Every value is escaped (autoescape), and a name that a template uses but
is not given is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

FIGURE = re.compile(r"-|[-+]?[\d,.]+(e[-+]?\d+)? ?%?( \([-+\d,.e]+(-| to )[-+\d,.e]+\))?")
"""A cell such as `1,234`, `47.2%`, `2e-05` or `84.4 (80.6-87.6)`."""


@dataclass(frozen=True)
class Table:
    """A table of plain values. Columns of figures are right-aligned."""

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    is_prose: bool = False
    """A narrow screen stacks the cells of each row instead of scrolling sideways."""

    @property
    def is_figure(self) -> list[bool]:
        """For each column whether all its cells are figures.

        Raises:
            ValueError: a row has more or fewer cells than the header.
        """
        columns = list(zip(self.header, *self.rows, strict=True))
        return [len(self.rows) > 0 and all(_is_figure(cell) for cell in cells) for _, *cells in columns]


@dataclass(frozen=True)
class Picture:
    """A drawing for a page."""

    caption: str
    svg: Markup
    note: str = ""
    """How to read it, in a sentence."""


def render(template: str, **values: Any) -> str:
    """Return the text that a template makes of plain values, each of them escaped unless it is `Markup`."""
    return environment().get_template(template).render(**values)


def tables_page(
    title: str, tables: Mapping[str, Table], texts: Sequence[str] = (), pictures: Sequence[Markup] = ()
) -> str:
    """Return a page of pictures, then paragraphs, then tables.

    Args:
        tables: by heading; an empty heading is not shown.
    """
    return render("tables.html.jinja", title=title, tables=list(tables.items()), texts=texts, pictures=pictures)


@cache
def environment() -> Environment:
    """Return the one Jinja2 environment of all pages."""
    found = Environment(
        loader=PackageLoader("posttrain.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["cell"] = _cell
    return found


def shown(value: Any) -> Any:
    """Return a value as text: thousands separated, characters that cannot be displayed or encoded written as escapes."""
    if isinstance(value, Markup):
        return value
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def first_line(text: str, n_chars: int = 90) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= n_chars else line[: n_chars - 1] + "…"


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) or bool(FIGURE.fullmatch(str(value)))


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table: on one line, without markup and ends of cells."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
