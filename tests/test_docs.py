"""The documentation: generated pages are current, links work, and the site loads nothing from other hosts."""

import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from support.paths import ROOT

from docs.generate import FOLDER, PAGES
from posttrain.config.check_policies import REASONS
from posttrain.config.layouts import INSTRUCTION_FORMATS, PREFERENCE_FORMATS
from posttrain.config.sections.training_sections import LossType

README = (ROOT / "README.md").read_text(encoding="utf-8")
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "link": "href",
}
EXTERNAL = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
CSS_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_current(name):
    """`python -m docs.generate` writes the pages."""
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name]()


def test_readme_is_short():
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 12_000


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert local
    for link in local:
        path, _, anchor = link.partition("#")
        page = (ROOT / path) if path else ROOT / "README.md"
        assert page.exists(), link
        if anchor:
            assert anchor in anchors(page), link


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_picture_of_the_layers_follows_the_import_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    project, library = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    picture = (ROOT / "docs" / "images" / "layers.svg").read_text(encoding="utf-8")
    drawn = re.findall(r'<rect class="step"[^>]*y="(\d+)"[^>]*/><text[^>]*>(\w+)</text>', picture)
    rows: dict[int, set[str]] = {}
    for y, name in drawn:
        rows.setdefault(int(y), set()).add(name)
    expected = [{part.strip().rpartition(".")[2] for part in layer.split(":")} for layer in [*project[:-1], *library]]
    assert [rows[y] - {"tracking"} for y in sorted(rows)] == expected


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make docs` does: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """Collects what a page loads by itself: scripts, styles, pictures and frames, and the classes of its elements."""

    def __init__(self):
        super().__init__()
        self.addresses, self.classes, self.style = [], set(), False

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.style = tag == "style"
        self.classes |= set((found.get("class") or "").split())
        self.addresses += CSS_ADDRESS.findall(found.get("style") or "")
        self.addresses += [part.split()[0] for part in (found.get("srcset") or "").split(",") if part.strip()]
        if tag in LOADING and found.get(LOADING[tag]):
            self.addresses.append(found[LOADING[tag]])

    def handle_data(self, data):
        if self.style:
            self.addresses += CSS_ADDRESS.findall(data)


def external_addresses(html: str) -> list[str]:
    page = Loads()
    page.feed(html)
    return [address for address in page.addresses if EXTERNAL.match(address)]


def test_site_loads_nothing_from_other_hosts(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert external_addresses(html) == [], page.name
        parsed = Loads()
        parsed.feed(html)
        assert "mermaid" not in parsed.classes, page.name  # the theme would fetch mermaid from a CDN
    for sheet in site.rglob("*.css"):
        addresses = CSS_ADDRESS.findall(sheet.read_text(encoding="utf-8"))
        assert [address for address in addresses if EXTERNAL.match(address)] == [], sheet.name
    for picture in site.rglob("*.svg"):
        assert not re.search(r"""(href|src)=["'](https?:)?//""", picture.read_text(encoding="utf-8")), picture.name


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/x"></script>',
        '<link rel="stylesheet" href="//fonts.googleapis.com/css">',
        '<img srcset="a.png 1x, https://example.org/b.png 2x">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
    ],
)
def test_external_addresses_are_found(html):
    assert len(external_addresses(html)) == 1


def test_search_works_without_a_server(site):
    """Browsers forbid workers on pages that are opened as files; a small script of the site replaces them."""
    assert "assets/iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "search" / "search_index.js").exists()


def test_counts_in_the_readme_are_current():
    assert f"{len(REASONS)} checks" in README
    assert f"TRL's {len(get_args(LossType))} losses" in README
    assert f"{len(PREFERENCE_FORMATS + INSTRUCTION_FORMATS)} layouts" in README
