"""LoRA layers in fewer operations: the same outputs and gradients as PEFT's, and PEFT's own wherever they do not hold."""

import copy
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.families import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.config import ModelSection
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.flat_row import lay_out
from posttrain.forward.fused import install
from posttrain.forward.fused.install import fuse, unfuse

LINEAR = "all-linear"


def lora_model(family="llama", dtype=torch.float64, **options):
    """A model with LoRA whose B matrices are not 0."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=LINEAR, **options)
    model = get_peft_model(tiny_model(family), config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def run(model, ids=None):
    """The logits of two sequences, and the gradient of every trained weight."""
    ids = torch.arange(3, 17).view(2, 7) if ids is None else ids
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def differs_by(one, other):
    """The largest difference, relative to the largest value."""
    (logits, gradients), (expected, expected_gradients) = one, other
    assert gradients.keys() == expected_gradients.keys()
    found = [(logits, expected), *((gradients[name], value) for name, value in expected_gradients.items())]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in found if b is not None)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("llama", {"LoRA projections": 14, "gated MLPs": 2, "norms": 5, "rotary embeddings": 2}),
        ("qwen2", {"LoRA projections": 14, "gated MLPs": 2, "norms": 5, "rotary embeddings": 2}),
        ("qwen3", {"LoRA projections": 14, "gated MLPs": 2, "norms": 9, "rotary embeddings": 2}),
        ("stablelm", {"LoRA projections": 14, "gated MLPs": 2, "rotary embeddings": 2}),
        ("gemma", {"LoRA projections": 14, "rotary embeddings": 2}),
        ("phi3", {"LoRA projections": 8, "norms": 5}),
        ("granite", {"LoRA projections": 14, "gated MLPs": 2, "norms": 5, "rotary embeddings": 2}),
    ],
)
def test_outputs_and_gradients_are_those_of_peft(family, parts):
    """Biases in qwen2, norms of queries and keys in qwen3, LayerNorm in stablelm, one layer for query, key and value in phi3.
    Gemma's MLP uses GELU and its norms multiply by 1 + weight: both keep their own forward pass."""
    model = lora_model(family)
    expected = run(model)
    fused = fuse(model)
    assert dict(fused.counts) == parts
    assert differs_by(run(model), expected) < 1e-6
    assert not any(shared.is_waiting for shared in fused.shared)


