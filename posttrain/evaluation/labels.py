"""Names of models and metrics as people read them, and the format of a figure with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

STAGES = {"base": "base", "sft": "SFT", "dpo": "DPO", "champion": "champion"}
NAMES = STAGES | {"champion": "the champion"}
"""The same within a sentence."""
ABSENT = "-"
"""Shown where a figure does not apply."""


class Interval(Protocol):
    """A figure with the ends of its confidence interval."""

    @property
    def value(self) -> float:
        """The figure."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


class PairsOfPrompts(Protocol):
    """Pairs, and the prompts that they belong to."""

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""


@dataclass(frozen=True)
class Metric:
    """Names and explanation of a metric."""

    name: str
    short: str
    """Below the preference accuracy in a table, where `name` would repeat it."""
    chart: str
    """Name in MLflow, whose charts cut titles such as `acc/dpo` after eight characters in a narrow window."""
    meaning: str


METRICS = {
    "likelihood_accuracy": Metric(
        "preference accuracy", "preference accuracy", "acc",
        "share of pairs in which the model gives the chosen response the higher log-probability, summed over its tokens; "
        "chance gives one half",
    ),
    "normalised_accuracy": Metric(
        "preference accuracy per token", "per token", "nacc",
        "preference accuracy by the mean log-probability of a token instead of the sum, so that length does not count",
    ),
    "implicit_accuracy": Metric(
        "implicit-reward accuracy", "implicit reward", "iacc",
        "share of pairs in which the chosen response has the higher implicit reward, beta × (log p of DPO − log p of the "
        "reference): what DPO trains",
    ),
    "true_agreement": Metric(
        "true agreement", "true agreement", "true",
        "share of pairs that the model ranks as the demo's true reward does, before noise was added to the labels",
    ),
    "likelihood_margin_nats": Metric(
        "mean margin in nats", "margin, nats", "marg",
        "mean of log p(chosen) − log p(rejected)",
    ),
    "implicit_margin_nats": Metric(
        "mean implicit margin in nats", "implicit margin, nats", "imarg",
        "mean of the same difference minus that of the reference",
    ),
    "chosen_logps_nats": Metric(
        "mean log-probability of the chosen responses in nats", "log p(chosen), nats", "logp",
        "mean over the pairs, summed over the tokens of a response",
    ),
    "chosen_perplexity": Metric(
        "perplexity on chosen", "perplexity on chosen", "ppl",
        "exp of the mean negative log-probability of a token of the chosen responses; 1 is certainty, lower is better",
    ),
    "kl_nats_per_token": Metric(
        "KL to SFT, nats per token", "KL to SFT, nats per token", "kl",
        "how far DPO's distribution of the next token has moved from SFT's; 0 is not at all",
    ),
}  # fmt: skip
"""By the field of `StageFigures`."""

ANSWERS = {
    "stop_rate": Metric("answers that stop", "stopped", "stop", "share of answers that end by themselves within the limit"),
    "n_tokens": Metric("tokens per answer", "tokens", "len", "mean length of an answer"),
    "repetition": Metric(
        "repeated 4-grams", "repeated 4-grams", "rep", "share of an answer's runs of four tokens that have occurred before in it"
    ),
    "true_reward": Metric("true reward", "true reward", "rew", "mean of the demo's true reward of the answers"),
}  # fmt: skip
"""By the field of `StageGenerations`."""

ACCURACIES = ("likelihood_accuracy", "normalised_accuracy", "implicit_accuracy", "true_agreement")
"""The metrics that are shares of the test pairs, in the order in which tables show them."""
STRATA = {"chosen_shorter": "chosen shorter", "same_length": "same length", "chosen_longer": "chosen longer"}

TERMS = {
    "ceiling": "highest preference accuracy to expect: how often the true reward itself agrees with the noisy labels (demo only)",
    "interval": "range that contains the true value in {confidence:.0%} of such evaluations, with the prompts as the sample",
    "gain": "difference in preference accuracy on the same pairs, in percentage points",
    "p": "probability of a difference this large if both models were equally good (exact test that flips the signs of prompts)",
    "nats": "natural-logarithm units: +1 nat is a probability e = 2.72 times as high",
}  # fmt: skip
"""Explanations of terms that are not metrics."""


def words(key: str) -> str:
    """Return a key such as `near_duplicate` as words."""
    return key.replace("_", " ")


def comparison(name: str) -> str:
    """Return a comparison such as `dpo_vs_sft` as words."""
    newer, older = name.split("_vs_")
    return f"{STAGES[newer]} against {STAGES[older]}"


def sample_size(sample: PairsOfPrompts, kind: str = "") -> str:
    """Return the number of pairs and of prompts: `400 test pairs of 80 prompts`, or `400 test pairs` where each has its own.

    Args:
        kind: of the pairs, such as `test `.
    """
    pairs = f"{sample.n_pairs} {kind}pair{'s' * (sample.n_pairs != 1)}"
    if sample.n_prompts == sample.n_pairs:
        return pairs
    return f"{pairs} of {sample.n_prompts} prompt{'s' * (sample.n_prompts != 1)}"


def percent(estimate: Interval | None, digits: int = 1) -> str:
    """Return a share and its interval in percent: `84.4 (80.6-87.6)`.

    Args:
        digits: decimal places of the interval's ends.
    """
    if estimate is None:
        return ABSENT
    low, high = (f"{100 * end:.{digits}f}".replace("100.0", "100") for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.1f} ({low}-{high})".replace("100.0 ", "100 ")


def points(estimate: Interval) -> str:
    """Return a difference of shares and its interval in percentage points: `+8.6 (+4.9 to +12.3)`."""
    return f"{100 * estimate.value:+.1f} ({point_range(estimate)})"


def point_range(estimate: Interval) -> str:
    """Return the interval of a difference of shares in percentage points: `+4.9 to +12.3`."""
    return f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"


def plain(estimate: Interval | None) -> str:
    """Return a figure and its interval in its own unit: `0.192 (0.181 to 0.204)`."""
    return ABSENT if estimate is None else f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
