"""The verdict on a verifier, on figures worked by hand."""

import numpy as np
import pyarrow as pa
import pytest
from support.run_reports import make_report

from posttrain.config import EvaluationSection, GateSection
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.gate.verifier_decision import decide_verifier
from posttrain.evaluation.verification.auc import clustered_auc
from posttrain.evaluation.verification.best_of_n import AnsweredQuestion, best_of_n
from posttrain.evaluation.verification.verdict_statistics import (
    GradedAnswers,
    ScoredSets,
    fit_probability,
    summarise_verifier,
)
from posttrain.evaluation.verification.verifier_figures import verifier_key_figures
from posttrain.reporting.pages.verifier_page import verifier_page
from posttrain.reporting.verifier_report import VerifierReport
from posttrain.reporting.verifier_summary import VerifierSummary, print_verifier

SECTION = EvaluationSection(n_bootstrap=200)


def scored_pairs(n: int = 60, strength: float = 2.0, champion: float | None = None, text: str = "text") -> pa.Table:
    """Pairs whose chosen answers score higher by about `strength`, and by about `champion` for another verifier."""
    rng = np.random.default_rng(0)
    ids = [f"pair-{i}" for i in range(n)]
    columns = {
        "id": ids,
        "source": ["one" if i % 2 else "two" for i in range(n)],
        "true_margin": rng.choice([1.0, -1.0], n, p=[0.9, 0.1]),
        "conversation": ids,
        **{name: [f"{text} {name} {i}" for i in range(n)] for name in ("prompt", "chosen", "rejected")},
        "n_turns": [1] * n,
        "n_prompt_tokens": [8] * n,
        "n_chosen_tokens": rng.integers(3, 12, n),
        "n_rejected_tokens": rng.integers(3, 12, n),
    }
    for name, ahead in (("verifier", strength), ("champion", champion)):
        if ahead is not None:
            columns[f"{name}_chosen_score"] = rng.normal(ahead / 2, 1, n).astype(np.float32)
            columns[f"{name}_rejected_score"] = rng.normal(-ahead / 2, 1, n).astype(np.float32)
    return pa.table(columns)


def figures_of(table: pa.Table, questions: tuple[AnsweredQuestion, ...] = (), section=SECTION):
    digests = {"verifier": "v", "champion": "c", "preferences": "p", "test_prompts": "t"}
    return summarise_verifier(ScoredSets(table, None, questions, {"no_room": 1}), section, digests)


def test_auc_by_hand():
    """Right answers score 3, 1 and 2; wrong ones 2 and 0: of six comparisons four are won, one is lost and one is a tie."""
    scores, right = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([True, True, True, False, False])
    found = clustered_auc(scores, right, Clusters.single(5), 0.95)
    assert found.value == pytest.approx(4.5 / 6)
    assert 0 < found.low < found.value < found.high < 1
    assert clustered_auc(scores, np.ones(5, dtype=bool), Clusters.single(5), 0.95) is None


def test_auc_interval_covers_and_counts_questions():
    """Answers that are repeated within their question add nothing; 200 samples of a known AUC are covered nine times in ten."""
    rng = np.random.default_rng(1)
    scores, right = rng.normal(size=60), rng.random(60) < 0.5
    once = clustered_auc(scores, right, Clusters.single(60), 0.95)
    four = clustered_auc(np.repeat(scores, 4), np.repeat(right, 4), Clusters.of(np.repeat(np.arange(60), 4)), 0.95)
    assert (four.low, four.high) == pytest.approx((once.low, once.high), abs=1e-9)
    truth, n_covered = 0.7602, 0  # of normal scores one standard deviation apart: Phi(1 / sqrt 2)
    for _ in range(200):
        right = np.arange(80) % 2 == 0
        found = clustered_auc(rng.normal(size=80) + right, right, Clusters.single(80), 0.95)
        n_covered += found.low <= truth <= found.high
    assert 180 <= n_covered <= 198


