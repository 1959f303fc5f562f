"""The estimate of a training's memory against measured peaks."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.compat.peft_internals import leave_casts_to_autocast
from posttrain.config import LoraSection, ModelSection, TrainSection
from posttrain.forward import lm_head
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.flat_row import lay_out
from posttrain.models.memory import GIB, Shape
from posttrain.models.step_memory import LOGITS_BYTES, TRAINED_LOGITS_BYTES, StepSize, training_gib

CONFIG = {
    "hidden_size": 96, "intermediate_size": 320, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
RANK = 8


def made(method, precision, n_layers, checkpointing):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" and method == "lora" else torch.float32
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG, num_hidden_layers=n_layers), dtype=dtype)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
        leave_casts_to_autocast(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    assert use_flat_batches(model, ModelSection(method=method, precision=precision)) is None
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def pairs(n_tokens):
    """Four pairs of equal lengths: half of the tokens are prompts."""
    n, draw = n_tokens // 16, lambda k: torch.randint(1000, (k,)).tolist()
    prompts = [draw(2 * n) for _ in range(4)]
    return lay_out(prompts * 2, [draw(n) for _ in range(8)])


def measured_peak(step, path):
    """Return the largest sum of the memory that is allocated in a step, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    peak = allocated = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak


@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_estimate_is_within_a_fifth_of_the_measured_peak(method, precision, checkpointing, n_micro_batches, tmp_path):
    """Of a step alone, and so of the whole, which adds weights and optimizer state, whose sizes are exact."""
    model = made(method, precision, n_layers=4, checkpointing=checkpointing)
    flat = pairs(1024)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step():
        for _ in range(n_micro_batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = -model(flat=flat, fused_lm_head=True).log_probs.sum()
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    measured = measured_peak(step, tmp_path / "trace.json") / GIB
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_all = sum(p.numel() for p in model.parameters())
    shape = Shape.of(
        {**CONFIG, "num_hidden_layers": 4}, n_all - (n_trained if method == "lora" else 0), n_trained // RANK
    )
    section = ModelSection(
        method=method, precision=precision, **({"lora": LoraSection(rank=RANK)} if method == "lora" else {})
    )
    training = TrainSection(learning_rate=1.0, gradient_accumulation_steps=n_micro_batches)
    size = StepSize(flat["input_ids"].shape[1], len(flat["targets"]), precision == "bf16", on_gpu=False)
    estimate = training_gib(training, section, shape, size, gradient_checkpointing=checkpointing)
    kept = sum(p.numel() * p.element_size() for p in model.parameters()) + 8 * n_trained
    print(f"{(estimate - kept / GIB) / measured:.3f}")
    assert estimate - kept / GIB == pytest.approx(measured, rel=0.2)


def test_limits_of_the_logits_are_those_of_the_head():
    assert (LOGITS_BYTES, TRAINED_LOGITS_BYTES) == (lm_head.TILE_BYTES, lm_head.KEPT_BYTES)
