"""Diagnosis rules: each finds its problem in a synthetic run, and a healthy run has no findings."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.figures import figures_of, table

from posttrain.evaluation.diagnosis.evidence import Curves, TrainingLog
from posttrain.evaluation.diagnosis.rules import RULES, diagnose
from posttrain.evaluation.figures import SEVERITIES
from posttrain.evaluation.intervals import Estimate

N = 40


def curve(first: float, last: float, n: int = N) -> list[float]:
    return np.linspace(first, last, n).tolist()


def history(validation=(), **curves) -> list[dict[str, float]]:
    """Return a trainer's log. In names of keyword arguments `_` stands for `/`."""
    names = {name: name.replace("rewards_", "rewards/") for name in curves}
    entries = [
        {"step": i + 1, "epoch": (i + 1) / N, **{names[name]: values[i] for name, values in curves.items()}}
        for i in range(N)
    ]
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


def near(value: float, half: float) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def written(sft_stop=0.95, dpo_stop=0.95, sft_tokens=50.0, dpo_tokens=55.0, dpo_repetition=0.05, half=0.03):
    """Return statistics of answers as the rules receive them."""

    def stage(stop_rate, n_tokens, repetition):
        return SimpleNamespace(
            stop_rate=near(stop_rate, half), n_tokens=near(n_tokens, 50 * half), repetition=near(repetition, half)
        )

    return SimpleNamespace(
        stages={"sft": stage(sft_stop, sft_tokens, 0.04), "dpo": stage(dpo_stop, dpo_tokens, dpo_repetition)}
    )


SFT_COUNTS = {"n_rows": 400, "n_validation": 100}
DPO_COUNTS = {"n_pairs": 640, "n_validation": 100}


def run(
    sft=None, dpo=None, validation=VALIDATION, sft_validation=(), generations=None, counts=None, changes=None, **columns
):
    """Return the findings by rule for a healthy run with some changes."""
    digests = {"sft": "s", "reference": "s"}
    figures = figures_of(table(**columns)).model_copy(update={"digests": digests} | (changes or {}))
    found = diagnose(
        figures,
        TrainingLog(history(sft_validation, **(SFT | (sft or {}))), SFT_COUNTS | (counts or {}).get("sft", {})),
        TrainingLog(history(validation, **(DPO | (dpo or {}))), DPO_COUNTS | (counts or {}).get("dpo", {})),
        generations or written(),
    )
    return {finding.rule: finding for finding in found}


def spiked(values: list[float], *places: int) -> list[float]:
    return [100.0 if i in places else value for i, value in enumerate(values)]


