"""A page shows any text, runs none of it and fetches nothing."""

import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from posttrain.reporting.drawing import INK, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, environment, tables_page

NASTY = "<script>alert(1)</script>\"'&\x00\ud800\x1b[31m\u202e"


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def figure(label="tokens"):
    drawn, axes = new_figure()
    axes.plot([0, 1], [1, 2], label="<b>chosen</b>")
    axes.set_xlabel(label)
    axes.legend()
    return drawn


def part(call: str, **values) -> str:
    """What a macro of `parts.html.jinja` makes of values."""
    template = '{% import "parts.html.jinja" as parts %}' + call
    return environment().from_string(template).render(**values)


def test_text_is_shown_and_never_runs():
    table = Table([NASTY], [[NASTY]], is_prose=True)
    parts = [
        part("{{ parts.paragraph(text) }}", text=NASTY),
        part("{{ parts.bullets([text]) }}", text=NASTY),
        part("{{ parts.preformatted(text) }}", text=NASTY),
        part("{{ parts.terms([(text, text)]) }}", text=NASTY),
        part("{% call parts.folded(text) %}{{ text }}{% endcall %}", text=NASTY),
        part("{{ parts.table(table) }}", table=table),
        part("{{ parts.figure(picture) }}", picture=Picture(NASTY, figure_svg(figure(), "a"), NASTY)),
    ]
    html = tables_page(NASTY, {NASTY: table}, [NASTY])
    for found in (*parts, html):
        reader = Reader(found)
        assert "script" not in reader.tags
        assert not any(name.startswith("on") for name, _ in reader.attributes)
        found.encode()  # no lone surrogate is left
    assert Reader(parts[0]).text.strip() == "<script>alert(1)</script>\"'&\\x00\\ud800\\x1b[31m\\u202e"


def test_a_name_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="nothing"):
        part("{{ nothing }}")


def test_a_row_must_fit_its_header():
    with pytest.raises(ValueError, match="zip"):
        part("{{ parts.table(table) }}", table=Table(["a", "b"], [[1]]))


def test_nothing_is_fetched():
    drawn = figure_svg(figure(), "a")
    found = Reader(tables_page("t", {"s": Table(["a"], [[1]])}, pictures=[drawn]))
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(found.tags)
    references = [value for name, value in found.attributes if name in ("src", "href", "xlink:href", "action")]
    assert references
    assert all(value.startswith("#") for value in references)


def test_figures_are_right_aligned_with_thousands_separated():
    rows = [["a", 1234, "84.4 (80.6-87.6)"], ["b", 5, "-"]]
    html = part("{{ parts.table(table) }}", table=Table(["what", "rows", "share"], rows))
    assert html.count('class="number"') == 6
    assert "1,234" in html


def test_a_narrow_screen_has_the_name_of_each_cell():
    html = part("{{ parts.table(table) }}", table=Table(["finding"], [["some text"]], is_prose=True))
    assert '<td data-label="finding">some text</td>' in html


def test_drawings_take_the_colour_of_the_page_and_share_no_id():
    first, second = figure_svg(figure(), "one"), figure_svg(figure(), "two")
    assert figure_svg(figure(), "one") == first
    assert INK not in first
    assert "currentColor" in first
    assert "<b>" not in first
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    for svg, known in zip((first, second), ids, strict=True):
        assert {
            target
            for target in re.findall(r'xlink:href="#([^"]*)"|url\(#([^)]*)\)', svg)
            for target in target
            if target
        } <= known
