"""What is certain before training is found before it: bases that are legal, odd or broken."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.families import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.chat.template import TEMPLATES
from posttrain.config import ModelSection, RunConfig, TrainSection
from posttrain.errors import UserError
from posttrain.forward.probe import left_padding_is_exact
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base
from posttrain.models.loading import load_model
from posttrain.orchestration.running_step import training_machine
from posttrain.training import preflight as library
from posttrain.training import trial
from posttrain.training.plan import plan
from posttrain.training.preflight import Needs, machine_problems, needs_of, preflight


def check(folder: Path, lengths: dict[str, int] | None = None, **settings: Any) -> str:
    section = ModelSection(base=str(folder), precision="fp32", **settings)
    needs = Needs(lengths=lengths or {}, stages={"sft": TrainSection(learning_rate=1.0)}, reads_weights=True)
    return preflight(resolve_base(section), section, needs, trains_here=False)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to edit."""
    return shutil.copytree(tiny_folder, tmp_path / "base")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_sound_base_is_trained_saved_and_reloaded(base: Path, method: str) -> None:
    assert check(base, method=method).endswith("one training step, save and reload are exact; batches are flat")


def test_nothing_random_is_left_behind(base: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    check(base)
    assert torch.equal(torch.rand(1), expected)


def test_a_large_base_is_tried_as_a_small_copy(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LARGEST", 10)
    loaded = []

    def loading(base: Base, *rest: Any, **more: Any) -> Any:
        loaded.append(base.id)
        return load_model(base, *rest, **more)

    monkeypatch.setattr(trial, "load_model", loading)
    assert "tried on a small copy" in check(base)
    assert str(base) not in loaded


def test_a_length_above_the_models_positions_is_an_error_with_both(base: Path) -> None:
    edit(base / "config.json", max_position_embeddings=128)
    assert check(base, {"dpo.max_length": 128})
    with pytest.raises(UserError, match=r"dpo\.max_length is 129, but the model has 128 positions"):
        check(base, {"dpo.max_length": 129})


def test_scaled_rope_has_more_positions(base: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10_000.0}
    edit(base / "config.json", max_position_embeddings=128, rope_parameters=rope)
    assert check(base, {"dpo.max_length": 512})
    with pytest.raises(UserError, match="is 513, but the model has 512 positions"):
        check(base, {"dpo.max_length": 513})


def test_rope_that_depends_on_the_batch_is_refused_above_its_original_length(base: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 10_000.0, **factors}
    edit(base / "config.json", max_position_embeddings=256, rope_parameters=rope)
    assert check(base, {"sft.max_length": 64})
    with pytest.raises(UserError, match=r"sft\.max_length is 65, but above 64 tokens .* longest row of a batch"):
        check(base, {"sft.max_length": 65})


def test_missing_weights_are_named_and_never_random(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    gone = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    save_file(
        {name: weight for name, weight in weights.items() if name != gone}, base / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"1 are missing \(first: {gone}\)\. They would be random"):
        check(base)
    section = ModelSection(base=str(base))
    with pytest.raises(UserError, match="They would be random"):
        load_model(resolve_base(section), section)


def test_a_pad_token_beyond_the_embedding_is_refused(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    n = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match=rf"pad_token <new pad> has id {n}, but the embedding of .* has {n} rows"):
        check(base)


def test_unused_tokens_beyond_the_embedding_are_allowed(base: Path) -> None:
    """As Gemma 3's image token, which the text models have no row for."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    assert check(base)


def test_a_base_without_a_tokenizer_is_refused(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer that transformers can read"):
        check(base)


def test_sampling_values_without_sampling_are_left_out(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers loads them and refuses to save them."""
    (base / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.9, "top_p": 0.6}))
    assert check(base)
    assert "Generation settings: temperature, top_p" in capsys.readouterr().out


def test_sampling_values_of_a_model_that_samples_stay(base: Path) -> None:
    (base / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_p": 0.6}))
    section = ModelSection(base=str(base))
    model = load_model(resolve_base(section), section)
    assert model.generation_config is not None
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.9, 0.6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_several_named_templates_survive(base: Path, method: str) -> None:
    templates = {"default": TEMPLATES["plain"], "tool_use": TEMPLATES["plain"] + "{# tools #}"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(base, save_jinja_files=False)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(base).chat_template == templates
    assert check(base, method=method)


def test_an_adapter_alone_is_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=rf"is an adapter of {base}, not a model: merge it .* or, .* in dpo\.start"):
        check(tmp_path / "adapter")


def test_an_adapter_beside_weights_is_refused(base: Path) -> None:
    """transformers would load both and save the adapter only."""
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(base)
    with pytest.raises(UserError, match=r"has an adapter .* beside the model's own weights"):
        check(base)


def test_own_code_cannot_be_fully_trained(base: Path) -> None:
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    settings = {"trust_remote_code": True, "revision": "a" * 40}
    with pytest.raises(UserError, match="would put the model's own code into the checkpoint"):
        check(base, method="full", **settings)


@pytest.mark.parametrize(("method", "package"), [("gptq", "gptqmodel"), ("bitsandbytes", "bitsandbytes")])
def test_quantised_bases_name_the_package_that_they_need(
    base: Path, method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.models.base_checks._installed", lambda name: False)
    settings = (
        {"quant_method": method, "bits": 4} if method == "gptq" else {"quant_method": method, "load_in_4bit": True}
    )
    edit(base / "config.json", quantization_config=settings)
    with pytest.raises(UserError, match=f"quantised with {method}, which needs the package {package}"):
        check(base, method="lora")
    with pytest.raises(UserError, match=r"full cannot train .* whose weights are quantised"):
        check(base, method="full")


def test_all_problems_are_reported_at_once(base: Path) -> None:
    edit(base / "config.json", max_position_embeddings=16)
    with pytest.raises(UserError) as caught:
        check(base, {"sft.max_length": 32, "dpo.max_length": 64})
    assert [line.split(" is ")[0] for line in str(caught.value).splitlines()] == ["sft.max_length", "dpo.max_length"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_the_machine_is_checked() -> None:
    stage = TrainSection(learning_rate=1.0, optimizer="adamw_8bit")
    needs = Needs(lengths={}, stages={"dpo": stage}, reads_weights=True)
    found = machine_problems(ModelSection(method="qlora", attention="flash_attention_2"), needs)
    assert [problem.split(":")[0] for problem in found] == ["model.method", "dpo.optimizer", "model.attention"]


def test_weights_beyond_the_machines_memory_are_an_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "GIB", 2**60)  # the machine has a few millionths of what it had
    monkeypatch.setattr(library, "weights_gib", lambda *_: 10.0)
    needs = Needs(lengths={}, stages={"sft": TrainSection(learning_rate=1.0)}, reads_weights=True)
    (problem,) = machine_problems(ModelSection(base=str(base)), needs)
    assert problem.startswith("sft: weights, gradients and optimizer need about 10.0 GiB")


def test_a_run_needs_the_lengths_of_its_stages_and_answers() -> None:
    config = RunConfig.model_validate(
        {
            "finetuning_type": "dpo",
            "dpo": {"max_length": 96, "max_prompt_length": 64, "start": "3"},
            "evaluation": {"generations": {"n": 4, "max_new_tokens": 40}},
        }
    )
    needs = needs_of(config, reads_base=False)
    assert needs.lengths == {
        "dpo.max_length": 96, "dpo.max_prompt_length + evaluation.generations.max_new_tokens": 104
    }  # fmt: skip
    assert list(needs.stages) == ["dpo"]
    assert not needs.reads_weights


@pytest.mark.parametrize(("operator", "expected"), [(None, True), ("gpu", False)])
def test_a_run_that_trains_elsewhere_is_seen(
    operator: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(operator: str | None) -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(step_operator=operator, settings={}))

    steps = {"preflight": step(None), "train_sft": step(operator), "train_dpo": step(operator), "evaluate": step("gpu")}
    context = SimpleNamespace(
        step_name="preflight", pipeline_run=SimpleNamespace(snapshot=SimpleNamespace(step_configurations=steps))
    )
    monkeypatch.setattr(training_machine, "get_step_context", lambda: context)
    assert training_machine.trains_here() is expected


def test_an_empty_data_file_is_an_error_before_the_run(tmp_path: Path, base: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    section = {"model": {"base": str(base)}, "data": {"sources": [{"path": str(tmp_path / "empty.jsonl")}]}}
    with pytest.raises(UserError, match=r"data\.sources: .*empty\.jsonl has no rows"):
        plan(RunConfig.model_validate(section))


@pytest.mark.parametrize(("family", "expected"), [("llama", True), ("rwkv", False)])
def test_models_that_read_the_padding_are_seen(family: str, expected: bool) -> None:
    """Their answers in a batch would differ, so they answer one prompt at a time."""
    assert left_padding_is_exact(tiny_model(family), 0) is expected


def test_a_random_router_cannot_start_dpo(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no setting turns off: here a model whose logits are noisy in training mode."""

    def noisy(*args: Any, **kwargs: Any) -> Any:
        model: Any = load_model(*args, **kwargs)
        model.lm_head.register_forward_hook(
            lambda module, _, output: output + torch.rand_like(output) if module.training else output
        )
        return model

    monkeypatch.setattr(trial, "load_model", noisy)
    section = ModelSection(base=str(base), precision="fp32")
    with pytest.raises(UserError, match="llama models compute at random in training"):
        trial.try_out(resolve_base(section), section)


def test_a_save_that_loses_weights_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a save that writes the base instead of what was trained."""
    section = ModelSection(base=str(base), precision="fp32")
    monkeypatch.setattr(trial, "train_one_step", lambda model, **_: model.lm_head.weight.data.add_(1.0))
    save = trial.save_trained

    def stale(trained: Any, folder: Path) -> Any:
        trained.model.lm_head.weight.data.sub_(1.0)
        kind = save(trained, folder)
        trained.model.lm_head.weight.data.add_(1.0)
        return kind

    monkeypatch.setattr(trial, "save_trained", stale)
    with pytest.raises(UserError, match="saving and reloading changes 2 weights"):
        trial.try_out(resolve_base(section), section)


def test_a_save_that_changes_the_generation_settings_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7}))
    save = trial.save_trained

    def without_temperature(trained: Any, folder: Path) -> Any:
        trained.model.generation_config.temperature = None
        return save(trained, folder)

    monkeypatch.setattr(trial, "save_trained", without_temperature)
    with pytest.raises(UserError, match=r"reloading changes temperature in generation_config\.json \(0\.7 to "):
        check(base)
