"""The table at the end of a run: legible in a narrow terminal, and plain text in a file."""

import io
import re

import pytest
from rich.console import Console
from support.figures import figures_of, spread, table
from support.run_reports import make_report

from posttrain.evaluation.labels import METRICS
from posttrain.reporting.terminal import Report, print_report


def outcome(**about) -> Report:
    report = make_report()
    return Report(
        run="run-1", figures=about.pop("figures", report.figures), promotion=report.promotion, data=report.data, **about
    )


def printed(report: Report, width: int) -> list[str]:
    written = io.StringIO()
    print_report(report, Console(file=written, width=width))
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("champion", [False, True])
def test_names_and_figures_are_whole_at_any_width(width, champion):
    figures = figures_of(table(champion_margins=spread(0.7) if champion else None))
    lines = printed(outcome(figures=figures), width)
    assert all(len(line) <= width for line in lines)
    for name in ("likelihood_accuracy", "normalised_accuracy", "implicit_accuracy"):
        assert any(line.strip().startswith(METRICS[name].short + " ") for line in lines)
    header = next(line for line in lines if "intervals" in line)
    assert header.split()[-3 - champion :] == ["base", "SFT", "DPO", *(["champion"] if champion else [])]
    text = "\n".join(lines)
    assert "…" not in text
    for accuracy in ("50.0", "60.0", "75.0"):
        assert accuracy in text
    assert len(re.findall(r"\b\d+(?:\.\d)?-\d+(?:\.\d)?\b", text)) == (9 if champion else 7)


def test_a_file_holds_no_colour_codes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert not any("\x1b" in line for line in printed(outcome(), 80))


def test_commands_and_links_are_not_broken():
    command = "posttrain report " + "x" * 100
    assert command in printed(outcome(next_steps=(command,)), 60)
