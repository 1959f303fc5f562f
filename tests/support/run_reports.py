"""A run's report made by hand: what a page, a comparison and a model card are tested on, without a training."""

import numpy as np
import pyarrow as pa

from posttrain.config import EvaluationSection, RunConfig
from posttrain.data.profile import DataProfile
from posttrain.data.report import DataReport, SourceReport
from posttrain.evaluation.answers.answer_figures import Response, StageGenerations, compare_answers
from posttrain.evaluation.answers.generations import Exchange, Generations
from posttrain.evaluation.answers.judge import win_rate
from posttrain.evaluation.figures import Figures, Finding
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.statistics import summarise
from posttrain.models.checkpoint import Base
from posttrain.reporting.run_report import Lineage, RunReport

HALF = Estimate(value=0.5, low=0.25, high=0.75)
N = 60


def make_pairs(gain: float = 2.0, source: str = "here/one", text: str = "some text") -> pa.Table:
    """Sixty scored pairs of two sources; DPO is ahead of SFT by about `gain` nats."""
    rng = np.random.default_rng(0)
    logps = {stage: rng.normal(-20, 3, (N, 2)) for stage in ("base", "sft")}
    logps["dpo"] = logps["sft"] + np.array([gain, 0.0]) + rng.normal(0, 3, (N, 2))
    ids = [f"pair-{i}" for i in range(N)]
    return pa.table(
        {
            "id": ids,
            "source": [source if i % 2 else "there/two" for i in range(N)],
            "true_margin": pa.nulls(N, pa.float64()),
            "conversation": ids,
            **{name: [text] * N for name in ("prompt", "chosen", "rejected")},
            "n_turns": [1] * N,
            "n_prompt_tokens": [8] * N,
            "n_chosen_tokens": rng.integers(3, 12, N),
            "n_rejected_tokens": rng.integers(3, 12, N),
            "kl_nats_per_token": rng.uniform(0, 0.2, N),
            **{
                f"{stage}_{side}_logps": pa.array(found[:, column], pa.float32())
                for stage, found in logps.items()
                for column, side in enumerate(("chosen", "rejected"))
            },
        }
    )


def make_report(run: str = "run-1", pairs: pa.Table | None = None, text: str = "some text", **config) -> RunReport:
    """A report on such pairs, in which every text that may come from data or models is `text`."""
    answer = Response(text=text, n_tokens=3, stopped=True, repetition=0.0, true_reward=1.0)
    answered = StageGenerations(stop_rate=HALF, n_tokens=HALF, repetition=HALF, distinct_2=0.5, true_reward=HALF)
    exchanges = [
        Exchange(
            id=f"pair-{i}",
            source=text,
            prompt=[{"role": "user", "content": text}],
            responses={"sft": answer, "dpo": answer.model_copy(update={"text": f"{text} {i}"})},
        )
        for i in range(30)
    ]
    compared = compare_answers([answer] * 30, [answer] * 30, None, EvaluationSection()).model_copy(
        update={"by_true_reward": win_rate([1.0] * 30, 0.95)}
    )
    found = summarise(
        pairs if pairs is not None else make_pairs(source=text, text=text), EvaluationSection(), {}, beta=0.1
    )
    finding = Finding(
        rule="planted", severity="warning", stage="dpo", title=text, evidence={"x": 1.0}, threshold="0", advice=text
    )
    figures = Figures(
        **dict(found), findings=[finding], confidence=0.95, seed=0, digests={"preferences": "p", "sft": "s", "dpo": "d"}
    )
    steps = [
        {"step": float(i), "loss": 1 / i, "rewards/accuracies": 0.5, "rewards/margins": 0.1 * i} for i in range(1, 20)
    ]
    rewards = [{**step, "rewards/chosen": 0.1, "rewards/rejected": -0.1} for step in steps]
    return RunReport(
        lineage=Lineage(
            run=run,
            config=RunConfig.model_validate(config).model_dump(mode="json"),
            data="data-digest",
            code="code-digest",
            versions={"torch": "2.13.0"},
            base=Base(id="org/base", revision="abc123", digest="hub:org/base@abc123"),
            models={"sft": "s", "dpo": "d"},
        ),
        data=DataReport(
            n_rows=61, n_read=61, n_kept=60, n_dropped=1, dropped={"empty": 1}, fixed={}, flagged={},
            examples={"empty": [text]},
            figures=DataProfile(by_source={}, characters={}, user_turns={1: 60}, n_with_system=0),
            splits={"train": 0, "test": 60}, digest="data-digest",
            sources=[SourceReport(path="org/pairs", format="explicit", revision="def", digest=None, n_rows=61, n_read=61,
                                  n_kept=60, dropped={"empty": 1})],
        ),
        histories={"sft": steps, "dpo": rewards},
        figures=figures,
        generations=Generations(
            max_new_tokens=8, temperature=0.0, seed=0, stages={"sft": answered, "dpo": answered},
            comparisons={"dpo_vs_sft": compared}, exchanges=exchanges, digests={"sft": "s", "dpo": "d"},
        ),
        promotion=Promotion(promoted=True, opponent="sft", reasons=[f"because {text}"]),
    )  # fmt: skip
