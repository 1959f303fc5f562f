"""The LM head compared with TRL's kernel and with plain PyTorch: values, gradients, tiles, and when it is not used."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction

from posttrain.forward import lm_head
from posttrain.forward.lm_head import score_targets

N, WIDTH, VOCABULARY = 37, 16, 50
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def make_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (N,), generator=generator)
    return hidden, weight, targets, torch.randn(N, generator=generator)


def score_with_trl(hidden, weight, targets):
    log_probs, *others = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 32768, None, 1.0, OPTIONAL_OUTPUTS
    )
    return {"log_probs": log_probs, **dict(zip(OPTIONAL_OUTPUTS, others, strict=True))}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("trained", ["hidden", "both"])
def test_fields_and_gradients_equal_trls(dtype, trained, monkeypatch):
    """For any part of the logits that is processed at once, and in tiles if the head is not trained."""
    monkeypatch.setattr(lm_head, "CACHED_BYTES", 3 * VOCABULARY * 4 // torch.get_num_threads())
    if trained == "hidden":
        monkeypatch.setattr(lm_head, "TILE_BYTES", 10 * VOCABULARY * dtype.itemsize)
    hidden, weight, targets, slope = make_inputs(dtype)
    weight.requires_grad_(trained == "both")
    found = score_targets(hidden, weight, targets, frozenset(OPTIONAL_OUTPUTS))
    gradients = torch.autograd.grad((found["log_probs"] * slope).sum(), [hidden, weight][: 1 + (trained == "both")])
    expected = score_with_trl(hidden, weight, targets)
    slopes = torch.autograd.grad((expected["log_probs"] * slope).sum(), [hidden, weight][: 1 + (trained == "both")])
    for name, field in expected.items():
        torch.testing.assert_close(found[name], field, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, slopes, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, wanted, **TOLERANCE[dtype])


def test_gradients_equal_plain_torchs():
    hidden, weight, targets, slope = make_inputs()
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
    """As in TRL's kernel. The gradients are fp32 like the parameters, and the fields are computed in fp32."""
    hidden, weight, targets, slope = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score_targets(hidden, weight, targets, frozenset({"entropy"}))
        expected = score_with_trl(hidden, weight, targets)
    torch.testing.assert_close(found["log_probs"], expected["log_probs"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["entropy"], expected["entropy"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["log_probs"], score_with_trl(hidden, weight, targets)["log_probs"], rtol=1e-4)
    gradients = torch.autograd.grad((found["log_probs"] * slope).sum(), [hidden, weight])
    slopes = torch.autograd.grad((expected["log_probs"] * slope).sum(), [hidden, weight])
    for gradient, wanted in zip(gradients, slopes, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)


def test_log_probability_of_an_underflowing_target_is_exact():
    """The probability underflows; the log-probability and its gradient do not."""
    hidden, weight = torch.tensor([[200.0]]).requires_grad_(), torch.tensor([[1.0], [0.0]])
    found = score_targets(hidden, weight, torch.tensor([1]), frozenset())["log_probs"]
    found.sum().backward()
    assert (found.item(), hidden.grad.item()) == (-200.0, -1.0)


def test_trained_head_with_too_many_logits_is_left_to_trl(monkeypatch):
    monkeypatch.setattr(lm_head, "KEPT_BYTES", (N - 1) * VOCABULARY * 4)
    hidden, weight, targets, _ = make_inputs()
    assert score_targets(hidden, weight, targets, frozenset()) is None
    with torch.no_grad():
        assert score_targets(hidden, weight, targets, frozenset()) is not None


def test_tiles_bound_the_memory_at_any_vocabulary(monkeypatch):
    """The largest tensor that a frozen head allocates, at a vocabulary of 1,000 and of 8,000."""
    monkeypatch.setattr(lm_head, "TILE_BYTES", 64_000)
    for n_vocabulary in (1000, 8000):
        hidden = torch.randn(N, WIDTH, requires_grad=True)
        weight = torch.randn(n_vocabulary, WIDTH)
        targets = torch.randint(n_vocabulary, (N,))
        with LargestTensor() as seen:
            score_targets(hidden, weight, targets, frozenset(OPTIONAL_OUTPUTS))["log_probs"].sum().backward()
        assert seen.n_bytes == 64_000


def test_a_frozen_head_projects_once():
    hidden, weight, targets, _ = make_inputs()
    weight.requires_grad_(False)
    with Products() as seen:
        score_targets(hidden, weight, targets, frozenset())["log_probs"].sum().backward()
    assert seen.shapes == [(N, VOCABULARY), (N, WIDTH)]  # the logits, and their gradient times the weight


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest new result."""

    n_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and function.overloadpacket is not torch.ops.aten.t:
            self.n_bytes = max(self.n_bytes, result.numel() * result.element_size())
        return result


class Products(TorchDispatchMode):
    """The shapes of the matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.mm:
            self.shapes.append(tuple(result.shape))
        return result
