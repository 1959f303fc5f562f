"""The history of a model on a terminal and as a page."""

from datetime import datetime, timedelta

import pytest
from support.run_reports import make_report

from posttrain.evaluation.gate.looks import Look
from posttrain.reporting.pages.history_page import history_page
from posttrain.reporting.past_runs.history_table import print_history
from posttrain.reporting.past_runs.nights import TAKEN_BACK, ModelHistory, Night, table_rows
from posttrain.reporting.past_runs.run_record import record_of
from posttrain.reporting.run_costs import RunCosts, StepCost

START = datetime(2026, 11, 1, 3, 0)
COSTS = RunCosts(seconds=600, steps={"train_dpo": StepCost(seconds=450, gpu_seconds=900, tokens=1000)}, gpu_hour=4.0)


def night(day: int, outcome: str, n_rows: int = 1000, note: str = "") -> Night:
    at = START + timedelta(days=day)
    if outcome in ("failed", TAKEN_BACK):
        return Night(f"night-{day}", at, outcome, None, None if outcome == TAKEN_BACK else COSTS, note)
    looks = Look(number=day + 1, used=(day + 1) / 20)
    record = record_of(make_report(), COSTS, "night-0" if outcome == "unchanged" else None, looks)
    return Night(f"night-{day}", at, outcome, record.model_copy(update={"n_rows": n_rows}), COSTS, note)


@pytest.fixture(scope="module")
def history() -> ModelHistory:
    nights = [
        night(0, "promoted", note="version dpo-1"),
        *(night(day, "unchanged") for day in (1, 2, 3)),
        night(4, "refused", 1250),
        night(5, "failed", note="train_dpo out of memory <b>[/b]\x1b[2J"),
        night(6, TAKEN_BACK, note="version dpo-1, none is back in production: wrong tone"),
    ]
    return ModelHistory("feedback", nights, champion=None)


def printed(history: ModelHistory, width: int, n_rows: int | None = None) -> list[str]:
    from posttrain.reporting.plain_console import PlainConsole

    console = PlainConsole(record=True, width=width, file=open("/dev/null", "w"))  # noqa: SIM115
    print_history(history, n_rows, console)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_unchanged_nights_share_a_row(history):
    rows = table_rows(history.nights)
    assert [(row.night.outcome, row.n_nights, row.growth) for row in rows] == [
        ("promoted", 1, None),
        ("unchanged", 3, 0),
        ("refused", 1, 250),
        ("failed", 1, None),
        (TAKEN_BACK, 1, None),
    ]
    assert rows[1].night.costs.seconds == 1800
    assert rows[1].cells()["outcome"] == "3 unchanged"
    assert rows[2].cells()["rows"] == "1,250 (+250)"
    assert rows[2].cells()["cost"] == "1.00 USD"  # 900 GPU seconds at 4 USD an hour


def test_new_rows_without_a_new_verdict_are_shown():
    """Rows of other splits or sources may grow while the model stays: such a night has a row of its own."""
    rows = table_rows([night(0, "unchanged"), night(1, "unchanged", 1010), night(2, "unchanged", 1010)])
    assert [(row.n_nights, row.growth) for row in rows] == [(1, None), (2, 10)]


def test_a_terminal_of_60_columns_has_the_gain_and_its_interval(history):
    lines = printed(history, 60)
    assert max(map(len, lines)) <= 60
    (refused,) = [line for line in lines if "refused  " in line]
    assert refused.split()[:3] == ["11-05", "03:00", "refused"]
    assert " to " in refused
    assert "7" not in lines[1]


def test_a_wide_terminal_has_every_column(history):
    lines = printed(history, 160)
    header = next(line for line in lines if "outcome" in line)
    assert header.split() == "when, UTC outcome accuracy gain over win rate rows looks time GPU time cost".split()
    assert any(line.split()[:3] == ["2026-11-05", "03:00", "refused"] for line in lines)
    text = "\n".join(lines)
    assert "11-06 03:00 failed: train_dpo out of memory <b>[/b][2J" in text
    assert "6 runs: 1 promoted, 3 unchanged, 1 refused, 1 failed, 1 taken back." in text
    assert "Looks at today's test prompts: 5, which is 25% of those planned." in text
    assert "Cost of these runs: 1 h 0 min, GPU 1 h 30 min, 6 thousand tokens, 6.00 USD." in text
    assert "\x1b" not in text


def test_older_rows_are_counted(history):
    lines = printed(history, 100, n_rows=2)
    assert lines[2] == "3 earlier rows are left out: --all shows them"
    assert not any("promoted  " in line for line in lines)


def test_the_page_has_a_chart_and_all_runs_newest_first(history):
    page = history_page(history)
    assert page.count("<svg") == 1
    assert page.index("night-5") < page.index("night-4") < page.index("night-0")
    assert "&lt;b&gt;[/b]" in page
    assert "<b>" not in page
    assert "win rate:" in page
    assert "<script" not in page


def test_a_model_without_a_verdict_has_a_page_without_a_chart():
    page = history_page(ModelHistory("new", [night(0, "failed", note="load_preferences no such file")], complete=False))
    assert "<svg" not in page
    assert "Earlier runs are left out" in page


def test_scripts_get_everything(history):
    found = history.as_dict()
    assert [night["outcome"] for night in found["nights"]][-2:] == ["failed", TAKEN_BACK]
    assert found["nights"][0]["costs"]["money"] == 1.0
    assert found["nights"][0]["record"]["accuracy"]["value"] == pytest.approx(
        make_report().figures.stages["dpo"].likelihood_accuracy.value
    )
