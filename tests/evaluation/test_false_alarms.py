"""No diagnosis rule reports more than 5 % of simulated runs in which chance alone is at work."""

import pytest

from benchmarks.diagnosis_simulation import measure
from posttrain.evaluation.diagnosis.rules import RULES

COUNTED = {"not_finite", "reference_mismatch", "few_rows", "responses_truncated"}
"""Rules that compare counts or exact values, so that chance plays no part."""


@pytest.mark.soak
def test_no_rule_reports_more_than_one_run_in_twenty_by_chance():
    counts = measure(1000)
    assert {case.rule for case, _ in counts} == {rule.name for rule in RULES} - COUNTED - {"slice_got_worse"}
    assert {f"{case.rule}: {case.words}": n for case, n in counts if n > 50} == {}
