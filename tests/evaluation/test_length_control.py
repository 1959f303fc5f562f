"""A model that knows only length is not promoted, and a gain that comes from length does not count."""

import numpy as np
import pyarrow as pa
import pytest
from support.figures import SECTION

from posttrain.config import GateSection
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.decision import decide
from posttrain.evaluation.length_control import Scores, per_token_margins
from posttrain.evaluation.statistics import summarise

N = 400


def scores(chosen, rejected, n_chosen, n_rejected) -> Scores:
    return Scores(np.array(chosen), np.array(rejected), np.array(n_chosen), np.array(n_rejected))


def test_margin_per_token_by_hand():
    """-6 nats on 3 tokens against -5 on 2: -2 - -2.5."""
    assert per_token_margins(scores([-6.0], [-5.0], [3], [2])).tolist() == [0.5]


def test_nats_added_to_every_token_change_nothing():
    before = scores([-1.0, -2.0, -3.0], [-4.0, -3.0, -5.0], [4, 1, 2], [2, 2, 2])
    after = scores([-0.6, -1.9, -2.8], [-3.8, -2.8, -4.8], [4, 1, 2], [2, 2, 2])
    assert per_token_margins(after) == pytest.approx(per_token_margins(before))


def test_uniform_model_ties_on_every_pair_in_spite_of_rounding():
    n_chosen, n_rejected = np.array([13, 7, 29]), np.array([11, 19, 3])
    logps = [(-np.log(32_000) * n).astype(np.float32).astype(np.float64) for n in (n_chosen, n_rejected)]
    assert per_token_margins(Scores(logps[0], logps[1], n_chosen, n_rejected)).tolist() == [0, 0, 0]


def rows(sft: np.ndarray, dpo: np.ndarray, n_chosen: np.ndarray, n_rejected: np.ndarray) -> Figures:
    """Figures of two models, each given as log-probabilities of (chosen, rejected)."""
    logps = {
        f"{stage}_{which}_logps": pa.array(found)
        for stage, both in (("sft", sft), ("dpo", dpo))
        for which, found in zip(("chosen", "rejected"), both, strict=True)
    }
    table = pa.table(
        {
            "id": [str(i) for i in range(N)],
            "source": ["s"] * N,
            "true_margin": pa.nulls(N, pa.float64()),
            "conversation": [str(i) for i in range(N)],
            **{name: ["text"] * N for name in ("prompt", "chosen", "rejected")},
            "n_turns": pa.array([1] * N),
            "n_prompt_tokens": pa.array([10] * N),
            "n_chosen_tokens": pa.array(n_chosen),
            "n_rejected_tokens": pa.array(n_rejected),
            **logps,
        }
    )
    return Figures(**dict(summarise(table, SECTION, {}, 0.1)), confidence=0.95, seed=0, digests={})


@pytest.fixture
def lengths() -> tuple[np.ndarray, np.ndarray]:
    """The chosen response is the longer one in 70 % of the pairs."""
    rng = np.random.default_rng(0)
    n_rejected = rng.integers(20, 60, N)
    return n_rejected + rng.integers(1, 20, N) * np.where(np.arange(N) % 10 < 7, 1, -1), n_rejected


@pytest.fixture
def sft(lengths) -> np.ndarray:
    """A model that is right on about 56 % of the pairs."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0.15, 1.0, N)
    return np.array([-2.0 * lengths[0] + noise + 2 * (lengths[0] - lengths[1]), -2.0 * lengths[1]])


def test_gain_beyond_length_is_promoted(sft, lengths):
    better = sft + np.array([np.where(np.arange(N) % 3 == 0, 40.0, 0.0), np.zeros(N)])
    assert decide(rows(sft, better, *lengths), GateSection()).promoted


@pytest.mark.parametrize("nats", [0.1, -0.1, 1.0, -1.0])
def test_sft_with_nats_added_to_every_token_is_refused(sft, lengths, nats):
    """At +0.1 and +1, accuracy rises significantly, because the chosen responses are longer."""
    shifted = sft + nats * np.array(lengths)
    figures = rows(sft, shifted, *lengths)
    assert (figures.comparisons["dpo_vs_sft"].gain.low > 0) == (nats > 0)
    assert figures.length.per_token["dpo_vs_sft"].gain.value == 0
    promotion = decide(figures, GateSection(max_slice_loss=1.0))
    assert not promotion.promoted
    assert ("accuracy per token, on which length has no effect, gained +0.0" in " ".join(promotion.reasons)) == (
        nats > 0
    )


@pytest.mark.parametrize("nats", [-3.0, 3.0])
def test_model_that_knows_only_length_is_refused(sft, lengths, nats):
    """3 nats a token rank the 70 % of pairs with a longer chosen response correctly, and -3 the other 30 %."""
    only_length = nats * np.array(lengths)
    figures = rows(sft, only_length, *lengths)
    assert figures.stages["dpo"].likelihood_accuracy.value == pytest.approx(0.7 if nats > 0 else 0.3)
    assert figures.stages["dpo"].normalised_accuracy.value == 0.5
    reasons = " ".join(decide(figures, GateSection()).reasons)
    assert "accuracy per token, on which length has no effect, fell" in reasons
    assert f"accuracy on length chosen {'shorter' if nats > 0 else 'longer'} fell" in reasons


def test_accuracy_per_token_must_not_fall(sft, lengths):
    """Constant nats in favour of chosen and against it, in the mean of the tokens: from all pairs correct to none."""
    n_chosen, n_rejected = lengths
    above, below = (np.array([-2.0 * n_chosen + sign, -2.0 * n_rejected]) for sign in (1.0, -1.0))
    reasons = " ".join(decide(rows(above, below, *lengths), GateSection()).reasons)
    assert "accuracy per token, on which length has no effect, fell: -100.0 (-100.0 to -98.5) points" in reasons
