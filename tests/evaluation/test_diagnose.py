"""Diagnosis rules: each finds its problem in a synthetic run, and a healthy run has no findings."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.figures import figures_of, table

from posttrain.evaluation.diagnosis.rules import RULES, diagnose
from posttrain.evaluation.figures import SEVERITIES

N = 40


def curve(first: float, last: float, n: int = N) -> list[float]:
    return np.linspace(first, last, n).tolist()


def history(validation=(), **curves) -> list[dict[str, float]]:
    """Return a trainer's log. In names of keyword arguments `_` stands for `/`."""
    names = {name: name.replace("rewards_", "rewards/") for name in curves}
    entries = [{names[name]: values[i] for name, values in curves.items()} for i in range(N)]
    return entries + [{f"eval_{name}": value for name, value in entry.items()} for entry in validation]


SFT = {"loss": curve(3.0, 1.0), "grad_norm": curve(2.0, 1.0)}
DPO = {
    "loss": curve(0.693, 0.5),
    "grad_norm": curve(3.0, 2.0),
    "rewards_chosen": curve(0.0, 0.1),
    "rewards_rejected": curve(0.0, -0.5),
    "rewards_margins": curve(0.0, 0.6),
    "rewards_accuracies": curve(0.5, 0.75),
}
VALIDATION = (
    {"loss": 0.6, "rewards/accuracies": 0.66},
    {"loss": 0.55, "rewards/accuracies": 0.7},
)


def written(sft_stop=0.95, dpo_stop=0.95, sft_tokens=50.0, dpo_tokens=55.0):
    """Return statistics of answers as the rules receive them."""

    def stage(stop_rate, n_tokens):
        return SimpleNamespace(stop_rate=SimpleNamespace(value=stop_rate), n_tokens=SimpleNamespace(value=n_tokens))

    return SimpleNamespace(stages={"sft": stage(sft_stop, sft_tokens), "dpo": stage(dpo_stop, dpo_tokens)})


def run(sft=None, dpo=None, validation=VALIDATION, generations=None, digests=None, **columns):
    """Return the findings by rule for a healthy run with some changes."""
    figures = figures_of(table(**columns))
    figures = figures.model_copy(update={"digests": {"sft": "s", "reference": "s", **(digests or {})}})
    found = diagnose(
        figures, history(**(SFT | (sft or {}))), history(validation, **(DPO | (dpo or {}))), generations or written()
    )
    return {finding.rule: finding for finding in found}


def spiked(values: list[float]) -> list[float]:
    return [*values[:30], 100.0, *values[31:]]


def margins(accuracy: float, n: int = 200) -> np.ndarray:
    """Return margins with a given share above 0, distributed over the pairs."""
    return np.where(np.arange(n) % 100 < 100 * accuracy, 1.0, -1.0)


# Each rule: what to plant, and a figure that must stand in its evidence.
PLANTED = {
    "not_finite": [
        ({"sft": {"loss": [*curve(3, 2, N - 1), float("nan")]}}, "n_not_finite"),
        ({"dpo": {"grad_norm": [float("inf"), *curve(3, 2, N - 1)]}}, "n_not_finite"),
    ],
    "reference_mismatch": [
        ({"digests": {"reference": "other"}}, "same_checkpoint"),
        ({"dpo": {"rewards_chosen": curve(-3.0, -2.0)}}, "first_reward_chosen"),
    ],
    "loss_did_not_fall": [
        ({"sft": {"loss": curve(2.0, 2.1)}}, "last_loss"),
        ({"dpo": {"loss": curve(0.693, 0.692)}}, "last_loss"),
    ],
    "unstable": [
        ({"sft": {"grad_norm": spiked(SFT["grad_norm"])}}, "largest_grad_norm"),
        ({"dpo": {"grad_norm": spiked(DPO["grad_norm"])}}, "largest_grad_norm"),
    ],
    "weak_signal": [({"dpo_margins": margins(0.6), "implicit": margins(0.52)}, "implicit_accuracy")],
    "overfit": [({"validation": ({"loss": 0.6, "rewards/accuracies": 0.5},)}, "validation_accuracy")],
    "memorised": [
        (
            {
                "dpo": {"rewards_accuracies": curve(0.5, 0.99)},
                "validation": ({"loss": 0.5, "rewards/accuracies": 0.9},),
            },
            "train_accuracy",
        )
    ],
    "validation_loss_rose": [
        (
            {"validation": ({"loss": 0.5, "rewards/accuracies": 0.7}, {"loss": 0.6, "rewards/accuracies": 0.7})},
            "best_validation_loss",
        )
    ],
    "likelihood_displacement": [({"dpo": {"rewards_chosen": curve(0, -2)}, "dpo_chosen": -13.0}, "perplexity_ratio")],
    "far_from_reference": [({"kl": 1.5}, "kl_nats_per_token")],
    "length_exploited": [({"longer": margins(0.5) * 5, "implicit": margins(0.5)}, "correlation")],
    "answers_grew": [({"generations": written(dpo_tokens=90.0)}, "dpo_tokens")],
    "stop_rate_fell": [({"generations": written(dpo_stop=0.7)}, "dpo_stop_rate")],
    "slice_got_worse": [({"source": "by_sft"}, "source good")],
    "too_easy": [
        ({"sft_margins": margins(0.97)}, "sft_accuracy"),
        ({"dpo": {"rewards_accuracies": curve(0.97, 0.99)}}, "first_train_accuracy"),
    ],
    "length_says_as_much": [({"longer": margins(0.9)[::-1] * 2, "dpo_margins": margins(0.7)}, "prefer_longer")],
}


def test_a_healthy_run_has_no_findings():
    assert run() == {}


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == set(PLANTED)


@pytest.mark.parametrize(
    ("rule", "planted", "evidence"),
    [(rule, planted, evidence) for rule, cases in PLANTED.items() for planted, evidence in cases],
)
def test_planted_problem_is_found(rule, planted, evidence):
    found = run(**planted)
    assert rule in found, f"only {set(found)}"
    finding = found[rule]
    assert evidence in finding.evidence
    assert finding.title
    assert finding.advice
    assert "{" not in finding.threshold + finding.advice


def test_findings_are_sorted_by_severity():
    figures = figures_of(table(kl=1.5, sft_margins=margins(0.97)))
    found = diagnose(figures, [], history(VALIDATION, **DPO | {"grad_norm": [float("nan")] * N}), None)
    grades = [SEVERITIES.index(finding.severity) for finding in found]
    assert grades == sorted(grades, reverse=True)
    assert found[0].rule == "not_finite"


def test_no_findings_without_measurements():
    """SFT without history, a training of three steps, no answers and no validation."""
    short = history(**DPO)[:3]
    assert diagnose(figures_of(table()), [], short, None) == []


def test_memorised_does_not_apply_to_the_demo():
    """With a hidden reward instead of human labels, an accuracy above 80 % is no sign of memorisation."""
    rows = table()
    rows = rows.set_column(rows.column_names.index("true_margin"), "true_margin", pa.array([1.0] * rows.num_rows))
    rules = {f.rule for f in diagnose(figures_of(rows), [], history(VALIDATION, **DPO | {"rewards_accuracies": curve(0.5, 0.84)}), None)}  # fmt: skip # noqa: E501
    assert "memorised" not in rules
