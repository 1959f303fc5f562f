"""One self-contained HTML page: no script, nothing fetched, legible in the light and the dark, and printable."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""The colour of a figure's text and axes, which takes the colour of the page's text."""
COLOURS = ("#3b7dd8", "#d9822b", "#2e9e6b", "#b5498f")
"""Of a figure's series: told apart by most colour-blind readers, on white and on black."""

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: light-dark(#1c1e21, #e4e6eb); background: light-dark(#ffffff, #16181c); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
p, li { max-width: 48rem; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; overflow-wrap: anywhere;
  border-bottom: 1px solid light-dark(#d8dbe0, #34383f); }
th { font-weight: 600; overflow-wrap: normal; } td.number, th.number { text-align: right; white-space: nowrap; }
pre, code { font: 13px/1.45 ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem .7rem; margin: .4rem 0; border-radius: 4px;
  background: light-dark(#f3f4f6, #22252b); }
details { margin: .4rem 0; } summary { cursor: pointer; }
svg { max-width: 100%; height: auto; } figure { margin: .6rem 0; display: inline-block; }
.quiet { color: light-dark(#5b6068, #a2a7b0); }
@media print { :root { color-scheme: light; } body { margin: 0; max-width: none; } h2, h3 { break-after: avoid; }
  figure, tr, pre { break-inside: avoid; } details::details-content { content-visibility: visible; height: auto; } }
"""


@dataclass(frozen=True)
class PageSection:
    """A part of a page."""

    title: str
    html: str
    """Its content. Whatever is not written by us must have gone through the functions of this module."""


def page(title: str, sections: Sequence[PageSection], lead: str = "") -> str:
    """The whole page.

    Args:
        title: plain text.
        lead: HTML above the first section.
    """
    body = "".join(f"<section><h2>{escape(section.title)}</h2>{section.html}</section>" for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{lead}{body}</body></html>\n"
    )


def paragraph(text: Any, quiet: bool = False) -> str:
    """Plain text as a paragraph."""
    return f"<p{' class=quiet' if quiet else ''}>{_text(text)}</p>"


def bullets(texts: Iterable[Any]) -> str:
    """Plain texts as a list."""
    return f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in texts)}</ul>"


def preformatted(text: Any) -> str:
    """Plain text whose white space counts."""
    return f"<pre>{_text(text)}</pre>"


def folded(summary: Any, html: str, is_open: bool = False) -> str:
    """HTML behind a line of plain text that unfolds it; on paper all is unfolded."""
    return f"<details{' open' if is_open else ''}><summary>{_text(summary)}</summary>{html}</details>"


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table of plain values; numbers stand to the right."""
    body = [list(row) for row in rows]
    numeric = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(header))]
    head = "".join(_cell("th", value, is_number) for value, is_number in zip(header, numeric, strict=True))
    lines = (
        "".join(_cell("td", value, is_number) for value, is_number in zip(row, numeric, strict=True)) for row in body
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def new_figure(width: float = 6.0, height: float = 2.6) -> tuple[Figure, Any]:
    """An empty figure (inches) in the page's style, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_prop_cycle(color=COLOURS)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
    return figure, axes


def figure_svg(figure: Figure, caption: str = "") -> str:
    """A figure as an SVG within the page, the same bytes every time; `INK` becomes the colour of the page's text.

    Args:
        caption: plain text, also what a screen reader says.
    """
    import matplotlib as mpl

    for axes in figure.axes:
        if legend := axes.get_legend():
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(INK)
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.family": "sans-serif"}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Ids are looked up in the whole page, where two figures must not share them.
    prefix = re.sub(r"\W", "-", caption) + "-"
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda match: match.group(1) + prefix, svg)
    label = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}{label}</figure>'


def _cell(tag: str, value: Any, is_number: bool) -> str:
    return f"<{tag}{' class=number' if is_number else ''}>{_text(value)}</{tag}>"


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, or a text such as `1,234` or `47.2%`."""
    return isinstance(value, int | float) or bool(re.fullmatch(r"[-+]?[\d,.]+ ?%?", str(value)))


def _text(value: Any) -> str:
    """Escaped text; what cannot be shown or encoded (control characters, lone surrogates) is spelled out."""
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return escape("".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in shown))
