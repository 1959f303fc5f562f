"""Trainings of models whose settings TRL, dropout or a mixture of experts would change."""

import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from support.families import tiny_model
from support.stages import pair_tokens, reference_on, sft_on
from transformers import AutoConfig, AutoTokenizer

from posttrain.config import DpoSection, ModelSection, SftSection
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.forward.logprobs import score_pairs
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_model
from posttrain.models.stored_settings import StoredSettings, remove_randomness
from posttrain.models.token_ids import check_token_ids
from posttrain.training.dpo import train_dpo
from posttrain.training.trainer import TrainingJob

SFT = SftSection(max_steps=2, max_length=96, batch_size=4, eval_steps=2)
DPO = DpoSection(learning_rate=1e-4, max_steps=2, max_length=96, max_prompt_length=64, batch_size=4, eval_steps=2)


def base_of(family: str, tiny_folder: Path, folder: Path, **changes: object) -> ModelSection:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tiny_model(family, vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(base=str(folder), precision="fp32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [("seed_oss", {"attention_dropout": 0.5, "residual_dropout": 0.5}), ("mixtral", {"router_aux_loss_coef": 0.1})],
)
def test_dpo_starts_at_ln_2_and_saves_the_bases_settings(
    family: str, changes: dict[str, float], tiny_folder: Path, preferences: Preferences, tmp_path: Path
) -> None:
    """Dropout in the attention moved the start by 0.37, and the balance loss of a mixture of experts by its value."""
    section = base_of(family, tiny_folder, tmp_path / "base", **changes)
    base = resolve_base(section)
    sft = sft_on(preferences, SFT, TrainingJob(base, section, 0, tmp_path / "sft"))
    reference = reference_on(preferences, sft, base, section)
    dpo = train_dpo(reference, sft, DPO, TrainingJob(base, section, 0, tmp_path / "dpo"))
    assert dpo.manifest.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    before = json.loads((tmp_path / "base" / "config.json").read_text())
    for checkpoint in (sft, dpo):
        after = json.loads((checkpoint.path / "config.json").read_text())
        names = {
            name for name in before.keys() | after.keys() if "router" in name or "dropout" in name or "experts" in name
        }
        assert names
        assert {name: after.get(name) for name in names} == {name: before.get(name) for name in names}
    assert any("aux_loss" in entry for entry in sft.history) == (family == "mixtral")
    assert not any("aux_loss" in entry for entry in dpo.history)


def test_a_balance_loss_that_a_model_does_not_have_is_an_error(
    tiny_base: tuple, preferences: Preferences, tmp_path: Path
) -> None:
    base, section = tiny_base
    wanted = section.model_copy(update={"router_aux_loss_coef": 0.01})
    with pytest.raises(UserError, match=r"router_aux_loss_coef is 0\.01, but llama models have no load-balancing loss"):
        sft_on(preferences, SFT, TrainingJob(base, wanted, 0, tmp_path / "sft"))


def test_every_dropout_is_0_and_the_config_comes_back() -> None:
    """GPT-Neo's attention reads its dropout from the config, Seed-OSS's from a number, and BLOOM's has modules."""
    for family, changes in (
        ("gpt_neo", {"attention_dropout": 0.5, "resid_dropout": 0.5, "embed_dropout": 0.5}),
        ("seed_oss", {"attention_dropout": 0.5, "residual_dropout": 0.5}),
        ("bloom", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
    ):
        model = tiny_model(family, **changes)
        stored = StoredSettings.of(model)
        assert remove_randomness(model)
        ids = torch.arange(3, 20)[None]
        with torch.no_grad():
            evaluated = model.eval()(input_ids=ids).logits
            assert torch.allclose(model.train()(input_ids=ids).logits, evaluated, atol=1e-5), family
        stored.restore(model)
        assert {name: getattr(model.config, name) for name in changes} == changes


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_scored_model_leaves_the_memory(method: str, tiny_base: tuple, preferences: Preferences) -> None:
    """Without a collection of garbage, which may come much later: evaluation loads up to four models."""
    base, section = tiny_base
    section = section.model_copy(update={"method": method})
    tokens = pair_tokens(preferences, base, section)
    model = load_model(base, section, trainable=True)
    weight = weakref.ref(next(model.parameters()))
    gc.disable()
    try:
        score_pairs(model, tokens.rows("test"), section, 4096, "test")
        del model
        assert weight() is None
    finally:
        gc.enable()


def test_adapters_on_a_4_bit_base_are_trained_in_fp32(
    tiny_base: tuple, preferences: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL casts them to bf16, in which updates of 1e-6 are lost. Only the mark of a 4-bit base is set here."""
    base, section = tiny_base
    section = section.model_copy(update={"method": "lora"})
    seen = []

    def marked(*args: object, **kwargs: object) -> object:
        model = load_model(*args, **kwargs)  # type: ignore[arg-type]
        model.is_loaded_in_4bit = True  # type: ignore[assignment]
        return model

    def observe(trainer: object, *_: object) -> str:
        seen.append({p.dtype for p in trainer.model.parameters() if p.requires_grad})  # type: ignore[attr-defined]
        raise UserError("observed")

    monkeypatch.setattr("posttrain.training.dpo.load_model", marked)
    sft = sft_on(preferences, SFT.model_copy(update={"max_steps": 1}), TrainingJob(base, section, 0, tmp_path / "sft"))
    reference = reference_on(preferences, sft, base, section)
    monkeypatch.setattr("posttrain.training.trainer.announce", lambda _: observe(trainers[-1]))
    trainers: list[object] = []
    from posttrain.training import dpo as library

    prepare = library.prepare
    monkeypatch.setattr(library, "prepare", lambda trainer, model: trainers.append(trainer) or prepare(trainer, model))  # type: ignore[func-returns-value]
    with pytest.raises(UserError, match="observed"):
        train_dpo(reference, sft, DPO, TrainingJob(base, section, 0, tmp_path / "dpo"))
    assert seen == [{torch.float32}]


def test_a_token_id_without_a_row_in_the_embedding_is_an_error(tiny_base: tuple) -> None:
    base, section = tiny_base
    model = load_model(base, section)
    n_rows = model.get_input_embeddings().num_embeddings
    check_token_ids(Dataset.from_list([{"input_ids": [1, n_rows - 1], "labels": [-100, 1]}]), model)
    with pytest.raises(UserError, match=f"token id {n_rows}, but the model's embedding has {n_rows} rows"):
        check_token_ids(Dataset.from_list([{"input_ids": [1, n_rows], "labels": [-100, 1]}]), model)


def test_attention_flex_loads(tiny_base: tuple) -> None:
    base, section = tiny_base
    assert load_model(base, section.model_copy(update={"attention": "flex"})).num_parameters()


def test_an_attention_that_is_not_there_is_one_line(tiny_base: tuple) -> None:
    base, section = tiny_base
    with pytest.raises(UserError, match=r"^model\.attention: flash_attention_2 does not work .*set it to auto$"):
        load_model(base, section.model_copy(update={"attention": "flash_attention_2"}))


def test_configs_keep_what_they_had(tiny_folder: Path) -> None:
    """What TRL and the forward pass add to a mixture of experts is removed again."""
    model = tiny_model("granitemoe")
    before = AutoConfig.for_model(**model.config.to_dict()).to_dict()
    stored = StoredSettings.of(model)
    from posttrain.forward.routers import stop_router_outputs

    stop_router_outputs(model)
    assert model.config.num_experts == 4
    stored.restore(model)
    assert model.config.to_dict() == before
