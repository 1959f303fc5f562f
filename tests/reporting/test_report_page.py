"""The page of a run is complete, runs no script and fetches nothing."""

import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from huggingface_hub import ModelCard
from support.run_reports import make_report

from posttrain.evaluation.benchmarks.benchmark_figures import (
    BenchmarkComparison,
    BenchmarkFigures,
    StageScore,
    TaskFigures,
)
from posttrain.evaluation.clustered.gains import paired_gain
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.intervals import Estimate
from posttrain.models.checkpoint import Base, Manifest
from posttrain.reporting.model_card import model_card
from posttrain.reporting.pages.run_page import report_page
from posttrain.reporting.plots import draw, label_text
from posttrain.reporting.run_report import RunReport

pytestmark = pytest.mark.slow

HOSTILE = (
    "</pre></style></title></svg><script>document.documentElement.dataset.ran = 1</script>"
    "<img src=x onerror=\"document.documentElement.dataset.ran = 1\"><a href='javascript:alert(1)'>x</a>"
    "<svg/onload=document.documentElement.dataset.ran=1> $x^{$ \x00\u202e %s {0} &lt;b&gt; ]]>"
)


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(make_report())


def test_the_verdict_comes_first_and_every_part_follows(page):
    body = page[page.index("<body>") :]
    assert body.index("Promoted: because some text") < body.index("<h2>")
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Accuracy", "Findings", "Learning curves", "Margins", "Slices", "Length", "Calibration", "Confidently wrong", "Answers",
        "Data", "Where this came from",
    ]  # fmt: skip
    assert page.count("<svg") == 10
    for needed in ("data-digest", "code-digest", "org/base abc123", "30 won"):
        assert needed in page


def test_benchmarks_have_a_section_of_their_own(page):
    assert "Benchmarks" not in page
    gain = paired_gain(np.array([-1.0] * 4 + [0.0] * 6), Clusters.single(10), 0.95)
    quiz = TaskFigures(
        metric="acc,none",
        n_items=10,
        n_questions=8,
        stages={
            "sft": StageScore(score=Estimate(value=0.9, low=0.6, high=0.98), std_error=0.1, n_cut=0),
            "dpo": StageScore(score=Estimate(value=0.5, low=0.24, high=0.76), std_error=0.167, n_cut=3),
        },
        comparisons={"dpo_vs_sft": BenchmarkComparison(gain=gain, n_gained=0, n_lost=4)},
        other_metrics={"f1,none": {"sft": 0.25, "dpo": 0.5}},
    )
    benchmarks = BenchmarkFigures(tasks={"quiz": quiz}, confidence=0.95, digests={})
    found = report_page(make_report().model_copy(update={"benchmarks": benchmarks}))
    part = found.partition("<h2>Benchmarks")[2].partition("Confidently wrong")[0]
    for text in (
        "90.0 (60.0-98.0)",
        "50.0 (24.0-76.0)",
        "DPO against SFT",
        "-40.0 (",
        "SFT 10.0, DPO 16.7",
        "DPO 3",
        "8 questions",
    ):
        assert text in part
    assert "f1,none" in part


def test_it_fetches_nothing(page):
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert not re.findall(r"url\((?!#)", page)


def test_a_run_without_dpo_has_a_page_too():
    report = make_report()
    stages = {**report.figures.stages, "dpo": None}
    figures = report.figures.model_copy(update={
        "stages": stages, "calibration": None, "slices": [], "wrong": [], "findings": [],
        "comparisons": {"sft_vs_base": report.figures.comparisons["sft_vs_base"]},
    })  # fmt: skip
    histories = {"sft": report.histories["sft"]}
    found = report_page(report.model_copy(update={"figures": figures, "histories": histories, "generations": None}))
    assert "No issues found." in found
    assert "<h2>Calibration</h2>" not in found


def test_a_report_is_loaded_as_it_was_saved(tmp_path):
    report = make_report()
    report.save(tmp_path)
    assert RunReport.load(tmp_path) == report


def test_each_picture_is_a_complete_svg_file():
    pictures = draw(make_report(text="$x^{$ <b>"))
    assert pictures
    for picture in pictures.values():
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_label_is_short_and_not_read_as_a_formula():
    assert label_text("a$b\x00") == r"a\$b?"
    assert len(label_text("x" * 100)) == 40


