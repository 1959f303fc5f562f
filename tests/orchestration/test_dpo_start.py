"""DPO from a model that this run did not train: an instruct model, a checkpoint, or the model in production."""

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
import yaml
from click.testing import CliRunner
from support.stages import reference_on, sft_on
from zenml.client import Client
from zenml.models import ArtifactVersionResponse

from pipelines.dpo import dpo_pipeline
from posttrain.cli.main import main
from posttrain.config import DpoSection, ModelSection, RunConfig, SftSection
from posttrain.errors import UserError
from posttrain.evaluation.gate.decision import Promotion
from posttrain.models.base import resolve_base
from posttrain.models.base_checkpoint import base_checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.orchestration import dpo_start
from posttrain.orchestration.dpo_start import DpoStart, find_start, reference_of, start_of
from posttrain.orchestration.finished_runs import read_report
from posttrain.training.dpo import train_dpo
from posttrain.training.trainer import TrainingJob

pytestmark = pytest.mark.slow

DPO = DpoSection(learning_rate=5e-3, max_steps=2, batch_size=2, max_length=96, max_prompt_length=64)


def run_config(start: str, **model: Any) -> RunConfig:
    return RunConfig.model_validate({"finetuning_type": "dpo", "model": model, "dpo": {"start": start}})


@pytest.mark.parametrize(
    ("name", "base", "revision"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        ("Qwen/Qwen3-0.6B@v1.0", "Qwen/Qwen3-0.6B", "v1.0"),
        ("gpt2", "gpt2", None),
        ("demo", "demo", None),
    ],
)
def test_a_hub_model_is_the_base_of_the_run(name: str, base: str, revision: str | None) -> None:
    model, start = start_of(run_config(name))
    assert (model.base, model.revision) == (base, revision)
    assert start is not None
    assert start.checkpoint is None


def test_a_folder_is_the_base_of_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    model, start = start_of(run_config(str(tiny_folder)))
    assert model.base == str(tiny_folder)
    link = tmp_path / "same"
    link.symlink_to(tiny_folder)
    assert start_of(run_config(str(tiny_folder), base=str(link)))[1] == start
    with pytest.raises(
        UserError, match=r"model\.base: gpt2 is not the base of dpo\.start, the model .*: set model\.base to"
    ):
        start_of(run_config(str(tiny_folder), base="gpt2"))


def test_a_folder_without_a_model_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"contains neither a checkpoint \(manifest\.json\) nor a model \(config\.json\)"
    ):
        find_start(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match=r"is a PEFT adapter \(of org/base\).*merge_and_unload"):
        find_start(str(tmp_path))


