"""Empty figures in the style of the pages, and figures as SVG."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""The colour of text and axes while drawing; in the SVG it becomes the colour of the page's text."""
COLOURS = ("#3b7dd8", "#d9822b", "#2e9e6b", "#b5498f")
"""Of the series: distinguishable with most forms of colour blindness, on white and on black."""
WIDE = 5.6
"""Width in inches of a figure that takes a row: on a narrow screen it shrinks and stays legible."""
OUTSIDE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "frameon": False}
"""Puts a legend above the axes, where it covers nothing."""


def new_figure(width: float = 6.0, height: float = 2.6) -> tuple[Figure, Any]:
    """Return an empty figure, its size in inches, and its axes."""
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


def figure_svg(figure: Figure, caption: str) -> Markup:
    """Return a figure as an SVG element, byte for byte the same each time.

    Args:
        caption: makes the ids of this figure differ from those of the other figures on the page.
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
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").rstrip()
    prefix = re.sub(r"\W", "-", caption) + "-"
    # matplotlib escapes the labels, so the SVG holds no markup of the data.
    return Markup(re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda match: match.group(1) + prefix, svg))


def file_name(caption: str) -> str:
    """Return a caption as the name of a file, e.g. `dpo_reward_margin`."""
    return re.sub(r"\W+", "_", caption).lower()
