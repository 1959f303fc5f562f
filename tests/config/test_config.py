"""Loading and validating configs: each mistake gives one line with file, key, value and fix."""

import re
from pathlib import Path

import pytest
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

from posttrain.config import TOP_LEVEL_KEYS, RunConfig, check_config, load_config
from posttrain.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_all_shipped_configs_are_valid(path):
    assert isinstance(load_config(path), RunConfig)


BAD = {
    "unknown key": ({"dpo": {"betta": 1}}, "c.yaml: dpo.betta: unknown key (did you mean 'beta'?)"),
    "unknown section": ({"dpoo": {}}, "c.yaml: dpoo: unknown key (did you mean 'dpo'?)"),
    "unknown key in a list": (
        {"model": {"base": "x"}, "data": {"sources": [{"path": "x", "formt": "auto"}]}},
        "c.yaml: data.sources.0.formt: unknown key (did you mean 'format'?)",
    ),
    "missing key": ({"data": {"sources": [{}]}}, "c.yaml: data.sources.0.path: missing: set a value"),
    "wrong type": ({"dpo": {"beta": "abc"}}, "c.yaml: dpo.beta: 'abc' is not allowed: must be a valid number"),
    "boolean for a number": (
        {"dpo": {"beta": True}},
        "c.yaml: dpo.beta: is true, but the setting does not take a boolean: set a value of another type",
    ),
    "out of bounds": ({"dpo": {"beta": 99}}, "c.yaml: dpo.beta: 99 is not allowed: must be less than or equal to 10"),
    "unknown loss": (
        {"dpo": {"loss_type": "sigmod"}},
        "c.yaml: dpo.loss_type: 'sigmod' is not allowed: must be 'sigmoid', ",
    ),
    "prompt over length": (
        {"dpo": {"max_length": 100, "max_prompt_length": 200}},
        "c.yaml: dpo: max_prompt_length 200 is above max_length 100: lower it to leave room for a response",
    ),
    "adapter settings without adapter": (
        {"model": {"lora": {"rank": 8}}},
        "c.yaml: model: lora is set but method is full",
    ),
    "adapter on the head": (
        {"model": {"method": "lora", "lora": {"target_modules": ["lm_head"]}}},
        "contains lm_head, whose adapter TRL 1.16 does not train",
    ),
    "dpo without a checkpoint": (
        {"finetuning_type": "dpo"},
        "finetuning_type dpo needs a model to start from: set dpo.start",
    ),
    "the earlier name of a setting": (
        {"finetuning_type": "dpo", "dpo": {"sft_checkpoint": "3"}},
        "c.yaml: dpo.sft_checkpoint: unknown key (it was renamed: use dpo.start)",
    ),
    "unused checkpoint": (
        {"dpo": {"start": "3"}},
        "dpo.start is set but finetuning_type is both",
    ),
    "unused sft section": (
        {"finetuning_type": "dpo", "dpo": {"start": "3"}, "sft": {"epochs": 2}},
        "sft is set but finetuning_type is dpo",
    ),
    "label_smoothing without effect": (
        {"dpo": {"label_smoothing": 0.1}},
        "label_smoothing has no effect on loss_type sigmoid",
    ),
    "exo_pair without label_smoothing": ({"dpo": {"loss_type": "exo_pair"}}, "exo_pair needs label_smoothing above 0"),
    "wrong number of loss_weights": (
        {"dpo": {"loss_type": ["ipo", "sft"], "loss_weights": [1.0]}},
        "1 values for 2 losses",
    ),
    "undefined divergence": (
        {"dpo": {"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}},
        "f_divergence_type forward_kl is not defined for apo_zero",
    ),
    "warm-up longer than training": (
        {"sft": {"warmup_steps": 10, "max_steps": 10}},
        "warmup_steps 10 is not below max_steps 10",
    ),
    "sharding with one process": (
        {"dpo": {"sharding": "fsdp", "processes": 1}},
        "sharding fsdp needs more than one process, but processes is 1",
    ),
    "8-bit optimizer with sharding": (
        {"sft": {"sharding": "fsdp", "optimizer": "adamw_8bit"}},
        "optimizer adamw_8bit does not support sharded weights (sharding fsdp): set optimizer to adamw",
    ),
    "sharding of a 4-bit base": (
        {"model": {"base": "x", "method": "qlora"}, "dpo": {"sharding": "fsdp"}},
        "dpo.sharding fsdp does not shard the 4-bit base of model.method qlora",
    ),
    "remote code without revision": (
        {"model": {"base": "x/y", "trust_remote_code": True}},
        "set `revision` to a commit of 40 hex digits",
    ),
    "remote code of a branch": (
        {"model": {"base": "x/y", "revision": "main", "trust_remote_code": True}},
        "set `revision` to a commit of 40 hex digits",
    ),
    "password in a URL": (
        {"evaluation": {"judge": {"base_url": "http://me:secret@judge/v1", "model": "m"}}},
        "base_url: contains a user or password",
    ),
    "key in a bucket's URL": (
        {"data": {"sources": [{"path": "s3://KEY:hid/hidden@bucket/pairs.jsonl"}]}},
        "data.sources.0.path: contains a user or password",
    ),
    "key in a short source": (
        {"data": {"sources": ["s3://KEY:hidden@bucket"]}},
        "data.sources: contains a user or password",
    ),
    "key in a query": (
        {"evaluation": {"judge": {"base_url": "http://judge/v1?api-key=hidden", "model": "m"}}},
        "base_url has a query",
    ),
    "demo model on own data": ({"data": {"sources": [{"path": "mine.jsonl"}]}}, "model.base is demo"),
    "an empty section": ({"dpo": None}, "dpo: has no value: set one, or remove the key to use the default"),
    "infinity": ({"sft": {"epochs": float("inf")}}, "sft.epochs: inf is not allowed: must be a finite number"),
    "seed too large": ({"seed": 2**32}, "seed: 4294967296 is not allowed: must be less than or equal to 4294967295"),
    "instructions as pairs": (
        {"model": {"base": "x"}, "data": {"sources": [{"path": "x", "format": "alpaca"}]}},
        "format alpaca contains instructions, not pairs",
    ),
    "pairs as instructions": (
        {"sft": {"dataset": {"path": "x", "format": "explicit"}}},
        "contains pairs, not instructions",
    ),
    "list instead of a mapping": (["x"], "config: ['x'] is not allowed"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_mistake_gives_one_line(values, message):
    with pytest.raises(UserError) as caught:
        check_config(values, "c.yaml")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert not re.search("me:secret|hid", str(caught.value))
    assert str(caught.value).startswith("c.yaml: ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_survives_a_json_round_trip(path):
    """ZenML passes parameters as JSON with all defaults."""
    run = load_config(path)
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_two_mistakes_give_two_lines():
    with pytest.raises(UserError) as caught:
        check_config({"dpo": {"betta": 1, "epochs": -1}}, "c.yaml")
    assert len(str(caught.value).splitlines()) == 2


FILES = {
    "a key twice": ("parameters: {config: {dpo: {beta: 0.1, beta: 0.5}}}", "the key 'beta' appears twice"),
    "missing": (None, "cannot be read (No such file or directory): check the path"),
    "not yaml": ("a: [1", "not valid YAML"),
    "empty": ("", "contains no settings"),
    "a section at the top": ("dpo: {beta: 1}", "dpo: unknown key (run settings go under `parameters: config:`)"),
    "unknown top key": ("scedule: {}", "scedule: unknown key (did you mean 'schedule'?)"),
    "unknown parameter": ("parameters: {beta: 1}", "parameters.beta: unknown key (the only parameter is `config`)"),
    "not utf-8": (b"\xff\xfe", "not valid YAML"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_bad_file_gives_one_line(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count("\n") == 0


def test_top_level_keys_are_those_of_zenml():
    assert set(PipelineRunConfiguration.model_fields) == TOP_LEVEL_KEYS


def test_number_without_a_dot_is_read_as_a_number():
    """PyYAML reads 5e-6 as a string."""
    assert check_config({"dpo": {"learning_rate": "5e-6"}}).dpo.learning_rate == 5e-6


def config_named(name):
    return load_config(next(path for path in CONFIGS if path.name == name))


def test_handbook_config_has_the_published_values():
    run = config_named("handbook.yaml")
    assert (run.sft.learning_rate, run.dpo.learning_rate, run.dpo.beta) == (3e-4, 2e-6, 0.5)
    assert (run.sft.max_length, run.dpo.max_length, run.dpo.max_prompt_length) == (2048, 1024, 1024)
    assert (run.model.method, run.model.lora.rank, run.model.lora.alpha) == ("lora", 32, 32)
    assert (run.sft.epochs, run.dpo.epochs, run.data.test_size) == (3, 1, 0.05)
    for section in (run.sft, run.dpo):
        assert (section.batch_size, section.gradient_accumulation_steps) == (2, 8)
        assert (section.optimizer, section.lr_schedule, section.warmup_steps) == ("adamw_8bit", "linear", 10)
        assert (section.weight_decay, section.eval_steps) == (0.01, 0.2)


def test_modern_llm_config_has_the_published_values():
    run = config_named("modern_llm.yaml")
    assert (run.sft.learning_rate, run.dpo.learning_rate, run.dpo.beta) == (1e-5, 5e-6, 0.1)
    assert 2000 <= run.dpo.max_steps <= 3000
    assert run.model.precision == "bf16"
    assert run.dpo.gradient_accumulation_steps > 1
    for section in (run.sft, run.dpo):
        assert (section.adam_beta1, section.adam_beta2, section.weight_decay) == (0.9, 0.95, 0.0)
        assert section.lr_schedule == "cosine"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verifier": {}, "dpo": {"beta": 0.2}}, "verifier and dpo are both set"),
        ({"verifier": {"start": "base"}, "sft": {"epochs": 2}}, "sft is set, but the verifier starts from base"),
        (
            {"verifier": {"loss": "absolute", "center_rewards_coefficient": 0.01}},
            "center_rewards_coefficient is set but loss is absolute",
        ),
        (
            {"evaluation": {"judge": {"verifier": "v", "function": "m:f"}}},
            "function and verifier are both set, but only one judge is used",
        ),
        ({"collect": {"judge": {"verifier": "v"}}}, "collect_pipeline judges with a function or an endpoint"),
    ],
)
def test_settings_that_do_not_fit_a_verifier_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        check_config(values)