def test_norms_that_multiply_by_one_plus_their_weight_are_named_as_left():
    fused = fuse(lora_model("gemma"))
    assert fused.describe() == "14 LoRA projections, 2 rotary embeddings; computed as before: 5 GemmaRMSNorm"


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"rank_pattern": {"k_proj": 2, "up_proj": 3}}])
def test_scales_and_ranks_may_differ_between_layers(options):
    model = lora_model(**options)
    expected = run(model)
    assert fuse(model)
    assert differs_by(run(model), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_precision(dtype):
    model = lora_model(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = run(model)
        fuse(model)
        found = run(model)
    assert {gradient.dtype for gradient in found[1].values()} == {torch.float32}
    assert found[0].dtype == expected[0].dtype
    assert differs_by(found, expected) < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]


def test_gradient_checkpointing_gives_the_same_gradients():
    model = lora_model()
    expected = run(model)
    fused = fuse(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert differs_by(run(model), expected) < 1e-6
    assert not any(shared.is_waiting for shared in fused.shared)


def test_dora_and_modules_to_save_keep_their_own_forward_pass():
    assert fuse(lora_model(use_dora=True)).counts == {"norms": 5, "rotary embeddings": 2}
    model = lora_model(modules_to_save=["lm_head", "embed_tokens"])
    expected = run(model)
    assert fuse(model).counts["LoRA projections"] == 14
    assert differs_by(run(model), expected) < 1e-6


def test_dropout_is_applied_while_it_trains():
    model = lora_model(lora_dropout=0.5)
    model.eval()
    expected = run(model)
    fuse(model)
    assert differs_by(run(model), expected) < 1e-6
    model.train()
    torch.manual_seed(1)
    found = run(model)
    unfuse(model)
    torch.manual_seed(1)
    assert differs_by(found, run(model)) < 1e-6
    assert differs_by(found, expected) > 0.01


def test_merged_and_disabled_adapters_are_respected():
    model = lora_model()
    fuse(model)
    found = run(model)[0]
    with model.disable_adapter(), torch.no_grad():
        without = model(input_ids=torch.arange(3, 17).view(2, 7)).logits
    assert (without - found).abs().max() > 0.01
    model.merge_adapter()
    with torch.no_grad():
        merged = model(input_ids=torch.arange(3, 17).view(2, 7)).logits
    assert torch.allclose(merged, found, atol=1e-6)
    assert (merged - without).abs().max() > 0.01


def test_quantised_weights_keep_their_own_forward_pass():
    """bitsandbytes' layers are subclasses of `Linear` whose weight is packed."""
    model = lora_model()

    class Packed(torch.nn.Linear):
        pass

    for layer in install._groups(model.base_model.model.model.layers[0].mlp):
        for one in layer:
            one.base_layer.__class__ = Packed
    assert fuse(model).counts == {
        "LoRA projections": 11, "gated MLPs": 1, "norms": 5, "rotary embeddings": 2
    }  # fmt: skip


def test_a_copy_computes_with_its_own_weights():
    model = lora_model()
    fuse(model)
    found = run(model)[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert (run(other)[0] - found).abs().max() > 0.01
    assert torch.equal(run(model)[0], found)


def test_a_layer_with_another_input_computes_alone():
    model = lora_model()
    attention = model.base_model.model.model.layers[0].self_attn
    one, other = torch.randn(2, 1, 3, 32, dtype=torch.float64)
    expected = attention.k_proj(other)
    fuse(model)
    attention.q_proj(one)
    assert torch.allclose(attention.k_proj(other), expected, atol=1e-12)
    attention.q_proj(one)
    one.mul_(2)  # changed in place: the stored output is of the input before
    unfused = attention.k_proj(one)
    unfuse(model)
    assert torch.allclose(unfused, attention.k_proj(one), atol=1e-12)


def test_a_fused_model_is_freed_with_its_last_reference():
    model = lora_model()
    fuse(model)
    run(model)
    weight = weakref.ref(next(model.parameters()))
    del model
    assert weight() is None


def test_an_empty_input_has_an_empty_output():
    """As for an expert that no token chose."""
    model = lora_model(dtype=torch.float32)
    fuse(model)
    mlp = model.base_model.model.model.layers[0].mlp
    inputs = torch.zeros(0, 32, requires_grad=True)
    mlp(inputs).sum().backward()
    assert mlp(inputs).shape == inputs.grad.shape == (0, 32)


def test_a_model_without_lora_is_left_as_it_is():
    assert fuse(tiny_model("llama")) is None


ALLOCATE = {"_unsafe_view", "detach", "empty", "empty_like", "new_empty", "new_empty_strided"}


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy, each a kernel that a GPU would launch."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        is_view = any(found.alias_info is not None and not found.alias_info.is_write for found in schema.returns)
        self.n += not is_view and schema.name.split("::")[1] not in ALLOCATE
        return function(*args, **(kwargs or {}))


def operations(n_layers, is_fused, monkeypatch):
    """Operations of a forward and a backward pass of one sequence, whose attention is one call as on a GPU."""
    torch.manual_seed(0)
    model = tiny_model("llama", num_hidden_layers=n_layers)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=LINEAR))
    if not is_fused:
        monkeypatch.setattr("posttrain.forward.flat.fuse", lambda model: None)
    assert use_flat_batches(model, ModelSection(base="tiny")) is None
    with Operations() as counted:
        model(flat=lay_out([[3, 4, 5]], [[6, 7, 8]]), fused_lm_head=True).log_probs.sum().backward()
    return counted.n


def test_a_layer_with_lora_takes_at_most_a_hundred_operations(monkeypatch):
    fused = operations(3, True, monkeypatch) - operations(2, True, monkeypatch)
    assert fused <= 100
    ordinary = operations(3, False, monkeypatch) - operations(2, False, monkeypatch)
    assert ordinary > 1.5 * fused
