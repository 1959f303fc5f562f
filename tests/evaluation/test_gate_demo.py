"""The gate on trainings of the demo: models that write bad answers are refused without a judge, and good ones are promoted.

By default three of the healthy runs are trained; `GATE_DEMO=all` trains all of them, about a minute each on an idle core.
`python -m benchmarks.gate_demo` prints their figures.
"""

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.gate_demo import HEALTHY, SICK, Demo, judge, train_both_sft, trained
from posttrain.models.checkpoint import seal
from posttrain.models.loading import load_chat, load_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]  # on busy cores, SFT and its scores alone take ten minutes

TRAINED = list(HEALTHY)[: None if os.environ.get("GATE_DEMO") == "all" else 3]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return train_both_sft(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("name", SICK)
def test_sick_model_is_refused(demo: Demo, name: str, tmp_path: Path) -> None:
    found = judge(demo, name, trained(demo, name, tmp_path / "dpo"))
    print(f"{name}: won {found.won:.1%}, {found.promotion}")
    assert found.won < 0.5
    assert not found.promotion.promoted
    about = ("answers", "held-out SFT data")
    assert any(part in reason for reason in found.promotion.reasons[1:] for part in about)


@pytest.mark.parametrize("name", TRAINED)
def test_healthy_model_is_promoted(demo: Demo, name: str, tmp_path: Path) -> None:
    found = judge(demo, name, trained(demo, name, tmp_path / "dpo"))
    print(f"{name}: won {found.won:.1%}, {found.promotion}")
    assert found.won >= 0.55
    assert found.promotion.promoted, found.promotion.reasons


def test_healthy_weights_that_never_stop_are_refused(demo: Demo, tmp_path: Path) -> None:
    """The output weights of the stop token are set to 0, which lowers its logit until no answer ends."""
    healthy = trained(demo, "demo", tmp_path / "healthy")
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
    promotion = judge(demo, "demo", seal(tmp_path / "endless", [], **about)).promotion
    assert any("fewer answers end with a stop token against SFT: -100" in reason for reason in promotion.reasons)
