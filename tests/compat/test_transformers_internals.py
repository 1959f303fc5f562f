"""What posttrain/compat/transformers_internals.py relies on in transformers' Trainer."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from support.contracts import require
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb
from trl import DPOTrainer, SFTTrainer

from posttrain.compat.transformers_internals import (
    LossSoFar,
    OpenTrainer,
    attention_implementation,
    average_over_all_steps,
    forward_with_rotary,
    read_loss,
    restore_loss,
    rotary_function,
    with_one_gpu,
)

SIGNATURES = {
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
}


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES.items())
def test_trainer_has_the_methods_that_are_opened(name, parameters):
    method = getattr(Trainer, name, None)
    require(
        method is not None and list(inspect.signature(method).parameters) == parameters,
        "transformers",
        f"Trainer.{name}({', '.join(parameters)})",
        OpenTrainer,
    )


@pytest.mark.parametrize(
    ("caller", "calls"),
    [
        ("_maybe_log_save_evaluate", ["self._save_checkpoint(model, trial)", "self._evaluate("]),
        (
            "_save_checkpoint",
            ["self.save_model(output_dir, _internal_call=True)", "self._save_optimizer_and_scheduler("],
        ),
        ("_prepare_for_training", ["self._load_optimizer_and_scheduler(resume_from_checkpoint)"]),
        ("_evaluate", ["self.evaluate(ignore_keys=ignore_keys_for_eval)"]),
    ],
)
def test_trainer_calls_them_where_expected(caller, calls):
    source = inspect.getsource(getattr(Trainer, caller))
    for call in calls:
        require(call in source, "transformers", f"Trainer.{caller} contains `{call}`", OpenTrainer)


@pytest.mark.parametrize("trainer", [DPOTrainer, SFTTrainer])
def test_trls_checkpoint_only_adds_a_model_card(trainer):
    source = inspect.getsource(trainer._save_checkpoint)
    calls = [line.strip() for line in source.splitlines() if "self.create" in line or "super()" in line]
    require(
        calls == ["self.create_model_card(model_name=model_name)", "super()._save_checkpoint(model, trial)"],
        "trl",
        f"{trainer.__name__}._save_checkpoint adds a model card and nothing else",
        OpenTrainer,
    )


class Recorder(OpenTrainer):
    """A trainer that notes which public methods are called in place of the private ones."""

    def __init__(self):
        self.called = []

    def write_checkpoint(self, model):
        self.called.append(("write_checkpoint", model))

    def write_optimizer(self, folder):
        self.called.append(("write_optimizer", folder))

    def prepare_training(self, max_steps, loader, start):
        self.called.append(("prepare_training", max_steps, loader, start))


def test_private_methods_call_the_public_ones():
    trainer = Recorder()
    trainer._save_checkpoint("model", None)
    trainer._save_optimizer_and_scheduler("folder")
    trainer._prepare_for_training(3, "loader", "start")
    assert trainer.called == [
        ("write_checkpoint", "model"),
        ("write_optimizer", "folder"),
        ("prepare_training", 3, "loader", "start"),
    ]


def test_trainer_keeps_the_loss_in_three_attributes():
    loop = inspect.getsource(Trainer)
    for line in (
        "self._tr_loss = torch.tensor(0.0, device=args.device)",
        "self._total_loss_scalar = 0.0",
        "self._globalstep_last_logged = self.state.global_step",
        "self._total_loss_scalar += self._tr_loss.item()",
    ):
        require(line in loop, "transformers", f"Trainer contains `{line}`", read_loss)


def test_trainer_divides_the_loss_by_the_steps_since_its_start():
    lines = (
        "self._initial_global_step = self.state.global_step",
        "num_steps_trained = self.state.global_step - self._initial_global_step",
    )
    for line in lines:
        require(
            line in inspect.getsource(Trainer), "transformers", f"Trainer contains `{line}`", average_over_all_steps
        )


def test_callbacks_can_set_the_loss_before_the_first_step():
    source = inspect.getsource(Trainer)
    first, last = source.index("self._tr_loss = torch.tensor"), source.index("num_steps_trained = ")
    require(
        first < source.index("callback_handler.on_train_begin(") < last,
        "transformers",
        "Trainer sets the loss to 0 before it calls on_train_begin",
        restore_loss,
    )


def test_loss_is_restored_as_it_was_read():
    before = SimpleNamespace(_tr_loss=torch.tensor(1.5), _total_loss_scalar=2.5, _globalstep_last_logged=3)
    after = SimpleNamespace(_tr_loss=torch.tensor(0.0))
    assert read_loss(before) == LossSoFar(1.5, 2.5, 3)
    restore_loss(after, read_loss(before))
    assert read_loss(after) == LossSoFar(1.5, 2.5, 3)
    average_over_all_steps(after)
    assert after._initial_global_step == 0


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_implementation_is_the_one_that_was_set(name):
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    model.set_attn_implementation(name)
    require(
        attention_implementation(model) == name,
        "transformers",
        "set_attn_implementation sets config._attn_implementation",
        attention_implementation,
    )


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 4  # as Trainer counts them
    require(arguments.n_gpu == 4, "transformers", "TrainingArguments.n_gpu returns _n_gpu", with_one_gpu)
    assert with_one_gpu(arguments).n_gpu == 1


def test_a_copy_of_forward_calls_another_rotary_function():
    require(
        rotary_function(LlamaAttention) is apply_rotary_pos_emb and rotary_function(GPT2Attention) is None,
        "transformers",
        "LlamaAttention.forward calls the global apply_rotary_pos_emb",
        rotary_function,
    )
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    config._attn_implementation = "eager"
    attention, inputs = LlamaAttention(config, 0), torch.randn(1, 3, 8)
    positions = torch.ones(1, 3, 8), torch.zeros(1, 3, 8)
    options = {"position_embeddings": positions, "attention_mask": None}
    called = []

    def rotate(query, key, cos, sin):
        called.append(cos)
        return query, key

    expected = attention(inputs, **options)[0]
    found = forward_with_rotary(LlamaAttention, rotate)(attention, inputs, **options)[0]
    assert len(called) == 1
    assert torch.allclose(found, expected)  # cos 1 and sin 0 turn nothing
    attention(inputs, **options)
    assert len(called) == 1, "the class's own forward is as it was"
