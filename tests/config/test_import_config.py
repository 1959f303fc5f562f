"""Importing configs of TRL, LLaMA-Factory and axolotl: every setting is converted or reported."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from posttrain.cli.main import main
from posttrain.config import RunConfig, check_config, load_config
from posttrain.config.equivalents import TOOLS, TRL, equivalents_tables
from posttrain.config.equivalents.tools import rule_of
from posttrain.config.import_config import import_config, summary_lines
from posttrain.errors import UserError

ROOT = Path(__file__).parents[2]

# After recipes/zephyr-7b-beta/dpo/config_qlora.yaml of the Alignment Handbook.
TRL_FILE = """
model_name_or_path: alignment-handbook/zephyr-7b-sft-qlora
torch_dtype: float16
use_peft: true
load_in_4bit: true
lora_r: 32
lora_alpha: 8
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
dataset_mixer: {HuggingFaceH4/ultrafeedback_binarized: 1.0}
dataset_splits: [train_prefs, test_prefs]
bf16: true
beta: 0.01
evaluation_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
hub_model_id: zephyr-7b-dpo-qlora
learning_rate: 5e-6
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: paged_adamw_32bit
output_dir: data/zephyr
per_device_train_batch_size: 4
push_to_hub: true
sync_ref_model: true
seed: 7
warmup_ratio: 0.1
"""
# After examples/train_lora/qwen3_lora_dpo.yaml.
LLAMA_FACTORY_FILE = """
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.2
pref_loss: sigmoid
pref_ftx: 0.5
dataset: dpo_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
output_dir: saves/qwen3-4b/lora/dpo
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
max_steps: 250
bf16: true
resume_from_checkpoint: null
"""
# After examples/mistral/dpo/mistral-dpo-qlora.yml.
AXOLOTL_FILE = """
base_model: mistralai/Mistral-7B-Instruct-v0.2
model_type: MistralForCausalLM
load_in_8bit: false
load_in_4bit: true
chat_template: chatml
rl: ipo
datasets:
  - path: olivermolenschot/alpaca_messages_dpo_test
    split: train[:500]
    type: chat_template.default
    field_messages: conversation
    field_chosen: chosen
    message_property_mappings: {role: role, content: content}
    shards: 4