def noisy(mean: float, half: float) -> list[float]:
    """Return values that alternate around a mean."""
    return [mean + half * (-1) ** i for i in range(N)]


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
        ({"changes": {"digests": {"sft": "s", "reference": "other"}}}, "same_checkpoint"),
        ({"dpo": {"rewards_chosen": curve(-3.0, -2.0)}}, "first_reward_chosen"),
    ],
    "inverted": [({"dpo_margins": margins(0.6), "implicit": margins(0.4)}, "high")],
    "loss_did_not_fall": [
        ({"sft": {"loss": noisy(2.0, 0.02)}}, "fall_high"),
        ({"dpo": {"loss": curve(0.693, 0.692)}}, "last_loss"),
    ],
    "loss_rose": [
        ({"sft": {"loss": curve(2.0, 2.1)}}, "rise_low"),
        ({"dpo": {"loss": [0.6931, 0.95, *noisy(0.75, 0.02)[2:]]}}, "low"),
        ({"dpo": {"loss": curve(1.0, 1.2)}}, "rise_low"),
    ],
    "unstable": [
        ({"sft": {"grad_norm": spiked(SFT["grad_norm"], 20, 25, 30)}}, "n_spikes"),
        ({"dpo": {"grad_norm": spiked(DPO["grad_norm"], 10, 20, 39)}}, "n_spikes"),
    ],
    "accuracy_fluctuates": [({"dpo": {"rewards_accuracies": noisy(0.7, 0.3)}}, "variance_ratio")],
    "few_rows": [({"counts": {"sft": {"n_rows": 199}}}, "n_rows"), ({"counts": {"dpo": {"n_pairs": 60}}}, "n_pairs")],
    "sft_worse_than_base": [
        ({"changes": {"perplexity_ratios": {"sft_vs_base": near(1.2, 0.1)}}}, "perplexity_ratio"),
        ({"base_margins": margins(0.75), "sft_margins": margins(0.5)}, "gain"),
    ],
    "weak_signal": [({"dpo_margins": margins(0.6), "implicit": margins(0.47)}, "implicit_accuracy")],
    "overfit": [({"dpo": {"rewards_accuracies": curve(0.9, 0.95)}, "implicit": margins(0.7)}, "test_accuracy")],
    "memorised": [({"dpo": {"rewards_accuracies": curve(0.5, 0.99)}, "implicit": margins(0.95)}, "train_accuracy")],
    "validation_loss_rose": [
        ({"validation": ({"loss": 0.5}, {"loss": 0.7})}, "best_validation_loss"),
        ({"sft_validation": ({"loss": 1.5}, {"loss": 2.0})}, "rise_low"),
    ],
    "likelihood_displacement": [({"dpo_chosen": -20.0}, "perplexity_ratio")],
    "far_from_reference": [({"kl": 1.5}, "kl_nats_per_token")],
    "length_exploited": [
        ({"longer": margins(0.5) * 5, "implicit": margins(0.5)}, "accuracy_shorter"),
        ({"longer": -margins(0.5) * 5, "implicit": margins(0.5)}, "accuracy_longer"),
        (
            {"longer": np.arange(200) % 11, "implicit": np.arange(200) % 11 - 4.5},
            "correlation",
        ),  # no chosen response is shorter
    ],
    "answers_grew": [({"generations": written(dpo_tokens=90.0)}, "dpo_tokens")],
    "stop_rate_fell": [({"generations": written(dpo_stop=0.7)}, "dpo_stop_rate")],
    "repetitive": [({"generations": written(dpo_repetition=0.4)}, "rise_low")],
    "slice_got_worse": [({"source": "by_sft"}, "source good")],
    "responses_truncated": [
        ({"counts": {"dpo": {"n_rejected_cut": 100}}}, "share of training pairs"),
        ({"counts": {"sft": {"n_completion_cut": 21}}}, "share of SFT rows"),
        ({"changes": {"cut": {"chosen_cut": 150, "rejected_cut": 140}}}, "share of test pairs"),
    ],
    "too_easy": [
        ({"sft_margins": margins(0.99)}, "sft_accuracy"),
        ({"dpo": {"rewards_accuracies": curve(0.97, 0.99)}}, "first_train_accuracy"),
    ],
    "length_says_as_much": [
        ({"longer": margins(0.9)[::-1] * 2, "dpo_margins": margins(0.7)}, "prefer_longer"),
        ({"longer": margins(0.1)[::-1] * 2, "dpo_margins": margins(0.7)}, "prefer_shorter"),
    ],
}


UNCERTAIN = {
    "loss_did_not_fall": {"dpo": {"loss": noisy(0.65, 0.2)}},
    "loss_rose": {"dpo": {"loss": [0.6931, *noisy(0.7, 0.1)[1:]]}},
    "unstable": {"sft": {"grad_norm": spiked(SFT["grad_norm"], 30)}},
    "accuracy_fluctuates": {"dpo": {"rewards_accuracies": noisy(0.7, 0.12)}},
    "inverted": {"dpo_margins": margins(0.6), "implicit": margins(0.45)},
    "weak_signal": {"dpo_margins": margins(0.6), "implicit": margins(0.52)},
    "sft_worse_than_base": {"changes": {"perplexity_ratios": {"sft_vs_base": near(1.2, 0.16)}}},
    "overfit": {"dpo": {"rewards_accuracies": noisy(0.87, 0.1)}, "implicit": margins(0.7)},
    "memorised": {"dpo": {"rewards_accuracies": noisy(0.82, 0.1)}},
    "validation_loss_rose": {"dpo": {"loss": noisy(0.6, 0.1)}, "validation": ({"loss": 0.55}, {"loss": 0.65})},
    "likelihood_displacement": {"changes": {"perplexity_ratios": {"dpo_vs_sft": near(2.2, 0.3)}}},
    "answers_grew": {"generations": written(dpo_tokens=76.0)},
    "stop_rate_fell": {"generations": written(dpo_stop=0.82)},
    "repetitive": {"generations": written(dpo_repetition=0.17)},
    "too_easy": {"sft_margins": margins(0.96)},
    "length_exploited": {"longer": margins(0.5) * 5, "implicit": np.where(np.arange(200) % 2 == 0, 1.0, margins(0.5))},
}
"""Values beyond the limit of a rule, whose intervals are not."""


