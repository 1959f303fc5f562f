"""A model that got worse on further sets of pairs, or that forgot what SFT taught, is refused."""

import numpy as np
import pyarrow as pa
import pytest
from support.figures import SECTION, figures_of, spread, table
from support.pairs import make_pairs
from support.stages import pair_tokens, sft_on

from posttrain.chat.tokenise_data import HELD_OUT_SHARE, TokeniseSettings, tokenise_data
from posttrain.chat.tokens import SftTokens
from posttrain.config import EvaluationSection, GateSection, Lengths, SftSection
from posttrain.data.stored import Instructions
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.forgetting import LEAST_ROWS, HeldOut, held_out_rows, measure_forgetting, of_chosen
from posttrain.evaluation.gate.decision import decide
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.evaluation.statistics import summarise
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat
from posttrain.training.trainer import TrainingJob

LENGTHS = Lengths(max_length=96, max_prompt_length=64)


def with_set(dpo_accuracy: float):
    """DPO is better on the test pairs. On the set, SFT is right on 60 %."""
    of_set = summarise(table(dpo_margins=spread(dpo_accuracy)), SECTION, {}, beta=0.1)
    return figures_of(table()).model_copy(update={"sets": {"bench": of_set}})


def test_loss_on_a_further_set_is_refused():
    """A set at -53 points was promoted. Here it is 8 % against 60 %."""
    figures = with_set(0.08)
    (reason,) = decide(figures, GateSection()).reasons[1:]
    assert reason.startswith("accuracy on the set bench fell: -52.0 (-58.")
    assert "gate.max_set_loss allows a loss of 5.0 points" in reason
    assert decide(figures, GateSection(max_set_loss=1.0)).promoted
    assert decide(figures, GateSection(min_slice_pairs=201)).promoted  # the set has 200
    assert decide(with_set(0.58), GateSection()).promoted


def test_sets_are_tested_together():
    """-10 points on one set (p = 0.028 of a loss beyond 5 points) refuse a model; as the worst of three they do not: p = 0.084."""
    figures = with_set(0.5)
    (reason,) = decide(figures, GateSection()).reasons[1:]
    assert reason.startswith("accuracy on the set bench fell: -10.0")
    at_the_margin = with_set(0.55).sets["bench"]
    of_three = figures.model_copy(update={"sets": {**figures.sets, "second": at_the_margin, "third": at_the_margin}})
    assert decide(of_three, GateSection()).promoted


def test_loss_per_token_by_hand():
    """2 + 6 nats on 4 + 4 tokens are 1 a token for SFT, 4 + 12 are 2 for DPO; the champion loses 1 + 3."""
    logps = {"sft": np.array([-2.0, -6.0]), "dpo": np.array([-4.0, -12.0]), "champion": np.array([-1.0, -3.0])}
    found = measure_forgetting(HeldOut("chosen", logps, np.array([4.0, 4.0])), SECTION)
    assert {stage: loss.value for stage, loss in found.losses.items()} == {"sft": 1, "dpo": 2, "champion": 0.5}
    assert {name: rise.value for name, rise in found.rises.items()} == {"dpo_vs_sft": 1, "dpo_vs_champion": 1.5}
    assert (found.n_rows, found.data) == (2, "chosen")


@pytest.mark.parametrize(("nats", "promoted"), [(0.9, True), (1.1, False)])
def test_forgetting_is_refused(nats, promoted):
    logps = {"sft": np.full(30, -10.0), "dpo": np.full(30, -10.0 - 10 * nats)}
    forgetting = measure_forgetting(HeldOut("instructions", logps, np.full(30, 10.0)), SECTION)
    figures = figures_of(table()).model_copy(update={"forgetting": forgetting})
    promotion = decide(figures, GateSection())
    assert promotion.promoted == promoted
    if not promoted:
        assert (
            "the loss on held-out SFT data rose by 1.1 (1.1 to 1.1) nats per token against SFT" in promotion.reasons[1]
        )
        assert decide(figures, GateSection(max_forgetting_nats=1.2)).promoted


