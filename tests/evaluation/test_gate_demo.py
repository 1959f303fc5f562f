"""The gate on trainings of the demo: models that write bad answers are refused without a judge, and good ones are promoted.

Sick and healthy runs are told apart by the demo's hidden reward: the answers of a sick run win fewer than half of the comparisons
with those of SFT, those of a healthy run at least 55 %. The gate does not see that reward. By default three of the healthy runs are
trained; `GATE_DEMO=all` trains all of them, about a minute each on an idle core.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT
from transformers import PreTrainedModel

from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, GateSection, ModelSection, RunConfig
from posttrain.config.load import load_config
from posttrain.data.loader import load_preferences
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers.answer_figures import compare_answers
from posttrain.evaluation.answers.generations import Exchange, Generations, generate
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.gate.decision import Promotion, decide
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferenceLogps, ReferencePolicy, score_reference
from posttrain.training.sft import train_sft
from posttrain.training.trainer import TrainingJob

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]  # on busy cores, SFT and its scores alone take ten minutes

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
TRAINED = list(HEALTHY)[: None if os.environ.get("GATE_DEMO") == "all" else 3]


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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """SFT as in the demo, and SFT that was stopped after one step."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    preferences, _ = load_preferences(config.data)
    base = resolve_base(config.model)
    settings = TokeniseSettings(config.dpo.lengths, config.sft.max_length)
    tokens = tokenise_data(load_chat(base, config.model), preferences, None, settings)
    assert tokens.sft is not None
    sections = {"sft": config.sft, "untrained SFT": config.sft.model_copy(update={"max_steps": 1, "warmup_steps": 0})}
    folder = tmp_path_factory.mktemp("demo")
    sft = {
        name: train_sft(tokens.sft, section, TrainingJob(base, config.model, config.seed, folder / name))
        for name, section in sections.items()
    }
    references = {
        name: score_reference(tokens.pairs, ReferencePolicy(found, base, config.model), 8192)
        for name, found in sft.items()
    }
    return Demo(config, base, preferences, tokens.pairs, sft, references)


def trained(demo: Demo, name: str, settings: dict[str, Any], folder: Path) -> Checkpoint:
    start = name if name in demo.sft else "sft"
    job = TrainingJob(demo.base, model_of(demo, name), demo.config.seed, folder)
    return train_dpo(demo.references[start], demo.sft[start], demo.config.dpo.model_copy(update=settings), job)


def model_of(demo: Demo, name: str) -> ModelSection:
    return demo.config.model.model_copy(update={"method": "lora" if "LoRA" in name else "full"})


def verdict(demo: Demo, name: str, dpo: Checkpoint) -> tuple[float, Promotion]:
    """Return the share of answers that win by the hidden reward, and the decision of a gate that does not see it."""
    start = name if name in demo.sft else "sft"
    models = EvaluatedModels(demo.base, model_of(demo, name), demo.sft[start], dpo)
    answers = generate(demo.preferences, demo.tokens, models, demo.section)
    won = answers.comparisons["dpo_vs_sft"].by_true_reward
    assert won is not None
    seen = without_reward(answers, demo.section)
    data = EvaluationData(demo.preferences, demo.tokens, demo.references[start], generations=seen)
    return won.share.value, decide(evaluate(models, data, demo.section).figures, GateSection(), seen)


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


@pytest.mark.parametrize("name", SICK)
def test_sick_model_is_refused(demo: Demo, name: str, tmp_path: Path) -> None:
    won, promotion = verdict(demo, name, trained(demo, name, SICK[name], tmp_path / "dpo"))
    print(f"{name}: won {won:.1%}, {promotion}")
    assert won < 0.5
    assert not promotion.promoted
    about = ("answers", "held-out SFT data")
    assert any(part in reason for reason in promotion.reasons[1:] for part in about)


@pytest.mark.parametrize("name", TRAINED)
def test_healthy_model_is_promoted(demo: Demo, name: str, tmp_path: Path) -> None:
    won, promotion = verdict(demo, name, trained(demo, name, HEALTHY[name], tmp_path / "dpo"))
    print(f"{name}: won {won:.1%}, {promotion}")
    assert won >= 0.55
    assert promotion.promoted, promotion.reasons


def test_healthy_weights_that_never_stop_are_refused(demo: Demo, tmp_path: Path) -> None:
    """The output weights of the stop token are set to 0, which lowers its logit until no answer ends."""
    healthy = trained(demo, "demo", {}, tmp_path / "healthy")
    model = load_model(demo.base, demo.config.model, healthy)
    assert isinstance(model, PreTrainedModel)
    chat = load_chat(demo.base, demo.config.model, healthy)
    head = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    head.data[chat.stop_ids] = 0
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = head
    model.save_pretrained(tmp_path / "endless")
    chat.tokenizer.save_pretrained(tmp_path / "endless")
    about = healthy.manifest.model_dump(exclude={"files", "digest"})
    _, promotion = verdict(demo, "demo", seal(tmp_path / "endless", [], **about))
    assert any("fewer answers end with a stop token against SFT: -100" in reason for reason in promotion.reasons)
