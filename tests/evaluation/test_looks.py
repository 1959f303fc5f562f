"""Looks at a test set that share one error probability, statistical power, and gains corrected for their selection."""

import pytest
from scipy.stats import norm
from support.figures import figures_of, spread, table

from posttrain.config import GateSection
from posttrain.evaluation.clustered.power import detectable_gain, pairs_needed
from posttrain.evaluation.clusters import prompts_digest, prompts_sketch, share_seen
from posttrain.evaluation.gate.decision import decide
from posttrain.evaluation.gate.foresight import foresight
from posttrain.evaluation.gate.looks import Look, look_level, shrunken_gain


def test_level_of_two_looks_is_dunnetts():
    """Two comparisons with one control, one-sided at 5 %: 1.916 (Dunnett 1955, table 1a). One look keeps the whole level."""
    assert norm.isf(look_level(GateSection(planned_looks=2, max_p_value=0.049)) / 2) == pytest.approx(1.97, abs=0.05)
    assert look_level(GateSection(planned_looks=5)) == pytest.approx(2 * norm.sf(2.234), rel=1e-2)
    assert look_level(GateSection(planned_looks=1)) == look_level(GateSection(planned_looks=2)) == 0.05
    assert look_level(GateSection(planned_looks=365)) == pytest.approx(0.00087, abs=1e-5)


def test_more_looks_make_each_decision_stricter():
    """20 pairs gained, 7 lost: p = 0.019 is below 0.05 and above the level of 20 looks, 0.0082."""
    better = spread(0.6).copy()
    better[60:80], better[:7] = 1, -1
    figures = figures_of(table(dpo_margins=better))
    assert figures.comparisons["dpo_vs_sft"].p_value == pytest.approx(0.0192, abs=1e-4)
    assert decide(figures, GateSection(planned_looks=1)).promoted
    refused = decide(figures, GateSection(planned_looks=20))
    assert "p = 0.019 is above 0.0082, the level of each of 20 looks" in refused.reasons[1]


def test_used_up_looks_ask_for_fresh_prompts():
    gate = GateSection(planned_looks=20)
    assert decide(figures_of(table()), gate, look=Look(number=20, used=19 / 20)).promoted
    refused = decide(figures_of(table()), gate, look=Look(number=21, used=1.0))
    assert not refused.promoted
    assert "another data.seed or a new file in data.sources" in refused.reasons[1]
    assert not Look(number=11, used=10 / 10).is_within(GateSection(planned_looks=365))  # more looks later do not help


def test_too_few_prompts_tell_nothing():
    refused = decide(figures_of(table()), GateSection(min_prompts=201))
    assert refused.reasons[1] == "too few to tell: there are 200 test prompts, and gate.min_prompts is 201"


def test_power_by_hand():
    """2.8 x sqrt(0.1 / 400) = 4.4 points; 2.8^2 x 0.1 / 0.02^2 = 1,963 pairs for 2 points; a design effect of 4 doubles it."""
    assert detectable_gain(400, 0.05) == pytest.approx(2.8016 * 0.1**0.5 / 20, rel=1e-4)
    assert pairs_needed(0.02, 0.05) == 1963
    assert detectable_gain(400, 0.05, design_effect=4) == 2 * detectable_gain(400, 0.05)


def test_power_before_training_counts_prompts():
    """Four pairs a prompt have a design effect of 1 + 3 x 0.3: 2.8 x sqrt(0.19 / 400) = 6.1 points, 3,728 pairs, 932 prompts."""
    one_look = GateSection(planned_looks=1)
    assert foresight(400, 100, one_look) == (
        "400 test pairs of 100 prompts: a gain of 6.1 points is detected with 80 %, and 2 points need 930 prompts, if two models "
        "differ on 10 % of the pairs"
    )
    assert "and 10 points need" in foresight(400, 400, GateSection(min_gain=0.1))
    assert foresight(40, 19, one_look) == "40 test pairs of 19 prompts: too few to tell, as gate.min_prompts is 20"
    assert foresight(0, 0, one_look) == "without test pairs there is no verdict"


def test_verdict_gives_power_and_the_gain_corrected_for_selection():
    """30 of 200 differ: 3.486 x sqrt(0.15 / 200) = 9.5 points at the level of 20 looks; 3.486^2 x 0.15 / 0.02^2 = 4,557 pairs."""
    (evidence,) = decide(figures_of(table()), GateSection()).reasons
    assert "a gain of 9.5 points is detected with 80 %, and 2 points need 4,560 prompts" in evidence
    assert "corrected for this, it is +14.8 points" in evidence


def test_shrunken_gain_by_hand():
    """A gain just above the threshold is worth nothing; one far above it is hardly corrected."""
    found = figures_of(table()).comparisons["dpo_vs_sft"].gain
    assert shrunken_gain(found, 0.05) == pytest.approx(found.centre, abs=0.001)
    assert shrunken_gain(found, found.p_value) < 0.5 * found.centre
    assert shrunken_gain(found, 1e-12) == 0


def test_digest_of_prompts_ignores_order_and_repetition():
    one, other = ([{"role": "user", "content": text}] for text in "ab")
    assert prompts_digest([one, other, one]) == prompts_digest([other, one])
    assert prompts_digest([one]) != prompts_digest([other])


def prompts(numbers: range) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": str(number)}] for number in numbers]


def test_share_of_prompts_seen_earlier():
    today = prompts_sketch(prompts(range(400)))
    assert share_seen(today, prompts_sketch(prompts(range(100)))) == 0.25
    assert share_seen(today, prompts_sketch(prompts(range(300, 1400)))) == pytest.approx(0.25, abs=0.03)
    assert share_seen(today, prompts_sketch(prompts(range(400, 500)))) == 0
    assert share_seen(today, today) == 1


def test_share_of_many_prompts_is_estimated():
    today = prompts_sketch(prompts(range(8000)))
    assert len(today) < 4200
    for n in (800, 4000, 7900, 8000):
        assert share_seen(today, prompts_sketch(prompts(range(n)))) == pytest.approx(n / 8000, abs=0.05)
