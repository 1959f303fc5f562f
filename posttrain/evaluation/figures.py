"""What an evaluation says, without the rows behind it: plain values that are written to JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.evaluation.intervals import Estimate, Result

STAGES = ("base", "sft", "dpo", "champion")
"""The models of an evaluation; the champion is the one in production when it was made."""

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")
"""In rising order. Note: worth knowing; warning: the result is weaker than it looks; error: do not use the model."""


class Histogram(Result):
    """How a margin is spread over the pairs."""

    quantiles: dict[str, float]
    """Of all pairs, by percent: "5", "25", "50", "75", "95"."""
    edges: list[float]
    """Of the bins, one more than counts, and the same for all models of a set of pairs."""
    counts: list[int]
    """Pairs in each bin; the outermost bins also hold what lies beyond."""


class StageFigures(Result):
    """What one model makes of the test pairs; None where a figure does not apply."""

    likelihood_accuracy: Estimate
    """Share of pairs whose chosen response has the higher summed log-probability."""
    normalised_accuracy: Estimate
    """The same for the mean log-probability of a token, so that length does not count."""
    implicit_accuracy: Estimate | None
    """Share of pairs whose chosen response gained more over the reference (DPO only)."""
    true_agreement: Estimate | None
    """Share of pairs ordered as the hidden reward orders them (demo only)."""
    likelihood_margin_nats: Estimate
    """Mean of log p(chosen) - log p(rejected)."""
    implicit_margin_nats: Estimate | None
    """Mean of the same difference less the reference's; times beta it is the reward margin."""
    chosen_logps_nats: Estimate
    """Mean summed log-probability of the chosen responses."""
    chosen_perplexity: Estimate
    """exp of the mean negative log-probability of a token, over all tokens of all chosen responses."""
    kl_nats_per_token: Estimate | None
    """KL(DPO || reference) of the next token, over the whole vocabulary, at places drawn from the test responses (DPO
    only). Exact at each place; but the text before it is the data's, not what the model itself would have written."""
    margins: Histogram
    """Of the likelihood margin, in nats."""
    implicit_margins: Histogram | None
    """Of the implicit margin, in nats (DPO only)."""


class Comparison(Result):
    """Two models on the same pairs, by likelihood accuracy."""

    gain: Estimate
    """Accuracy of the newer less that of the older; the interval is a paired bootstrap."""
    n_gained: int
    """Pairs that the newer model orders better."""
    n_lost: int
    """Pairs that the newer model orders worse."""
    p_value: float
    """McNemar's exact test, two-sided: the chance of a split this uneven were both models equally good."""


class Slice(Result):
    """The pairs that have something in common."""

    by: Literal["source", "subset", "n_turns", "prompt_tokens"]
    name: str
    """The common value, e.g. `hh-rlhf/harmless-base`, `3` or `65-128`."""
    n_pairs: int
    accuracy: dict[str, Estimate]
    """Likelihood accuracy by stage."""
    gains: dict[str, Estimate]
    """By comparison, as in `comparisons`; a model did worse on the slice where the whole interval is below 0."""


class Stratum(Result):
    """The pairs whose chosen response is shorter than, as long as, or longer than the rejected one, in tokens."""

    n_pairs: int
    accuracy: dict[str, Estimate]
    """Likelihood accuracy by stage; empty where there are no pairs."""
    implicit_accuracy: Estimate | None


class Length(Result):
    """How much of a verdict is length alone."""

    prefer_longer: Estimate
    """Accuracy of always preferring the longer response: what a model has to beat."""
    strata: dict[str, Stratum]
    """`chosen_shorter`, `same_length`, `chosen_longer`."""
    margin_correlation: dict[str, Estimate]
    """Spearman's rank correlation of the likelihood margin with the difference in length, by stage; a stage whose margins
    or lengths do not vary is left out."""
    implicit_correlation: Estimate | None
    """The same for the implicit margin: above 0, preference training taught that longer is better."""


class Reliability(Result):
    """The pairs that a model is about equally sure of."""

    low: float
    high: float
    """Ends of the bin of confidence, the probability it gives to the response that it prefers: 0.5 to 1."""
    n_pairs: int
    confidence: float | None
    """Mean; None where the bin is empty."""
    accuracy: Estimate | None


class Calibration(Result):
    """Whether sigmoid(beta x implicit margin) is a probability: of what it is 80 % sure, 80 % should be right."""

    bins: list[Reliability]
    ece: float
    """Expected calibration error: mean distance of confidence and accuracy, weighted by pairs."""
    brier: Estimate
    """Mean squared distance of the probability from 1, the label; 0.25 is what not knowing costs."""


class WrongPair(Result):
    """A pair that the newest model orders the other way round: here mislabelled pairs gather."""

    id: str
    source: str
    margin_nats: float
    """Implicit margin where there is one, else the likelihood margin: below 0."""
    confidence: float | None
    """The probability it gave to the rejected response; None without an implicit margin."""
    true_margin: float | None
    """Below 0 where the hidden reward says that the label is wrong (demo only)."""
    prompt: str
    """Its end."""
    chosen: str
    rejected: str


class SetFigures(Result):
    """All figures of one set of pairs."""

    n_pairs: int
    stages: dict[str, StageFigures | None]
    """By `STAGES`; None where a run has no such model."""
    comparisons: dict[str, Comparison]
    """`newer_vs_older`: `sft_vs_base`, `dpo_vs_sft`, `dpo_vs_champion` (`sft_vs_champion` where SFT is the newest)."""
    slices: list[Slice]
    length: Length
    calibration: Calibration | None
    """Of DPO."""
    wrong: list[WrongPair]
    """The surest first."""
    cut: dict[str, int]
    """How many pairs lost tokens, or were left out, and why."""


class Finding(Result):
    """Something about a run that a person should know."""

    rule: str
    """Its name, e.g. `likelihood_displacement`."""
    severity: Severity
    stage: Literal["data", "sft", "dpo"]
    title: str
    """What is the case, in a line."""
    evidence: dict[str, float]
    """The figures that say so, by name."""
    threshold: str
    """From where on the rule speaks."""
    advice: str
    """What to do, in terms of the settings."""


class Figures(SetFigures):
    """The evaluation without its rows, as it is written to JSON; by itself, of the test pairs."""

    sets: dict[str, SetFigures] = Field({})
    """Of each further set in `evaluation.sets`, by name."""
    findings: list[Finding] = Field([])
    """The gravest first."""
    confidence: float
    seed: int
    digests: dict[str, str]
    """Of the test pairs (`preferences`), of each further set, and of each model (`base`, `sft`, `dpo`, `champion`)."""

    @property
    def newest(self) -> str:
        """The stage that may be promoted: DPO, or SFT in a run without DPO."""
        return next(stage for stage in ("dpo", "sft", "base") if self.stages[stage] is not None)

    @property
    def opponent(self) -> str:
        """The stage that the newest one must beat: the champion, or for a first model the stage before it."""
        older = {"dpo": "sft", "sft": "base"}
        return "champion" if self.stages["champion"] is not None else older[self.newest]