def test_best_of_n_by_hand():
    """Scores 1, 2, 3 and qualities 0, 1, 0: of the pairs of answers, one of three chooses the right one. A tie draws lots."""
    one = AnsweredQuestion(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0]))
    tied = AnsweredQuestion(np.array([2.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    alone, pair = best_of_n([one, tied], SECTION)
    assert (alone.n, alone.n_questions) == (1, 2)
    assert alone.gain.value == pytest.approx(0)
    # `one`: {1,2} chooses 1, {1,3} and {2,3} choose 0. `tied`: {a,b} 1/2, {a,c} 1/2, {b,c} 1/2, with lots within the tie.
    assert pair.quality.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert pair.ceiling.value == pytest.approx(2 / 3)


def test_best_of_all_answers_is_the_best_one():
    rng = np.random.default_rng(2)
    questions = [AnsweredQuestion(scores, scores) for scores in rng.normal(size=(5, 16))]
    curve = best_of_n(questions, SECTION)
    assert [found.n for found in curve] == [1, 2, 4, 8, 16]
    assert curve[-1].quality.value == pytest.approx(np.mean([q.scores.max() for q in questions]))
    assert all(found.quality == found.ceiling for found in curve)
    assert best_of_n(questions[:1], SECTION) == []  # one question has no interval


def test_answers_that_are_both_chosen_and_rejected_are_left_out():
    column = {
        "prompt": np.array(["q", "q", "r"]), "chosen": np.array(["a", "b", "x"]), "rejected": np.array(["b", "c", "y"]),
        "conversation": np.array(["1", "1", "2"]), "verifier_chosen_score": np.array([3.0, 2.0, 1.0]),
        "verifier_rejected_score": np.array([2.0, 1.0, 0.0]),
    }  # fmt: skip
    found = GradedAnswers.of(column)
    assert found.n_ambiguous == 1
    assert sorted(zip(found.scores.tolist(), found.is_right.tolist(), found.questions, strict=True)) == [
        (0.0, False, "2"), (1.0, False, "1"), (1.0, True, "2"), (3.0, True, "1")
    ]  # fmt: skip


def test_the_probability_is_fitted_to_validation_answers():
    """Scores that are 4 too high and twice too small: scale 2 and offset -8 undo it."""
    rng = np.random.default_rng(3)
    log_odds = rng.normal(0, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-log_odds))
    scale, offset, n = fit_probability(GradedAnswers(log_odds / 2 + 4, right, ["q"] * 20_000, 0))
    assert [scale, offset] == [pytest.approx(2, abs=0.1), pytest.approx(-8, abs=0.4)]
    assert n == 20_000
    assert fit_probability(GradedAnswers(np.ones(10), np.ones(10, dtype=bool), ["q"] * 10, 0)) == (1.0, 0.0, 0)


def test_a_good_verifier_is_promoted_and_a_random_one_is_not():
    gate = GateSection(planned_looks=1)
    good = decide_verifier(figures_of(scored_pairs(200, 3.0)), gate)
    assert good.promoted
    assert good.opponent == "length"
    assert "more test pairs correctly than always preferring the longer or the shorter answer" in good.reasons[0]
    random = decide_verifier(figures_of(scored_pairs(200, 0.0)), gate)
    assert not random.promoted
    few = decide_verifier(figures_of(scored_pairs(12, 3.0)), gate)
    assert any("too few to tell: there are 12 test prompts" in reason for reason in few.reasons)


def test_the_champion_must_be_beaten_on_the_same_pairs():
    gate = GateSection(planned_looks=1)
    better = figures_of(scored_pairs(300, 3.0, champion=0.5))
    assert better.opponent == "champion"
    assert better.champion_accuracy.value < better.accuracy.value
    assert decide_verifier(better, gate).promoted
    worse = decide_verifier(figures_of(scored_pairs(300, 0.5, champion=3.0)), gate)
    assert not worse.promoted
    assert "fewer test pairs correctly than the champion" in worse.reasons[0]
    assert any("accuracy on source" in reason for reason in worse.reasons)


def test_a_choice_worse_than_chance_is_not_promoted():
    """The verifier ranks pairs well and prefers the worst of sampled answers, as one that was gamed does."""
    rng = np.random.default_rng(4)
    gamed = tuple(AnsweredQuestion(scores, -scores) for scores in rng.normal(size=(30, 16)))
    promotion = decide_verifier(figures_of(scored_pairs(200, 3.0), gamed), GateSection(planned_looks=1))
    assert not promotion.promoted
    assert "its choice among 16 sampled answers is worse than a random one" in promotion.reasons[1]


def test_length_bias_is_told():
    """A verifier that scores the length of answers has the accuracy of length, and a correlation of 1."""
    table = scored_pairs(100)
    for side in ("chosen", "rejected"):
        place = table.schema.get_field_index(f"verifier_{side}_score")
        lengths = table[f"n_{side}_tokens"].to_numpy().astype(np.float32)
        table = table.set_column(place, f"verifier_{side}_score", pa.array(lengths))
    figures = figures_of(table)
    assert figures.length.correlation.value == pytest.approx(1)
    assert figures.accuracy == figures.length.prefer_longer
    assert figures.length.accuracy["chosen_longer"].value == 1
    assert figures.length.accuracy["chosen_shorter"].value == 0
    assert figures.gain.value <= 0


def test_page_and_summary_escape_and_fit(capsys):
    hostile = "<script>alert(1)</script>"
    rng = np.random.default_rng(5)
    sampled = tuple(AnsweredQuestion(scores, scores + 1) for scores in rng.normal(size=(10, 16)))
    figures = figures_of(scored_pairs(80, 1.0, text=hostile), sampled)
    run = make_report()
    report = VerifierReport(
        lineage=run.lineage,
        data=run.data,
        history=[{"step": 1.0, "loss": 0.7, "accuracy": 0.5}, {"step": 2.0, "eval_loss": 0.6, "eval_accuracy": 0.6}],
        figures=figures,
        promotion=decide_verifier(figures, GateSection()),
    )
    page = verifier_page(report)
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert "Best of n answers of the starting model" in page
    summary = VerifierSummary(report, next_steps=("posttrain report x",))
    print_verifier(summary)
    printed = capsys.readouterr().out
    assert "pairwise accuracy" in printed
    assert "gain of the best of 16" in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert summary.as_dict()["accuracy"]["value"] == figures.accuracy.value
    assert verifier_key_figures(figures)["bon/16"] == figures.best_of_sampled[-1].gain.value
