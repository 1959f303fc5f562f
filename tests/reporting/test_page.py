"""A page shows whatever text there is, runs none of it and fetches nothing."""

import re
from html.parser import HTMLParser

from posttrain.reporting.html import (
    INK,
    PageSection,
    bullets,
    figure_svg,
    folded,
    new_figure,
    page,
    paragraph,
    preformatted,
    table,
)

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


def test_text_is_shown_and_never_run():
    parts = [paragraph(NASTY), bullets([NASTY]), preformatted(NASTY), folded(NASTY, ""), table([NASTY], [[NASTY]])]
    html = page(NASTY, [PageSection(NASTY, "".join(parts))])
    assert "script" not in Reader(html).tags
    assert Reader(paragraph(NASTY)).text == "<script>alert(1)</script>\"'&\\x00\\ud800\\x1b[31m\\u202e"
    for part in parts:
        part.encode()  # no lone surrogate is left


def test_nothing_is_fetched():
    found = Reader(page("t", [PageSection("s", figure_svg(figure(), "a"))]))
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(found.tags)
    references = [value for name, value in found.attributes if name in ("src", "href", "xlink:href", "action")]
    assert references
    assert all(value.startswith("#") for value in references)


def test_numbers_stand_to_the_right_and_have_their_thousands_marked():
    html = table(["what", "rows"], [["a", 1234], ["b", 5]])
    assert html.count("class=number") == 3
    assert "1,234" in html


def test_figures_take_the_colour_of_the_page_and_share_no_id():
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
