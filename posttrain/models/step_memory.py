"""Estimate of the peak memory of a training, by adding up what autograd keeps for the backward pass.

The parts were counted with `torch.autograd.graph.saved_tensors_hooks` on a Llama, in fp32 and under bf16 autocast. Tests hold the
sum within 20 % of measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config import ModelSection, TrainSection
from posttrain.models.memory import GIB, Shape, trained_parameters, weights_gib

CONTEXT_GIB = 0.6
"""What CUDA and its libraries take on a GPU before the first tensor."""
LOGITS_BYTES, TRAINED_LOGITS_BYTES = 2**28, 2**30
"""Largest logits that are in memory at once, with a frozen and with a trained head."""


@dataclass(frozen=True)
class StepSize:
    """What decides how much memory a micro-batch needs on one device."""

    n_tokens: int
    """Tokens of the micro-batch, each prompt counted once for its responses."""
    n_targets: int
    """Tokens of the responses."""
    in_16_bit: bool
    """Whether matrix products run in 16 bit."""
    on_gpu: bool


def training_gib(
    section: TrainSection, model: ModelSection, shape: Shape, size: StepSize, *, gradient_checkpointing: bool
) -> float:
    """Return the estimated peak in GiB per process: weights, optimizer state, and a step that follows another one."""
    n_shards = 1 if section.sharding == "none" else 2 if section.processes == "auto" else section.processes
    gradients = 4 * trained_parameters(model, shape) / n_shards
    kept = weights_gib(section, model, shape, size.in_16_bit) * GIB - gradients
    part = _Parts(model, shape, size)
    layers = shape.n_layers * (part.layer_input if gradient_checkpointing else part.layer)
    # In the backward pass: of a layer that is recomputed, all that it keeps; and the gradients inside an MLP.
    inside = (part.layer if gradient_checkpointing else 0) + part.mlp_gradients
    casts = 0.0 if gradient_checkpointing else part.casts
    if section.gradient_accumulation_steps > 1:
        step = layers + gradients + max(part.casts + part.head, casts + inside)
    else:  # the gradients grow while the activations shrink
        head_gradient = 4 * shape.n_vocabulary * shape.hidden_size / n_shards if model.method == "full" else 0
        last = max(layers + head_gradient + casts, gradients + (0 if gradient_checkpointing else part.layer))
        step = max(layers + part.casts + part.head, last + inside)
    return (kept + step) / GIB + (CONTEXT_GIB if size.on_gpu else 0)


@dataclass(frozen=True)
class _Parts:
    """Bytes of the parts of a step."""

    model: ModelSection
    shape: Shape
    size: StepSize

    @property
    def _width(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.size.in_16_bit else 4

    @property
    def layer_input(self) -> int:
        """The hidden state between two layers: in 16 bit only if the weights are."""
        width = 4 if self.model.method == "full" else self._width
        return self.size.n_tokens * self.shape.hidden_size * width

    @property
    def layer(self) -> float:
        """What a layer keeps: inputs of both norms, of the projections, of the attention and of the MLP's products."""
        shape, width = self.shape, self._width
        hidden, query, key, inner = shape.hidden_size, shape.query_size, shape.key_size, shape.inner_size
        if self.model.method == "full":
            # Each projection casts its own input to 16 bit.
            kept = 4 * 4 * hidden + (5 * 2 if self.size.in_16_bit else 2 * 4) * hidden
        else:
            kept = 2 * 4 * hidden + 2 * width * hidden + 7 * width * self.model.lora.rank
            if self.model.lora.dropout:
                kept += (width + 1) * (5 * hidden + query + inner)
        # On a CPU attention runs in fp32, and the branches have copies of the keys of their prefix.
        attention = width * (2 * query + 2 * key) if self.size.on_gpu else 4 * (2 * query + 4 * key)
        return float(self.size.n_tokens * (kept + attention + width * (query + 4 * inner)))

    @property
    def mlp_gradients(self) -> float:
        """Gradients of the MLP's products that are in memory at once."""
        return self.size.n_tokens * 2 * self._width * self.shape.inner_size

    @property
    def casts(self) -> float:
        """16-bit copies of fp32 weights, which autocast keeps until the end of the forward pass, and autograd for the backward."""
        return 2.0 * self.shape.n_parameters if self.model.method == "full" and self.size.in_16_bit else 0.0

    @property
    def head(self) -> float:
        """The logits, and the gradient of the hidden states that is made with them."""
        most = TRAINED_LOGITS_BYTES if self.model.method == "full" else LOGITS_BYTES
        logits = min(self.size.n_targets * self.shape.n_vocabulary * self._width, most)
        return logits + 2 * self._width * self.size.n_targets * self.shape.hidden_size