def test_an_adapter_needs_the_method_lora(tiny_base: Any, preferences: Any, tmp_path: Path) -> None:
    base, section = tiny_base
    lora = section.model_copy(update={"method": "lora"})
    sft = SftSection(max_steps=1, max_length=96)
    checkpoint = sft_on(preferences, sft, TrainingJob(base, lora, 0, tmp_path / "sft"))
    start = find_start(str(checkpoint.path))
    assert (start.kind, start.base) == ("adapter", base.id)
    assert start_of(run_config(str(checkpoint.path), method="lora"))[0].base == base.id
    with pytest.raises(
        UserError, match=r"model\.method: full cannot continue from dpo\.start, the checkpoint .* \(an adapter"
    ):
        start_of(run_config(str(checkpoint.path), method="full"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_dpo_starts_at_the_model_itself(method: str, tiny_folder: Path, preferences: Any, tmp_path: Path) -> None:
    section = ModelSection(base=str(tiny_folder), precision="fp32", method=method, chat_template="plain")  # type: ignore[arg-type]
    base = resolve_base(section)
    (tmp_path / "start").mkdir()
    start = base_checkpoint(base, section, tmp_path / "start")
    assert not list(start.path.glob("*.safetensors"))  # its weights are not copied
    reference = reference_on(preferences, start, base, section)
    trained = train_dpo(reference, start, DPO, TrainingJob(base, section, 0, tmp_path / "dpo"))
    assert trained.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # before the first update
    assert trained.manifest.kind == {"full": "full", "lora": "adapter"}[method]
    assert trained.manifest.parent == start.digest
    assert trained.manifest.template == "plain"
    ids = torch.arange(1, 41).reshape(4, 10)
    with torch.no_grad():
        of_base, of_start, of_trained = (
            load_model(base, section, which).eval()(input_ids=ids).logits for which in (None, start, trained)
        )
    assert torch.equal(of_base, of_start)
    assert (of_trained - of_base).abs().max() > 1e-3


def test_two_models_with_one_tokenizer_are_two_starts(tiny_base: Any, tmp_path: Path) -> None:
    base, section = tiny_base
    found = []
    for name, digest in (("one", base.digest), ("same", base.digest), ("other", "0" * 64)):
        (tmp_path / name).mkdir()
        found.append(base_checkpoint(base.model_copy(update={"digest": digest}), section, tmp_path / name).digest)
    assert found[0] == found[1] != found[2]


def test_the_settings_of_the_template_go_with_the_start(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ greeting }} {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    settings = {"chat_template": str(tmp_path / "own.jinja"), "chat_template_kwargs": {"greeting": "Dear"}}
    section = ModelSection.model_validate({"base": str(tiny_folder), **settings})
    base = resolve_base(section)
    (tmp_path / "start").mkdir()
    start = base_checkpoint(base, section, tmp_path / "start")
    assert start.manifest.template_kwargs == {"greeting": "Dear"}
    chat = load_chat(base, section, start)  # with the same settings it loads
    asked = chat.tokenizer.apply_chat_template([{"role": "user", "content": "Ann"}], tokenize=False)
    assert asked == "Dear Ann"


def test_a_run_on_an_instruct_model_and_one_on_the_model_in_production(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "posttrain.evaluation.gate.decision.decide",
        lambda figures, *_: Promotion(promoted=True, opponent=figures.opponent, reasons=["well done"]),
    )

    def run(start: str, **config: Any) -> Any:
        path = tmp_path / "run.yaml"
        settings = {
            "name": "instructed",
            "finetuning_type": "dpo",
            "data": {"sources": [{"path": "demo", "limit": 103}], "test_size": 0.2},
            "dpo": {"max_steps": 1, "batch_size": 2, "start": start},
            "evaluation": {"generations": {"n": 2, "max_new_tokens": 4}},
            **config,
        }
        path.write_text(yaml.safe_dump({"parameters": {"config": settings}}))
        return path, dpo_pipeline.with_options(config_path=str(path))()

    path, first = run(str(tiny_folder))
    assert "train_sft" not in first.steps
    assert first.steps["train_dpo"].outputs["dpo_checkpoint"][0].run_metadata["base"] == str(tiny_folder)
    stages = read_report(first.id).figures.stages
    assert stages["base"] == stages["sft"]  # they are one model, which is scored once
    shown = CliRunner().invoke(main, ["check", str(path)]).output
    assert f"dpo starts from the model {tiny_folder}, which is also its reference" in shown
    path, second = run("instructed:production")
    assert not {"train_sft", "import_checkpoint"} & set(second.steps)
    before, after = (
        Client().get_pipeline_run(r.id).steps["train_dpo"].outputs["dpo_checkpoint"][0] for r in (first, second)
    )
    assert after.run_metadata["parent"] == before.run_metadata["digest"]
    version = first.steps["train_dpo"].outputs["dpo_checkpoint"][0].version
    assert (
        f"the checkpoint dpo_checkpoint:{version} (all weights of {tiny_folder})"
        in CliRunner().invoke(main, ["check", str(path), "--set", f"dpo.start=dpo_checkpoint:{version}"]).output
    )


def held_to_sft(start: str = "demo:production") -> RunConfig:
    return RunConfig.model_validate({"finetuning_type": "dpo", "dpo": {"start": start, "reference": "sft"}})


def test_the_reference_sft_is_found_through_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of DPO after SFT: the parents lead back to the SFT checkpoint."""

    def version(name: str, digest: str, parent: str) -> ArtifactVersionResponse:
        found = ArtifactVersionResponse.model_construct(id=uuid4())
        values = {
            "artifact": SimpleNamespace(name=name),
            "version": "1",
            "run_metadata": {"digest": digest, "parent": parent},
        }
        for field in values:
            monkeypatch.setattr(
                ArtifactVersionResponse,
                field,
                property(functools.partial(lambda name, self: self.__dict__["held"][name], field)),
            )
        found.__dict__["held"] = values
        return found

    sft, first, second = (
        version("sft_checkpoint", "s", "base"),
        version("dpo_checkpoint", "a", "s"),
        version("dpo_checkpoint", "b", "a"),
    )
    stored = {"digest:s": [sft], "digest:a": [first]}
    monkeypatch.setattr(
        dpo_start,
        "Client",
        lambda: SimpleNamespace(
            list_artifact_versions=lambda **which: SimpleNamespace(items=stored.get(which["run_metadata"], []))
        ),
    )
    assert reference_of(held_to_sft(), DpoStart("demo", None, second, "full")) is sft
    assert reference_of(run_config("demo:production"), DpoStart("demo", None, second, "full")) is None
    stored.pop("digest:s")
    with pytest.raises(UserError, match=r"dpo_checkpoint:1 was trained from is not in this store"):
        reference_of(held_to_sft(), DpoStart("demo", None, second, "full"))


def test_the_reference_sft_needs_a_start_that_a_run_trained() -> None:
    with pytest.raises(UserError, match=r"dpo\.reference: sft needs a dpo\.start that a run of this project trained"):
        reference_of(held_to_sft("demo"), DpoStart("demo", None))
    with pytest.raises(ValueError, match="has it as its reference anyway"):
        RunConfig.model_validate({"dpo": {"reference": "sft"}})