dataset_prepared_path:
val_set_size: 0.05
sequence_len: 2048
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
lora_modules_to_save: [embed_tokens, lm_head]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 16
num_epochs: 5
optimizer: adamw_bnb_8bit
learning_rate: 0.0001
bf16: auto
tf32: false
flash_attention: true
evals_per_epoch: 4
special_tokens: {eos_token: <|im_end|>}
"""
FILES = {"trl": TRL_FILE, "llama-factory": LLAMA_FACTORY_FILE, "axolotl": AXOLOTL_FILE}


def read(text: str, tool: str = "auto"):
    return import_config(yaml.safe_load(text), tool)


def keys(fates) -> set[str]:
    return {fate.key for fate in fates}


@pytest.mark.parametrize("tool", FILES)
def test_the_tool_is_recognised_and_the_text_is_a_config(tool, tmp_path):
    source, target = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    source.write_text(FILES[tool])
    imported = import_config(source)
    target.write_text(imported.text)
    assert imported.tool.key == tool
    assert load_config(target) == imported.config
    assert "one optimisation step of all" in imported.text
    assert "multiply gradient_accumulation_steps by N" in " ".join(imported.text.replace("#", "").split())


@pytest.mark.parametrize("tool", FILES)
def test_every_setting_is_accounted_for(tool):
    document = yaml.safe_load(FILES[tool])
    imported = import_config(document)
    assert keys(imported.fates) >= document.keys()
    for fate in imported.fates:
        assert fate.reason or fate.outcome == "carried over", fate
        for setting in fate.settings:
            assert (
                setting.startswith("data.sources")
                or fate.outcome == "not carried over"
                or setting in described(imported)
            )


def described(imported) -> set[str]:
    """The dotted settings of the written text."""

    def names(values, prefix=""):
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{key}.")

    return set(names(yaml.safe_load(imported.text)["parameters"]["config"]))


def test_trl_settings_have_their_values():
    imported = read(TRL_FILE)
    run = imported.config
    assert (run.seed, run.finetuning_type) == (7, "both")
    assert (run.model.base, run.model.method, run.model.precision) == (
        "alignment-handbook/zephyr-7b-sft-qlora", "qlora", "bf16",
    )  # fmt: skip
    assert (run.model.lora.rank, run.model.lora.alpha, run.model.lora.dropout) == (32, 8, 0.05)
    assert run.model.lora.target_modules == ["q_proj", "v_proj"]
    (source,) = run.data.sources
    assert (source.path, source.train_split, source.test_split) == (
        "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "test_prefs",
    )  # fmt: skip
    assert run.dpo.model_dump(exclude_unset=True) == {
        "learning_rate": 5e-6, "epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 1024,
        "optimizer": "adamw", "lr_schedule": "cosine", "gradient_checkpointing": True, "eval_steps": 100, "beta": 0.01,
        "max_prompt_length": 512,
    }  # fmt: skip
    assert keys(imported.not_carried_over) == {"sync_ref_model", "warmup_ratio"}
    assert keys(imported.not_needed) == {
        "torch_dtype",
        "evaluation_strategy",
        "hub_model_id",
        "output_dir",
        "push_to_hub",
    }


def test_llama_factory_settings_have_their_values():
    imported = read(LLAMA_FACTORY_FILE)
    run = imported.config
    assert run.model.method == "lora"
    assert (run.model.lora.rank, run.model.lora.alpha, run.model.lora.target_modules) == (8, 16, "all-linear")
    assert (run.data.sources[0].path, run.data.sources[0].limit) == ("dpo_en_demo", 1000)
    assert run.dpo.model_dump(exclude_unset=True) == {
        "learning_rate": 5e-6, "epochs": 3, "max_steps": 250, "batch_size": 1, "gradient_accumulation_steps": 8,
        "max_length": 2048, "lr_schedule": "cosine", "warmup_steps": 25, "beta": 0.2, "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1, 0.5], "max_prompt_length": 2048,
    }  # fmt: skip
    assert keys(imported.not_carried_over) == {"trust_remote_code", "dataset", "template"}
    assert keys(imported.not_needed) == {"stage", "do_train", "output_dir", "resume_from_checkpoint"}


def test_axolotl_settings_have_their_values():
    imported = read(AXOLOTL_FILE)
    run = imported.config
    assert (run.model.method, run.model.chat_template, run.model.precision) == ("qlora", "chatml", "auto")
    assert (run.model.lora.rank, run.model.lora.alpha, run.model.lora.target_modules) == (8, 16, "all-linear")
    (source,) = run.data.sources
    assert (source.path, source.train_split, source.limit) == (
        "olivermolenschot/alpaca_messages_dpo_test",
        "train",
        500,
    )
    assert source.columns == {"prompt": "conversation"}
    assert run.data.validation_size == 0.05
    assert run.dpo.model_dump(exclude_unset=True) == {
        "learning_rate": 1e-4, "epochs": 5, "batch_size": 16, "gradient_accumulation_steps": 4, "max_length": 2048,
        "optimizer": "adamw_8bit", "lr_schedule": "cosine", "eval_steps": 0.05, "loss_type": "ipo",
        "max_prompt_length": 2048,
    }  # fmt: skip
    assert keys(imported.not_carried_over) == {"datasets[0].shards", "lora_modules_to_save", "special_tokens"}
    assert {"flash_attention", "wandb_project", "tf32", "load_in_8bit", "dataset_prepared_path"} <= keys(
        imported.not_needed
    )


MODEL = {"model_name_or_path": "a/b", "dataset_name": "c/d", "beta": 0.1}
VALUES = {
    "a default of TRL": ({}, "dpo.learning_rate", 1e-6),
    "epochs by TRL's default": ({}, "dpo.epochs", 3.0),
    "all weights": ({"lora_r": 4}, "model.method", "full"),
    "SFT of all weights": ({}, "sft.learning_rate", 1e-5),
    "an adapter": ({"use_peft": True}, "model.method", "lora"),
    "a ratio as steps": ({"warmup_steps": 0.1, "max_steps": 95}, "dpo.warmup_steps", 10),
    "no limit of steps": ({"max_steps": -1}, "dpo.max_steps", None),
    "an 8-bit optimizer": ({"optim": "paged_adamw_8bit"}, "dpo.optimizer", "adamw_8bit"),
    "validation each epoch": ({"eval_strategy": "epoch", "num_train_epochs": 4}, "dpo.eval_steps", 0.25),
    "one loss in a list": ({"loss_type": ["hinge"]}, "dpo.loss_type", "hinge"),
    "mixed losses": ({"loss_type": ["ipo", "sft"], "loss_weights": [1, 0.2]}, "dpo.loss_weights", [1, 0.2]),
    "an SFT term": ({"rpo_alpha": 0.3}, "dpo.loss_type", ["sigmoid", "sft"]),
    "smoothing": ({"loss_type": "robust", "label_smoothing": 0.1}, "dpo.label_smoothing", 0.1),
    "ZeRO 3": ({"deepspeed": "configs/ds_z3_config.json"}, "dpo.sharding", "zero3"),
    "ZeRO 2": ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "dpo.sharding", "zero2"),
    "short rows": ({"max_length": 256}, "dpo.max_prompt_length", 256),
    "a prompt limit above the whole": ({"max_length": 256, "max_prompt_length": 512}, "dpo.max_prompt_length", 256),
    "pinned code": (
        {"trust_remote_code": True, "model_revision": "0" * 40},
        "model.trust_remote_code",
        True,
    ),
    "flex attention": ({"attn_implementation": "flex_attention"}, "model.attention", "flex"),
    "a value as text": ({"learning_rate": "2e-6"}, "dpo.learning_rate", 2e-6),
    "fp32": ({"bf16": False}, "model.precision", "fp32"),
    "TRL's batch size": ({}, "dpo.batch_size", 8),
}


@pytest.mark.parametrize(("more", "setting", "value"), VALUES.values(), ids=VALUES.keys())
def test_a_value_is_converted(more, setting, value):
    found = import_config({**MODEL, **more}).config.model_dump()
    for part in setting.split("."):
        found = found[part]
    assert found == value


LOST = {
    "an optimizer": ({"optim": "adafactor"}, "optim", "offers adamw, adamw_8bit only"),
    "a schedule": ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type", "offers linear, cosine"),
    "smoothing without effect": ({"label_smoothing": 0.1}, "label_smoothing", "loss sigmoid ignores label smoothing"),
    "half precision": ({"fp16": True}, "fp16", "fp16 is not offered"),
    "code of a branch": (
        {"trust_remote_code": True},
        "trust_remote_code",
        "set model.revision to its commit (40 hex digits)",
    ),
    "a bound": ({"beta": 50}, "beta", "less than or equal to 10"),
    "a head": ({"use_peft": True, "lora_target_modules": ["lm_head"]}, "lora_target_modules", "contains lm_head"),
    "an unknown name": ({"betta": 1}, "betta", "is not a known setting of TRL"),
    "8 bits": ({"load_in_8bit": True}, "load_in_8bit", "held in 16 or 4 bits"),
    "no validation": ({"eval_strategy": "no"}, "eval_strategy", "validation is always measured"),
    "no limit of tokens": ({"max_length": None}, "max_length", "null means no limit"),
    "4 bits, sharded": ({"use_peft": True, "load_in_4bit": True, "fsdp": True}, "fsdp", "a 4-bit base is not sharded"),
    "8 bits, sharded": ({"optim": "adamw_8bit", "fsdp": "full_shard"}, "optim", "cannot be used with dpo.sharding"),
    "nonsense": ({"warmup_ratio": "much"}, "warmup_ratio", "its value is not valid"),
    "dropout": ({"disable_dropout": False}, "disable_dropout", "dropout of the base model is off"),
}


@pytest.mark.parametrize(("more", "key", "reason"), LOST.values(), ids=LOST.keys())
def test_what_is_lost_is_listed_with_its_reason(more, key, reason):
    imported = import_config({**MODEL, **more}, "trl")
    (fate,) = [fate for fate in imported.not_carried_over if fate.key == key]
    assert reason in fate.reason
    assert f"# - {key}: " in imported.text


def test_values_that_have_no_effect_are_not_lost():
    imported = import_config({**MODEL, "use_dora": False, "adam_epsilon": 1e-8, "truncation_mode": "keep_start"})
    assert imported.not_carried_over == []


BAD = {
    "not YAML": ("a: [1", "not valid YAML"),
    "a list": ("- a\n- b", "is a list, not a mapping of settings"),
    "text": ("hello", "is a text, not a mapping of settings"),
    "empty": ("", "is empty"),
    "a key twice": ("beta: 0.1\nbeta: 0.2", "the key 'beta' appears twice"),
    "something else": ("services: {web: {}}", "has no setting of TRL, LLaMA-Factory, axolotl"),
    "ambiguous": (
        "model_name_or_path: a/b\nlearning_rate: 1.0e-6\n",
        "may be a config of TRL or LLaMA-Factory: say which with --from trl or --from llama-factory",
    ),
    "ours": ("parameters: {config: {dpo: {beta: 0.1}}}", "is a config of this project already"),
    "SFT of LLaMA-Factory": (LLAMA_FACTORY_FILE.replace("stage: dpo", "stage: sft"), "not a DPO config (stage is sft)"),
    "no stage": (LLAMA_FACTORY_FILE.replace("stage: dpo", ""), "stage is not set, which means sft"),
    "ORPO": (LLAMA_FACTORY_FILE.replace("pref_loss: sigmoid", "pref_loss: orpo"), "pref_loss is orpo"),
    "KTO of axolotl": (AXOLOTL_FILE.replace("rl: ipo", "rl: kto"), "rl is kto"),
    "SFT of axolotl": (AXOLOTL_FILE.replace("rl: ipo", ""), "rl is not set, which means SFT"),
    "GRPO of TRL": (TRL_FILE + "num_generations: 8\n", "num_generations is a setting of TRL's GRPO"),
    "no model": ("dataset_name: c/d\nbeta: 0.1\nuse_peft: true", "names no model: add model_name_or_path"),
    "no data": ("model_name_or_path: a/b\nbeta: 0.1\nuse_peft: true", "names no training data: add dataset_name or"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        import_config(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_from_decides_an_ambiguous_file():
    document = {"model_name_or_path": "a/b", "learning_rate": 1e-6, "dataset_name": "c/d"}
    assert import_config(document, "trl").config.dpo.learning_rate == 1e-6


def test_datasets_of_llama_factory_are_looked_up(tmp_path):
    info = {
        "dpo_en_demo": {
            "hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "en", "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        "mine": {"file_name": "mine.json", "columns": {"prompt": "instruction", "images": "images"}},
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    path = tmp_path / "c.yaml"
    text = LLAMA_FACTORY_FILE.replace("dataset: dpo_en_demo", "dataset: dpo_en_demo, mine\ninterleave_probs: 0.7, 0.3")
    path.write_text(text)
    imported = import_config(path)
    first, second = imported.config.data.sources
    assert (first.path, first.subset, first.columns) == (
        "llamafactory/DPO-En-Zh-20k",
        "en",
        {"prompt": "conversations"},
    )
    assert (second.path, second.columns) == ("data/mine.json", {"prompt": "instruction"})
    assert (first.weight, second.weight) == (0.7, 0.3)
    assert "dataset.mine.columns.images" in keys(imported.not_carried_over)
    assert "dataset" not in keys(imported.not_carried_over)


def test_the_type_of_a_dataset_of_axolotl_names_its_columns():
    document = yaml.safe_load(AXOLOTL_FILE)
    document["datasets"] = [{"path": "Intel/orca_dpo_pairs", "type": "chatml.intel", "name": "en"}]
    del document["chat_template"]
    run = import_config(document).config
    assert run.data.sources[0].columns == {"prompt": "question"}
    assert run.data.sources[0].subset == "en"
    assert run.model.chat_template == "chatml"


def test_secrets_are_not_shown():
    imported = import_config({**MODEL, "hub_token": "hf_secret", "env": {"HF_TOKEN": "hf_secret"}})
    lines = summary_lines("TRL", imported.fates)
    assert any("hub_token" in line for line in lines)
    assert any("- env: environment variables are set outside" in line for line in imported.text.splitlines())
    assert "hf_secret" not in imported.text + " ".join(lines)


HINTS = {
    "batch size": (
        {"dpo": {"per_device_train_batch_size": 4}},
        "dpo.per_device_train_batch_size: unknown key (did you mean 'batch_size'? It counts the rows of all processes together, "
        "TRL's is per process)",
    ),
    "in SFT": ({"sft": {"num_train_epochs": 4}}, "sft.num_train_epochs: unknown key (did you mean 'epochs'?)"),
    "a DPO setting in SFT": ({"sft": {"pref_beta": 0.1}}, "sft.pref_beta: unknown key (did you mean 'dpo.beta'?)"),
    "a level below": ({"model": {"lora_r": 8}}, "model.lora_r: unknown key (did you mean 'lora.rank'?)"),
    "the same level": ({"model": {"model_name_or_path": "x"}}, "(did you mean 'base'?)"),
    "in a section of a section": ({"model": {"lora": {"lora_alpha": 8}}}, "(did you mean 'alpha'?)"),
    "another section, another value": ({"dpo": {"bf16": True}}, "(did you mean 'model.precision: bf16'? "),
    "another value": ({"dpo": {"optim": "adamw_torch"}}, "(did you mean 'optimizer: adamw'?)"),
    "the opposite": (
        {"dpo": {"disable_gradient_checkpointing": True}},
        "(did you mean 'gradient_checkpointing: false'? The opposite of it)",
    ),
    "at the top": ({"num_train_epochs": 3}, "num_train_epochs: unknown key (did you mean 'dpo.epochs'?)"),
    "of the top": ({"dpo": {"seed": 3}}, "(did you mean 'seed' at the top of the config?)"),
    "LLaMA-Factory": ({"dpo": {"cutoff_len": 3}}, "(did you mean 'max_length'? LLaMA-Factory shortens"),
    "axolotl": ({"dpo": {"micro_batch_size": 3}}, "all processes together, axolotl's is per process)"),
    "a source": ({"data": {"sources": [{"path": "demo", "split": "x"}]}}, "(did you mean 'train_split'?"),
    "a sweep": ({"sweep": {"grid": {"lr_scheduler_type": ["cosine"]}}}, "(did you mean 'lr_schedule'?)"),
    "not needed": (
        {"dpo": {"output_dir": "x"}},
        "unknown key (TRL's output_dir is not needed here: artifacts are versioned by ZenML)",
    ),
    "no equivalent": (
        {"dpo": {"sync_ref_model": True}},
        "(TRL's sync_ref_model has no equivalent here: the reference stays the SFT checkpoint)",
    ),
    "a typing error": ({"dpo": {"betta": 1}}, "dpo.betta: unknown key (did you mean 'beta'?)"),
}


@pytest.mark.parametrize(("values", "message"), HINTS.values(), ids=HINTS.keys())
def test_a_name_of_another_tool_gets_a_hint(values, message):
    with pytest.raises(UserError) as caught:
        check_config(values, "c.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_file_of_another_tool_gets_a_hint(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TRL_FILE)
    with pytest.raises(UserError, match="`posttrain import-config` turns it into one of ours"):
        load_config(path)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS.keys())
def test_a_table_names_each_setting_once_and_points_to_ours(tool):
    counts = Counter(entry.name for entry in tool.equivalents)
    assert [name for name, n in counts.items() if n > 1] == []
    for entry in tool.equivalents:
        assert callable(rule_of(entry))
        section: Any = RunConfig
        *sections, leaf = entry.ours.replace("[]", "").split(".")
        for part in sections:
            annotation = section.model_fields[part].annotation
            section = annotation if hasattr(annotation, "model_fields") else annotation.__args__[0]
        assert leaf in section.model_fields, entry
    for names, reason, _ in tool.without_equivalent():
        for name in names.split():
            assert name not in counts or name == "fsdp_config", f"{name}: {reason}"


def test_the_table_knows_every_setting_of_trl():
    from trl import DPOConfig, ModelConfig, ScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    for config in (DPOConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig):
        assert [field.name for field in dataclasses.fields(config) if TRL.find(field.name) is None] == []


def test_trls_defaults_are_those_of_trl():
    from trl import DPOConfig, ModelConfig

    defaults = {
        field.name: field.default for config in (DPOConfig, ModelConfig) for field in dataclasses.fields(config)
    }
    for entry in TRL.equivalents:
        if entry.default is not None:
            assert entry.default == defaults[entry.name]


# Names of LLaMA-Factory's hparams (ff6d4d1) and axolotl's schemas (067b021), a few of each kind.
KNOWN = {
    "llama-factory": "template dataset eval_dataset media_dir cutoff_len train_on_prompt streaming packing tool_format "
    "tokenized_path freeze_trainable_layers additional_target lora_rank loraplus_lr_ratio pissa_init oft_rank pref_ftx "
    "pref_bco_weight simpo_gamma ppo_epochs ref_model ref_model_adapters reward_model_type ld_alpha galore_rank apollo_scale "
    "badam_mode swanlab_project pure_bf16 use_muon early_stopping_steps plot_loss adapter_name_or_path resize_vocab "
    "model_revision rope_scaling flash_attn use_unsloth enable_liger_kernel quantization_bit double_quantization "
    "image_max_pixels export_dir vllm_maxlen kt_weight_path ray_num_workers fp8 overwrite_output_dir num_beams",
    "axolotl": "resume_from_checkpoint trainer_cls rl dpo_use_weighting dpo_label_smoothing dpo_padding_free dpo_loss_type "
    "test_datasets shuffle_merged_datasets dataset_num_proc accelerator_config hf_use_auth_token seed ddp_timeout "
    "loss_watchdog_patience gc_steps fp8 bfloat16 gradient_checkpointing_kwargs excess_length_strategy max_prompt_len "
    "sample_packing_group_size pad_to_multiple_of xformers_attention lora_mlp_kernel chunked_cross_entropy_num_chunks "
    "fsdp_version fp32_norms context_parallel_size special_tokens torch_compile_options warmup_ratio save_first_step "
    "include_tkps neftune_noise_alpha rl_beta chat_template_jinja eot_tokens plugins generation_top_k peft_use_dora "
    "lora_target_linear relora_prune_ratio base_model tokenizer_use_fast hub_strategy eval_batch_size train_on_inputs "
    "optim_args cosine_min_lr_ratio dion_rank_fraction qgalore_rank num_epochs dpo_beta mlflow_tracking_uri lisa_n_layers "
    "wandb_watch comet_mode gradio_share use_ray otel_metrics_host trackio_run_name",
}


@pytest.mark.parametrize("tool", KNOWN)
def test_settings_of_the_other_tools_are_known(tool):
    assert [name for name in KNOWN[tool].split() if TOOLS[tool].find(name) is None] == []


def test_the_page_is_current():
    page = (ROOT / "docs" / "coming-from-trl.md").read_text(encoding="utf-8")
    generated = page.partition("a test compares -->\n\n")[2].partition("\n\n<!-- end -->")[0]
    assert generated == equivalents_tables()
    assert "`batch_size` is shared among processes. TRL's `per_device_train_batch_size` is per process." in page


def test_the_command_writes_a_file_and_says_what_was_lost(tmp_path):
    source, target = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    source.write_text(TRL_FILE)
    result = CliRunner().invoke(main, ["import-config", str(source), "--output", str(target)])
    assert result.exit_code == 0, result.output
    assert load_config(target).dpo.beta == 0.01
    assert "Read as a config of TRL: " in result.output
    assert "sync_ref_model: true: the reference stays the SFT checkpoint" in " ".join(result.output.split())
    printed = CliRunner().invoke(main, ["import-config", str(source), "--from", "trl"])
    assert target.read_text() in printed.output
    refused = CliRunner().invoke(main, ["import-config", str(tmp_path / "none.yaml")])
    assert refused.exit_code == 1
    assert "cannot be read" in refused.output
    assert "cannot be written" in CliRunner().invoke(
        main, ["import-config", str(source), "--output", str(tmp_path / "no" / "x.yaml")]
    ).output  # fmt: skip
