"""The gate on trainings of the demo, sick and healthy ones: `python -m benchmarks.gate_demo` prints the table of docs/verdict.md.

The demo's hidden reward tells them apart: the answers of a sick model win fewer than half of the comparisons with those of SFT,
those of a healthy one at least 55 %. The gate does not see that reward.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import configure
from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, GateSection, ModelSection, RunConfig
from posttrain.config.load import load_config
from posttrain.data.loader import load_preferences
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers.answer_figures import compare_answers
from posttrain.evaluation.answers.generations import Exchange, Generations, generate
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.decision import Promotion, decide
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferenceLogps, ReferencePolicy, score_reference
from posttrain.training.sft import train_sft
from posttrain.training.trainer import TrainingJob

ROOT = Path(__file__).parent.parent

SICK: dict[str, dict[str, Any]] = {
    "rate 1e-2": {"learning_rate": 1e-2},
    "rate 3e-3": {"learning_rate": 3e-3},
    "beta 0.02, rate 5e-4": {"beta": 0.02, "learning_rate": 5e-4},
    "beta 0.05, rate 3e-4": {"beta": 0.05, "learning_rate": 3e-4},
    "untrained SFT": {},
}
HEALTHY: dict[str, dict[str, Any]] = {
    "demo": {},
    "LoRA": {"learning_rate": 1e-3},
    "beta 0.1": {"beta": 0.1},
    "rate 5e-5": {"learning_rate": 5e-5},
    "rate 2e-4": {"learning_rate": 2e-4},
    "beta 0.5, rate 2e-4": {"beta": 0.5, "learning_rate": 2e-4},
    "1 epoch": {"epochs": 1.0},
    "a quarter of an epoch, rate 2e-4": {"epochs": 0.25, "learning_rate": 2e-4},
    "ipo": {"loss_type": "ipo"},
    "hinge": {"loss_type": "hinge"},
    "robust": {"loss_type": "robust", "label_smoothing": 0.1},
    "apo_zero": {"loss_type": "apo_zero"},
    "beta 0.1, rate 5e-5, 1 epoch": {"beta": 0.1, "learning_rate": 5e-5, "epochs": 1.0},
}


@dataclass(frozen=True)
class Demo:
    """The demo up to SFT."""

    config: RunConfig
    base: Base
    preferences: Preferences
    tokens: PairTokens
    sft: dict[str, Checkpoint]
    references: dict[str, ReferenceLogps]

    @property
    def section(self) -> EvaluationSection:
        return self.config.evaluation.model_copy(update={"n_kl_pairs": 0, "n_bootstrap": 500})


def train_both_sft(folder: Path) -> Demo:
    """Return the demo with SFT as it is configured, and with SFT that was stopped after one step."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    preferences, _ = load_preferences(config.data)
    base = resolve_base(config.model)
    settings = TokeniseSettings(config.dpo.lengths, config.sft.max_length)
    tokens = tokenise_data(load_chat(base, config.model), preferences, None, settings)
    assert tokens.sft is not None
    sections = {"sft": config.sft, "untrained SFT": config.sft.model_copy(update={"max_steps": 1, "warmup_steps": 0})}
    sft = {
        name: train_sft(tokens.sft, section, TrainingJob(base, config.model, config.seed, folder / name))
        for name, section in sections.items()
    }
    references = {
        name: score_reference(tokens.pairs, ReferencePolicy(found, base, config.model), 8192)
        for name, found in sft.items()
    }
    return Demo(config, base, preferences, tokens.pairs, sft, references)


def trained(demo: Demo, name: str, folder: Path) -> Checkpoint:
    """Return the DPO checkpoint of one of the trainings."""
    settings = SICK.get(name, HEALTHY.get(name, {}))
    start = name if name in demo.sft else "sft"
    job = TrainingJob(demo.base, model_of(demo, name), demo.config.seed, folder)
    return train_dpo(demo.references[start], demo.sft[start], demo.config.dpo.model_copy(update=settings), job)


def model_of(demo: Demo, name: str) -> ModelSection:
    """Return how a training loads its model."""
    return demo.config.model.model_copy(update={"method": "lora" if "LoRA" in name else "full"})


@dataclass(frozen=True)
class Judged:
    """A trained model: what its answers are worth, and what a gate decides that does not see this."""

    won: float
    """Share of answers that win against SFT's by the hidden reward; ties count one half."""
    figures: Figures
    promotion: Promotion

    @property
    def warnings(self) -> list[str]:
        """Rules of the diagnosis with a warning or an error."""
        return [finding.rule for finding in self.figures.findings if finding.severity != "note"]


def judge(demo: Demo, name: str, dpo: Checkpoint) -> Judged:
    """Return the verdict on a model of the demo."""
    start = name if name in demo.sft else "sft"
    models = EvaluatedModels(demo.base, model_of(demo, name), demo.sft[start], dpo)
    answers = generate(demo.preferences, demo.tokens, models, demo.section)
    won = answers.comparisons["dpo_vs_sft"].by_true_reward
    assert won is not None
    seen = without_reward(answers, demo.section)
    data = EvaluationData(demo.preferences, demo.tokens, demo.references[start], generations=seen)
    figures = evaluate(models, data, demo.section).figures
    return Judged(won.share.value, figures, decide(figures, GateSection(), seen))


def without_reward(answers: Generations, section: EvaluationSection) -> Generations:
    """Return the answers as they are where the data have no hidden reward."""
    exchanges = [
        Exchange(
            **dict(exchange)
            | {"responses": {s: r.model_copy(update={"true_reward": None}) for s, r in exchange.responses.items()}}
        )
        for exchange in answers.exchanges
    ]
    newer, older = ([exchange.responses[stage] for exchange in exchanges] for stage in ("dpo", "sft"))
    compared = {"dpo_vs_sft": compare_answers(newer, older, None, section)}
    assert compared["dpo_vs_sft"].win_rates == {}
    return answers.model_copy(update={"exchanges": exchanges, "comparisons": compared})


def main(names: list[str]) -> None:
    """Train and judge models of the demo, and print a line for each.

    Args:
        names: of the trainings; empty: all.
    """
    configure()
    with tempfile.TemporaryDirectory() as folder:
        demo = train_both_sft(Path(folder))
        print("| DPO | answers that win, by the true reward | accuracy per token, points | held-out SFT loss, nats per token "
              "| warnings | verdict |\n|---|---|---|---|---|---|")  # fmt: skip
        for number, name in enumerate(names or [*SICK, *HEALTHY]):
            print(_row(name, judge(demo, name, trained(demo, name, Path(folder) / str(number)))), flush=True)


def _row(name: str, judged: Judged) -> str:
    figures = judged.figures
    gain = 100 * figures.length.per_token["dpo_vs_sft"].gain.value
    rise = figures.forgetting.rises["dpo_vs_sft"].value if figures.forgetting else float("nan")
    verdict = "promoted" if judged.promotion.promoted else "refused: " + "; ".join(judged.promotion.reasons[1:])
    kind = "sick" if name in SICK else "healthy"
    warnings = ", ".join(judged.warnings) or "none"
    return f"| {kind}: {name} | {judged.won:.0%} | {gain:+.1f} | {rise:+.2f} | {warnings} | {verdict} |"


if __name__ == "__main__":
    main(sys.argv[1:])
