"""What posttrain/compat/trl_internals.py relies on in TRL."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import trl.trainer.dpo_trainer
from support.contracts import require
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig
from trl import DPOTrainer, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from posttrain.compat.trl_internals import (
    PreparedPairs,
    _TorchHead,
    forward_accepts,
    fused_head_kernel,
    own_forward_afterwards,
    plain_head_fields,
    read_metrics,
    replace_forward,
    restore_metrics,
    score_positions,
    weight_metrics,
    without_reference_model,
)
from posttrain.forward.flat import FlatCollator
from posttrain.forward.lm_head import score_targets

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 60,
}  # fmt: skip


def model_with_head(config=None, **settings):
    torch.manual_seed(0)
    fused_head_kernel()
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SHAPE))
    add_fused_lm_head(model, **settings)
    return model


def test_fused_head_is_found_by_the_parameter_of_forward():
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    assert not forward_accepts(plain, "fused_lm_head")
    require(
        forward_accepts(model_with_head(), "fused_lm_head"),
        "trl",
        "add_fused_lm_head replaces model.forward by a function with a parameter fused_lm_head",
        forward_accepts,
    )


def test_a_replaced_forward_is_called_by_the_model():
    model = model_with_head()
    replace_forward(model, lambda self, **options: (self, options))
    assert model(flat=1) == (model, {"flat": 1})


@pytest.mark.parametrize(
    ("config", "settings", "fields"),
    [
        (LlamaConfig(**SHAPE), {}, frozenset()),
        (LlamaConfig(**SHAPE), {"outputs": ("log_probs", "entropy")}, {"entropy"}),
        (LlamaConfig(**SHAPE), {"temperature": 0.7}, None),
        (LlamaConfig(**SHAPE), {"cast_lm_head_to_fp32": True}, None),
        (CohereConfig(**SHAPE, logit_scale=0.5), {}, None),
        (GraniteConfig(**SHAPE, logits_scaling=8.0), {}, None),
        (LlamaConfig(**SHAPE, final_logit_softcapping=30.0), {}, None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_scaled_or_capped_head_is_left_to_trl(config, settings, fields):
    require(
        plain_head_fields(model_with_head(config, **settings).forward.__func__) == fields,
        "trl",
        f"the fused forward encloses its settings ({config.model_type}, {settings})",
        plain_head_fields,
    )


def test_unknown_settings_are_left_to_trl():
    def forward():
        return None

    assert plain_head_fields(forward) is None


def test_scored_positions_equal_the_models_own_log_probabilities():
    model = model_with_head(GraniteConfig(**SHAPE, logits_scaling=8.0)).eval()
    ids = torch.arange(2, 12)[None]
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    scored = score_positions(model.forward.__func__, model.get_output_embeddings(), hidden, ids[:, 1:])
    expected = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(scored.log_probs[0], expected)


def test_head_without_triton_equals_trls():
    """With TRL 1.15 on a CPU both are the same function, and the comparison with plain log-probabilities above remains."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(50, (9,), generator=generator)
    names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    results = []
    for kernel in (_TorchHead, fused_head_kernel()):
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(size, generator=generator).requires_grad_() for size in ((9, 8), (50, 8), (50,))]
        fields = kernel.apply(*inputs, targets, 0.7, 32_768, 5.0, 2.0, names)
        (fields[0].sum() + fields[1].sum()).backward()
        results.append([*fields, *(one.grad for one in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_fused_head_calls_the_kernel_by_its_name_in_utils():
    source = inspect.getsource(add_fused_lm_head)
    require(
        "_ChunkedLogProbFunction.apply(" in source, "trl", "the head calls the kernel by that name", fused_head_kernel
    )


def test_fused_forward_uses_backbone_and_head_of_the_model_only():
    source = inspect.getsource(add_fused_lm_head)
    for line in ("getattr(self, backbone_attr)(*args, **kwargs)", "lm_head = self.get_output_embeddings()"):
        require(line in source, "trl", f"add_fused_lm_head contains `{line}`", score_positions)
    require(
        source.count("self.") - source.count("self.num_experts") == 1,
        "trl",
        "the fused forward uses no other part of the model than its backbone and output embeddings",
        score_positions,
    )


def test_losses_call_the_model_with_a_fused_head_and_read_known_fields():
    loss = inspect.getsource(DPOTrainer._compute_loss)
    call = "outputs = model(**model_kwargs, labels=labels, fused_lm_head=True)"
    require(call in loss, "trl", f"DPOTrainer._compute_loss contains `{call}`", replace_forward)
    known = {"log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs", "aux_loss", "logits"}
    names = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs", "loss")
    read = {name for name in names if f"outputs.{name}" in loss}
    require(known >= read, "trl", f"DPOTrainer reads no other fields than {sorted(known)}", replace_forward)


def test_losses_need_no_gradient_of_the_entropy():
    loss, sft_loss = inspect.getsource(DPOTrainer._compute_loss), inspect.getsource(SFTTrainer.compute_loss)
    for source, detached in ((loss, "outputs.entropy[:, -seq_len:].detach()"), (sft_loss, "outputs.entropy.detach()")):
        require(
            source.count("outputs.entropy") == source.count(detached) == 1,
            "trl",
            f"the loss uses the entropy once, as `{detached}`",
            score_targets,
        )


def test_dpo_prepares_its_datasets_in_two_methods():
    for name in ("_prepare_dataset", "_precompute_ref_logps"):
        parameters = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
        require(
            parameters[:2] == ["self", "dataset"],
            "trl",
            f"DPOTrainer.{name}(dataset, …) returns a dataset",
            PreparedPairs,
        )
    source = inspect.getsource(DPOTrainer.__init__)
    for name in ("_prepare_dataset", "_precompute_ref_logps"):
        require(f"self.{name}(" in source, "trl", f"DPOTrainer.__init__ calls {name}", PreparedPairs)
    loss = inspect.getsource(DPOTrainer._compute_loss)
    require("self.precompute_ref_logps" in loss, "trl", "the loss takes precomputed log-probabilities", PreparedPairs)
    read = 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]'
    require(read in loss, "trl", f"the loss reads `{read}`", PreparedPairs)


@pytest.mark.parametrize("trainer", [DPOTrainer, SFTTrainer])
def test_trainers_keep_metrics_between_logs(trainer):
    source = inspect.getsource(trainer)
    for line in (
        'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}',
        "self._total_train_tokens = 0",
        'self._metrics[mode]["num_tokens"] = [self._total_train_tokens]',
    ):
        require(line in source, "trl", f"{trainer.__name__} contains `{line}`", read_metrics)


def test_metrics_are_restored_as_they_were_read():
    before, after = SimpleNamespace(_metrics={"train": {"a": [1.0, 2.0]}}, _total_train_tokens=7), SimpleNamespace()
    restore_metrics(after, *read_metrics(before))
    assert (after._metrics, after._total_train_tokens) == ({"train": {"a": [1.0, 2.0]}, "eval": {}}, 7)
    after._metrics["train"]["new"].append(1.0)


def test_validation_metrics_are_one_value_for_each_batch():
    source = inspect.getsource(DPOTrainer)
    for line in (
        'self._metrics[mode]["rewards/accuracies"].append(',
        "metrics = {key: sum(val) / len(val) for key, val in self._metrics[mode].items()}",
    ):
        require(line in source, "trl", f"DPOTrainer contains `{line}`", weight_metrics)


def test_every_validation_pair_has_the_same_weight():
    """Batches of 3 pairs with accuracy 1 and of 1 pair with accuracy 0: 3 of 4 pairs, not the mean of the batches, 1/2."""
    metrics = {"rewards/accuracies": [], "entropy": []}
    trainer = SimpleNamespace(_metrics={"eval": metrics})
    for accuracy, n_pairs in ((1.0, 3), (0.0, 1)):
        metrics["rewards/accuracies"].append(accuracy)
        metrics["entropy"].append(2.0)
        weight_metrics(trainer, n_pairs)
    assert metrics == {"rewards/accuracies": [1.0, 1.0, 1.0, 0.0], "entropy": [2.0, 2.0]}


@pytest.mark.parametrize("trainer", [DPOTrainer, SFTTrainer])
def test_trainers_count_tokens_by_the_attention_mask(trainer):
    require(
        'inputs["attention_mask"].sum()' in inspect.getsource(trainer),
        "trl",
        f"{trainer.__name__} counts tokens by the attention mask",
        FlatCollator,
    )


def test_the_model_is_not_hashed(monkeypatch):
    """The name that DPOTrainer calls is the one that is replaced, and it is back afterwards."""
    module = trl.trainer.dpo_trainer
    require(
        "hash_module" in inspect.getsource(DPOTrainer.__init__), "trl", "DPOTrainer hashes the model by hash_module",
        without_reference_model,
    )  # fmt: skip
    before, load = module.hash_module, module.create_model_from_path
    with without_reference_model():
        assert module.hash_module(None) == ""
        assert module.create_model_from_path("any", dtype="auto") is None
    assert module.hash_module is before
    assert module.create_model_from_path is load


def test_the_models_own_forward_comes_back():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    with own_forward_afterwards(model):
        add_fused_lm_head(model)
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
    add_fused_lm_head(model)
    fused = model.forward
    with own_forward_afterwards(model):
        replace_forward(model, lambda self: None)
    assert model.forward == fused