def test_a_healthy_run_has_no_findings():
    assert run() == {}


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == set(PLANTED)


@pytest.mark.parametrize("rule", UNCERTAIN)
def test_a_problem_that_chance_explains_is_not_reported(rule):
    assert rule not in run(**UNCERTAIN[rule])


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
    found = list(run(kl=1.5, sft_margins=margins(0.99), dpo={"grad_norm": [float("nan")] * N}).values())
    grades = [SEVERITIES.index(finding.severity) for finding in found]
    assert grades == sorted(grades, reverse=True)
    assert found[0].rule == "not_finite"


def test_no_findings_without_measurements():
    """SFT without history, a training of three steps, no answers and no validation."""
    assert diagnose(figures_of(table()), TrainingLog(), TrainingLog(history(**DPO)[:3]), None) == []


def test_memorised_does_not_apply_to_the_demo():
    """With a hidden reward instead of human labels, an accuracy above 80 % is no sign of memorisation."""
    rows = table(implicit=margins(0.95))
    rows = rows.set_column(rows.column_names.index("true_margin"), "true_margin", pa.array([1.0] * rows.num_rows))
    log = TrainingLog(history(**DPO | {"rewards_accuracies": curve(0.5, 0.99)}))
    assert "memorised" not in {finding.rule for finding in diagnose(figures_of(rows), TrainingLog(), log)}


def test_a_loss_that_rose_is_not_called_flat_and_the_advice_is_a_lower_rate():
    found = run(dpo={"loss": curve(0.6931, 0.9)})
    assert "loss_did_not_fall" not in found
    assert found["loss_rose"].advice.startswith("lower dpo.learning_rate")


def test_one_spike_in_a_hundred_is_allowed_in_a_training_of_any_length():
    """100 of 10,000 logs: the interval of the share contains 1 %. 200 of 10,000: it does not."""
    for n_spikes, expected in ((100, False), (200, True)):
        norms = np.ones(10_000)
        norms[1000 :: 9000 // n_spikes][:n_spikes] = 50.0
        log = TrainingLog([{"loss": 1.0 - i / 20_000, "grad_norm": norm} for i, norm in enumerate(norms)])
        found = {finding.rule for finding in diagnose(figures_of(table()), log, TrainingLog())}
        assert ("unstable" in found) == expected


def test_gradient_norms_that_decline_are_no_spikes():
    """The first norms of a healthy SFT are fifty times the last; only neighbours are compared."""
    assert "unstable" not in run(sft={"grad_norm": np.geomspace(50, 1, N).tolist()})


def test_the_first_rewards_are_compared_only_before_the_first_update():
    """With logging_steps 10, the first log is a mean over ten steps, and its rewards need not be 0."""
    entries = [entry | {"step": 10 * entry["step"]} for entry in history(**DPO | {"rewards_chosen": curve(-3.0, -2.0)})]
    assert "reference_mismatch" not in {
        f.rule for f in diagnose(figures_of(table()), TrainingLog(), TrainingLog(entries))
    }


def test_overfitting_is_judged_by_the_weights_that_were_kept():
    """Early stopping restored step 20, where training accuracy was 75 %. The 95 % at the end are not those of the model."""
    accuracies = [0.75] * 20 + [0.95] * 20
    overfit = {"dpo": {"rewards_accuracies": accuracies}, "implicit": margins(0.7)}
    assert "overfit" in run(**overfit)
    assert "overfit" not in run(**overfit, counts={"dpo": {"kept_step": 20}})


def test_rows_between_two_logs_follow_from_epochs():
    """40 logs of one epoch of 640 pairs: 16 pairs each."""
    assert Curves(TrainingLog(history(**DPO), DPO_COUNTS), 0.95).rows_per_log == pytest.approx(16)
    assert Curves(TrainingLog(history(**DPO)), 0.95).rows_per_log is None
