"""The head on a CPU against TRL's kernel and against plain torch: values, gradients, tiles, and when it stands back."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from posttrain.forward import lm_head
from posttrain.forward.lm_head import plain_head, score_targets

N, WIDTH, VOCABULARY = 37, 16, 50
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 60,
}  # fmt: skip
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def made(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (N,), generator=generator)
    return hidden, weight, targets, torch.randn(N, generator=generator)


def trls(hidden, weight, targets):
    log_probs, *others = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 32768, None, 1.0, OPTIONAL_OUTPUTS
    )
    return {"log_probs": log_probs, **dict(zip(OPTIONAL_OUTPUTS, others, strict=True))}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("trained", ["hidden", "both"])
def test_fields_and_gradients_are_trls(dtype, trained, monkeypatch):
    """Whatever part of the logits is worked on at once; in tiles where the head is not trained itself."""
    monkeypatch.setattr(lm_head, "CACHED_BYTES", 3 * VOCABULARY * 4 // torch.get_num_threads())
    if trained == "hidden":
        monkeypatch.setattr(lm_head, "TILE_BYTES", 10 * VOCABULARY * dtype.itemsize)
    hidden, weight, targets, slope = made(dtype)
    weight.requires_grad_(trained == "both")
    found = score_targets(hidden, weight, targets, frozenset(OPTIONAL_OUTPUTS))
    gradients = torch.autograd.grad((found["log_probs"] * slope).sum(), [hidden, weight][: 1 + (trained == "both")])
    expected = trls(hidden, weight, targets)
    slopes = torch.autograd.grad((expected["log_probs"] * slope).sum(), [hidden, weight][: 1 + (trained == "both")])
    for name, field in expected.items():
        torch.testing.assert_close(found[name], field, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, slopes, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, wanted, **TOLERANCE[dtype])


def test_gradients_are_plain_torchs():
    hidden, weight, targets, slope = made()
    found = score_targets(hidden, weight, targets, frozenset())
    plain = (hidden @ weight.T).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.pop("log_probs"), plain)
    assert set(found.values()) == {None}
    for gradient, wanted in zip(
        torch.autograd.grad(
            (score_targets(hidden, weight, targets, frozenset())["log_probs"] * slope).sum(), [hidden, weight]
        ),
        torch.autograd.grad((plain * slope).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)


def test_under_autocast_fp32_weights_are_projected_in_bf16():
    """As TRL's kernel does it; the gradients are fp32, as the parameters are, and the fields are computed in fp32."""
    hidden, weight, targets, slope = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score_targets(hidden, weight, targets, frozenset({"entropy"}))
        expected = trls(hidden, weight, targets)
    torch.testing.assert_close(found["log_probs"], expected["log_probs"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["entropy"], expected["entropy"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["log_probs"], trls(hidden, weight, targets)["log_probs"], rtol=1e-4)
    gradients = torch.autograd.grad((found["log_probs"] * slope).sum(), [hidden, weight])
    slopes = torch.autograd.grad((expected["log_probs"] * slope).sum(), [hidden, weight])
    for gradient, wanted in zip(gradients, slopes, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)


def test_a_target_far_behind_keeps_its_logarithm():
    """Its probability underflows; its log-probability and its gradient do not."""
    hidden, weight = torch.tensor([[200.0]]).requires_grad_(), torch.tensor([[1.0], [0.0]])
    found = score_targets(hidden, weight, torch.tensor([1]), frozenset())["log_probs"]
    found.sum().backward()
    assert (found.item(), hidden.grad.item()) == (-200.0, -1.0)


def test_it_stands_back_for_a_trained_head_with_more_logits_than_are_kept(monkeypatch):
    monkeypatch.setattr(lm_head, "KEPT_BYTES", (N - 1) * VOCABULARY * 4)
    hidden, weight, targets, _ = made()
    assert score_targets(hidden, weight, targets, frozenset()) is None
    with torch.no_grad():
        assert score_targets(hidden, weight, targets, frozenset()) is not None


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
    """Read from where TRL 1.16 keeps it: what its forward encloses."""
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, **settings)
    assert plain_head(model.forward.__func__) == fields
