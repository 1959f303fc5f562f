"""Every figure has a name, and an interval has one format."""

import pytest

from posttrain.evaluation.answers.answer_figures import StageGenerations
from posttrain.evaluation.figures import STAGES as ALL_STAGES
from posttrain.evaluation.figures import StageFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.key_figures import legend
from posttrain.evaluation.labels import ANSWERS, METRICS, STAGES, percent, plain, points


def test_every_figure_and_stage_has_a_name():
    estimates = {name for name, field in StageFigures.model_fields.items() if "Estimate" in str(field.annotation)}
    assert set(METRICS) == estimates
    of_answers = {name for name, field in StageGenerations.model_fields.items() if "Estimate" in str(field.annotation)}
    assert set(ANSWERS) == of_answers
    assert set(STAGES) == set(ALL_STAGES)


def test_the_names_of_charts_are_short_and_explained():
    """MLflow cuts titles such as `acc/dpo`: of more than about eight characters the model's name is lost."""
    charts = [metric.chart for metric in (*METRICS.values(), *ANSWERS.values())]
    assert len(set(charts)) == len(charts)
    assert all(len(chart) <= 5 for chart in charts)
    assert all(f"**{chart}**" in legend() for chart in charts)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.8444, 0.8055, 0.876), "84.4 (80.5-87.6)"),
        ((1.0, 0.981, 1.0), "100 (98.1-100)"),
        ((0.0, 0.0, 0.03), "0.0 (0.0-3.0)"),
    ],
)
def test_a_share_is_in_percent(ends, expected):
    value, low, high = ends
    assert percent(Estimate(value=value, low=low, high=high)) == expected


def test_other_figures_have_their_own_format():
    gain = Estimate(value=0.0864, low=-0.0123, high=0.12)
    assert points(gain) == "+8.6 (-1.2 to +12.0)"
    assert plain(gain) == "0.0864 (-0.0123 to 0.12)"
    assert percent(Estimate(value=0.844, low=0.805, high=0.876), digits=0) == "84.4 (80-88)"
    assert percent(None) == plain(None) == "-"
