"""Scores of several models on the same benchmark items: by hand, clustered, and what the gate makes of a loss."""

import pytest
from support.figures import figures_of, table

from posttrain.config import BenchmarkSection, EvaluationSection, GateSection, RunConfig
from posttrain.errors import UserError
from posttrain.evaluation.benchmarks.benchmark_figures import compare_benchmarks
from posttrain.evaluation.benchmarks.benchmark_items import (
    BenchmarkItems,
    BenchmarkScores,
    MetricScores,
    TaskItems,
    TaskScores,
)
from posttrain.evaluation.gate.decision import decide

SECTION = EvaluationSection()


def items_of(documents, **section):
    found = TaskItems(section=BenchmarkSection(task="quiz", **section), documents=documents, digest="d")
    return BenchmarkItems(tasks={"quiz": found})


def scores_of(stage, n_cut=0, **metrics):
    of_task = {
        name: MetricScores(value=sum(values) / len(values), std_error=0.1, items=values)
        for name, values in metrics.items()
    }
    return BenchmarkScores(digest=stage, tasks={"quiz": TaskScores(metrics=of_task, n_cut=n_cut)} if metrics else {})


def compared(n, dpo, sft, documents=None, **section):
    """DPO right on the first `dpo` of `n` items, SFT on the first `sft`, the base on none."""
    right = {"base": 0, "sft": sft, "dpo": dpo}
    scores = {stage: scores_of(stage, acc=[1.0] * k + [0.0] * (n - k)) for stage, k in right.items()}
    return compare_benchmarks(items_of(documents or [str(i) for i in range(n)], **section), scores, SECTION)


def test_paired_difference_by_hand():
    """Right on 3 and on 5 of 10 items: two gained, none lost; 2 p of the sign test is 2 / 4."""
    found = compared(10, 5, 3).tasks["quiz"]
    against = found.comparisons["dpo_vs_sft"]
    assert (against.gain.value, against.n_gained, against.n_lost) == (pytest.approx(0.2), 2, 0)
    assert against.gain.p_value == pytest.approx(0.5)
    assert against.gain.low < 0 < against.gain.high
    assert found.stages["dpo"].score.value == 0.5
    assert found.stages["dpo"].score.low == pytest.approx(0.2366, abs=1e-4)  # Wilson's interval of 5 in 10
    assert list(found.comparisons) == ["sft_vs_base", "dpo_vs_sft", "dpo_vs_base"]


def test_repeated_items_are_one_question():
    """Forty items that are four questions ten times each tell no more than four."""
    apart = compared(40, 40, 20).tasks["quiz"].comparisons["dpo_vs_sft"].gain
    same = compared(40, 40, 20, documents=[str(i // 10) for i in range(40)]).tasks["quiz"]
    assert (same.n_items, same.n_questions) == (40, 4)
    repeated = same.comparisons["dpo_vs_sft"].gain
    assert apart.p_value < 0.001 < 0.05 < repeated.p_value
    assert repeated.high - repeated.low > 2 * (apart.high - apart.low)


def test_base_is_not_scored_twice_and_an_absent_champion_is_left_out():
    scores = {
        "base": scores_of("b", acc=[1.0, 0.0]),
        "sft": scores_of("b"),
        "dpo": scores_of("d", acc=[1.0, 1.0]),
        "champion": BenchmarkScores(digest=None, tasks={}),
    }
    found = compare_benchmarks(items_of(["1", "2"]), scores, SECTION).tasks["quiz"]
    assert found.stages["sft"] == found.stages["base"]
    assert "champion" not in found.stages
    assert found.comparisons["dpo_vs_sft"].n_gained == 1


def test_metric_is_the_first_or_the_one_asked_for():
    both = {"base": scores_of("b", **{"acc,none": [1.0, 0.0], "acc_norm,none": [0.0, 0.0]})}
    documents = ["1", "2"]
    first = compare_benchmarks(items_of(documents), both, SECTION).tasks["quiz"]
    assert (first.metric, first.other_metrics) == ("acc,none", {"acc_norm,none": {"base": 0.0}})
    asked = compare_benchmarks(items_of(documents, metric="acc_norm"), both, SECTION).tasks["quiz"]
    assert asked.metric == "acc_norm,none"
    with pytest.raises(UserError, match=r"has no metric 'f1' .*: set metric to one of acc,none, acc_norm,none"):
        compare_benchmarks(items_of(documents, metric="f1"), both, SECTION)


def test_a_loss_on_a_benchmark_is_refused():
    """From 80 to 50 of 100 items is -30 points."""
    figures, lost = figures_of(table()), compared(100, 50, 80)
    assert decide(figures, GateSection()).promoted
    (reason,) = decide(figures, GateSection(), benchmarks=lost).reasons[1:]
    assert reason.startswith("the score on the benchmark quiz (acc) fell against SFT: -30.0 (-3")
    assert "gate.max_benchmark_loss allows a loss of 5.0 points" in reason
    assert decide(figures, GateSection(max_benchmark_loss=1.0), benchmarks=lost).promoted
    assert decide(figures, GateSection(), benchmarks=compared(100, 78, 80)).promoted


def test_names_are_unique_and_no_part_of_what_other_steps_are_cached_by():
    config = {"data": {}, "evaluation": {"benchmarks": [{"task": "arc_easy"}]}}
    with pytest.raises(ValueError, match="two benchmarks have the name 'quiz'"):
        EvaluationSection(benchmarks=[BenchmarkSection(task="a/quiz.yaml"), BenchmarkSection(task="quiz")])
    plain = RunConfig().without_sources().evaluation
    assert RunConfig(evaluation=config["evaluation"]).without_sources().evaluation == plain