def test_nothing_in_a_hostile_text_becomes_markup():
    found = report_page(make_report(text=HOSTILE))
    assert "&lt;script&gt;" in found
    for tag in ("<script", "<img", "<a ", "onload=document.documentElement.dataset.ran=1>", "</pre></style>"):
        assert tag not in found


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page with")
def test_nothing_in_a_hostile_text_runs_in_a_browser(tmp_path):
    """The control page has the same text unescaped, which shows that the browser would run it."""
    (tmp_path / "page.html").write_text(report_page(make_report(text=HOSTILE)), encoding="utf-8")
    (tmp_path / "control.html").write_text("<!doctype html><html><body>" + HOSTILE, encoding="utf-8")
    ran = {}
    for name in ("page", "control"):
        done = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                f"--user-data-dir={tmp_path / name}", "--dump-dom", (tmp_path / f"{name}.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        ran[name] = "data-ran" in done.stdout
    assert ran == {"page": False, "control": True}


def manifest(**about) -> Manifest:
    base = Base(id="org/base", revision="abc123", digest="hub:org/base@abc123")
    fields = {
        "stage": "dpo", "kind": "full", "base": base, "parent": "s", "template": "plain", "stop_ids": [2], "metrics": {},
        "files": {}, "digest": "d",
    }  # fmt: skip
    return Manifest.model_validate({**fields, **about})


def test_a_model_card_has_metadata_figures_and_verdict(tmp_path):
    report = make_report(data={"sources": [{"path": "/home/me/secret.jsonl"}]}, model={"base": "org/base"})
    card = model_card("demo-3", manifest(), report, adapter=False)
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")  # parses what the Hub parses
    assert loaded.data.base_model == "org/base"
    assert loaded.data.datasets == ["org/pairs"]
    assert loaded.data.library_name == "transformers"
    names = {result.metric_name: result.metric_value for result in loaded.data.eval_results}
    expected = report.figures.stages["dpo"]
    assert names == {
        "preference accuracy": round(expected.likelihood_accuracy.value, 4),
        "preference accuracy per token": round(expected.normalised_accuracy.value, 4),
        "implicit-reward accuracy": round(expected.implicit_accuracy.value, 4),
    }
    assert "Promoted: because some text" in loaded.text
    assert "secret" not in loaded.content


def test_a_model_card_names_no_path_and_nothing_that_is_not_on_the_hub():
    local = Base(id="/home/me/models/mine", revision=None, digest="f00")
    card = model_card("mine", manifest(base=local), None, adapter=True)
    assert card.data.base_model is None
    assert card.data.library_name == "peft"
    assert "/home/me" not in card.content
    assert "mine" in card.content


def test_folded_parts_are_not_printed_and_words_are_whole(page):
    """Or the answers of a run take dozens of sheets."""
    style = page[page.index("<style>") : page.index("</style>")]
    printed = style[style.index("@media print") :]
    assert "details:not([open]) { display: none; }" in printed
    assert page.count("<details open") + page.count('class="answer" open') == 3
    assert "anywhere" not in style.split("th, td {")[1].split("}")[0]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to print the page with")
def test_a_report_with_200_answers_prints_to_at_most_15_pages(tmp_path):
    report = make_report(text="some words " * 40)
    generations = report.generations.model_copy(update={"exchanges": (report.generations.exchanges * 7)[:200]})
    (tmp_path / "page.html").write_text(report_page(report.model_copy(update={"generations": generations})))
    subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-pdf-header-footer",
            f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert 3 <= len(re.findall(rb"/Type */Page\b", (tmp_path / "page.pdf").read_bytes())) <= 15


@pytest.mark.parametrize(
    "term", ["per token", "implicit reward", "ceiling", "interval", "gain", "KL to SFT, nats per token"]
)
def test_each_term_is_explained_in_a_line(term):
    report = make_report()
    shown = report_page(report.model_copy(update={"data": report.data.model_copy(update={"ceiling": 0.9})}))
    assert re.search(rf"<dt>{term}:</dt> <dd>.{{20,}}</dd>", shown)


def test_each_figure_says_how_to_read_it(page):
    assert len(re.findall(r'<figcaption>[^<]+<br><span class="quiet">[^<]{20,}</span>', page)) == page.count("<figure")


def test_text_in_a_model_card_stays_in_its_cell():
    card = model_card("a | <b>\n# c", manifest(), make_report(run="run | <script>\n# x"), adapter=False)
    assert "# a \\| &lt;b> # c\n" in card.text
    assert "| run | run \\| &lt;script> # x |" in card.text