def test_champion_with_other_tokens_is_left_out():
    rows = table(champion_margins=spread(0.6))
    assert set(of_chosen(rows).logps) == {"base", "sft", "dpo", "champion"}
    other = rows.append_column("champion_n_chosen_tokens", rows["n_chosen_tokens"])
    assert set(of_chosen(other).logps) == {"base", "sft", "dpo"}


def instructions(n: int) -> Instructions:
    rows = make_pairs(n, seed=9)
    table = rows.with_format("arrow")[:]
    prompts = [[{"role": "user", "content": f"Number {i}?"}] for i in range(n)]
    columns = {
        "id": table["id"], "source": table["source"], "prompt": pa.array(prompts), "completion": table["chosen"],
        "tools": pa.nulls(n, pa.string()),
    }  # fmt: skip
    return Instructions(type(rows)(pa.table(columns)))


def test_some_instructions_are_held_out_by_their_prompts(tiny_base, preferences):
    base, model = tiny_base
    chat, settings = load_chat(base, model), TokeniseSettings(LENGTHS, 96)
    whole = tokenise_data(chat, preferences, instructions(1000), settings).sft
    n_test = len(whole.rows("test"))
    assert len(whole.rows("train")) + n_test == 1000
    assert 0.5 * HELD_OUT_SHARE < n_test / 1000 < 2 * HELD_OUT_SHARE
    assert len(whole.rows("validation")) == len(preferences.validation)
    half = tokenise_data(chat, preferences, instructions(500), settings).sft
    kept = half.rows("test")["input_ids"]
    assert whole.rows("test")["input_ids"][: len(kept)] == kept
    assert len(tokenise_data(chat, preferences, None, settings).sft.rows("test")) == 0


def sft_tokens(n: int) -> SftTokens:
    row = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, 3, -100, 5, -100]}
    rows = pa.Table.from_pylist([row] * n)
    return SftTokens({"train": rows, "validation": rows, "test": rows}, {}, 96, "chat")


def test_completion_of_a_held_out_row_begins_at_the_first_learned_token():
    rows = held_out_rows(sft_tokens(LEAST_ROWS))
    assert len(rows) == LEAST_ROWS
    assert rows[0] == {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [3]}
    assert held_out_rows(sft_tokens(LEAST_ROWS - 1)) is None
    assert held_out_rows(None) is None


@pytest.fixture
def checkpoints(tiny_base, preferences, tmp_path) -> list[Checkpoint]:
    """Two models of the same base."""
    base, model = tiny_base
    return [
        sft_on(
            preferences,
            SftSection(learning_rate=rate, max_steps=2, max_length=96, eval_steps=5),
            TrainingJob(base, model, 0, tmp_path / str(rate)),
        )
        for rate in (1e-3, 1e-2)
    ]


def test_every_model_is_scored_on_the_held_out_instructions(tiny_base, preferences, checkpoints):
    """The loss equals that of the same rows scored as pairs; a champion that is SFT has SFT's."""
    sft, dpo = checkpoints
    base, model = tiny_base
    tokens = pair_tokens(preferences, base, model, LENGTHS)
    rows = tokens.rows("test")
    held = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in rows
    ] * 3
    own = SftTokens({"test": pa.Table.from_pylist(held)}, {}, 96, tokens.chat)
    models = EvaluatedModels(base, model, sft, dpo, champion=sft)
    section = EvaluationSection(n_bootstrap=100, n_kl_pairs=0)
    found = evaluate(models, EvaluationData(preferences, tokens, sft_tokens=own), section).figures.forgetting
    chosen = evaluate(models, EvaluationData(preferences, tokens), section).figures.forgetting
    assert (found.data, found.n_rows, chosen.data, chosen.n_rows) == ("instructions", 24, "chosen", 8)
    for stage in ("base", "sft", "dpo", "champion"):
        assert found.losses[stage].value == pytest.approx(chosen.losses[stage].value, rel=1e-4)
    assert found.losses["champion"] == found.losses["sft"]
    assert list(found.rises) == ["dpo_vs_sft", "dpo_vs_champion"]
    assert found.losses["dpo"].value != found.losses["sft"].value
