"""What a run costs, in figures and in words."""

import pytest
from support.run_reports import make_report

from posttrain.reporting.pages.run_page import report_page
from posttrain.reporting.run_costs import RunCosts, StepCost, count, duration

COSTS = RunCosts(
    seconds=5400.0,
    steps={
        "load_preferences": StepCost(seconds=12.0),
        "train_dpo": StepCost(seconds=3600.0, gpu_seconds=7200.0, tokens=1_500_000),
        "evaluate": StepCost(seconds=900.0, gpu_seconds=1800.0, tokens=250_000),
    },
    gpu_hour=2.0,
    currency="EUR",
)


def test_sums_and_money():
    """Two GPUs for 3600 + 900 seconds are 2.5 GPU hours; at 2 EUR they cost 5 EUR."""
    assert (COSTS.gpu_seconds, COSTS.tokens, COSTS.money) == (9000.0, 1_750_000, 5.0)
    assert COSTS.line() == "1 h 30 min, GPU 2 h 30 min, 1.75 million tokens, 5.00 EUR"
    assert COSTS.metrics()["cost_train_dpo/money"] == 4.0
    assert COSTS.metrics()["cost/money"] == 5.0
    assert "cost_load_preferences/tokens" not in COSTS.metrics()


def test_without_a_price_there_is_no_money():
    free = COSTS.model_copy(update={"gpu_hour": None})
    assert free.money is None
    assert free.line() == "1 h 30 min, GPU 2 h 30 min, 1.75 million tokens"
    assert "cost/money" not in free.metrics()
    assert free.header == ["step", "time", "GPU time", "tokens"]


def test_without_a_gpu_nothing_is_said_about_one():
    assert RunCosts(seconds=41.2, steps={"report": StepCost(seconds=41.2)}).line() == "41 s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (12_345, "12.3 thousand"), (1_200_000, "1.2 million")])
def test_counts_have_three_digits(number, text):
    assert count(number) == text


def test_the_page_of_a_run_has_a_table_of_costs():
    page = report_page(make_report().model_copy(update={"costs": COSTS}))
    assert "1 h 30 min, GPU 2 h 30 min, 1.75 million tokens, 5.00 EUR" in page
    assert "<h2>Cost</h2>" not in report_page(make_report())
