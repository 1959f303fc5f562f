"""Evaluations made by hand: rows of pairs and the figures of them."""

import numpy as np
import pyarrow as pa

from posttrain.config import EvaluationSection
from posttrain.evaluation.figures import Figures, Finding
from posttrain.evaluation.statistics import summarise

N = 200


SECTION = EvaluationSection(n_bootstrap=500)


def spread(accuracy: float) -> np.ndarray:
    """Margins of 1 and -1, of which a share is above 0: the same pairs first whatever the share, so all differ alike."""
    return np.where(np.arange(N) % 100 < 100 * accuracy, 1.0, -1.0)


def table(
    base_margins=None,
    sft_margins=None,
    dpo_margins=None,
    champion_margins=None,
    implicit=None,
    longer=None,
    source=None,
    dpo_chosen=-10.0,
    kl=0.05,
) -> pa.Table:
    """Rows of 200 pairs: SFT is right on 60 %, DPO on 75 %, all lengths are equal; but for what is given."""
    sft = spread(0.6) if sft_margins is None else sft_margins
    dpo = spread(0.75) if dpo_margins is None else dpo_margins
    little = 0.1 * np.where(np.arange(N) % 10 < 7, 1.0, -1.0)  # or the implicit margin would be 0 on most pairs
    dpo = dpo + little if implicit is None else sft + implicit
    base = spread(0.5) if base_margins is None else base_margins
    by_length = np.zeros(N) if longer is None else longer
    sources = np.array(["s"] * N)
    if source == "by_sft":  # a slice on which SFT is always right and DPO never, and one the other way round
        sources = np.where(np.arange(N) % 4 == 0, "good", "bad")
        sft, dpo = np.where(sources == "good", 1.0, -1.0), np.where(sources == "good", -1.0, 1.0)
    stages = {"base": base, "sft": sft, "dpo": dpo}
    if champion_margins is not None:
        stages["champion"] = champion_margins
    chosen = {"dpo": dpo_chosen}
    logps = {
        f"{stage}_{which}_logps": pa.array(chosen.get(stage, -10.0) - (which == "rejected") * margin)
        for stage, margin in stages.items()
        for which in ("chosen", "rejected")
    }
    return pa.table(
        {
            "id": [str(i) for i in range(N)],
            "source": sources,
            "true_margin": pa.nulls(N, pa.float64()),
            "conversation": [str(i) for i in range(N)],
            **{name: ["text"] * N for name in ("prompt", "chosen", "rejected")},
            "n_turns": pa.array([1] * N),
            "n_prompt_tokens": pa.array([10] * N),
            "n_chosen_tokens": pa.array([12] * N),
            "n_rejected_tokens": pa.array(12 - by_length.astype(int)),
            "kl_nats_per_token": pa.array([kl] * N),
            **logps,
        }
    )


def figures_of(rows: pa.Table, findings: tuple[Finding, ...] = ()) -> Figures:
    """The figures of rows."""
    found = summarise(rows, SECTION, {}, beta=0.1)
    return Figures(**dict(found), findings=list(findings), confidence=0.95, seed=0, digests={})
