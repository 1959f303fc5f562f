"""Is what the GPU computes right? Each check compares with float64, with another path, or with a repetition."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.gpu_checks.figures import Figure, Scale, Skipped
from benchmarks.gpu_checks.models import (
    FAMILIES,
    SHAPES,
    Subject,
    as_tokens,
    random_model,
    random_pairs,
    start_from,
    write_base,
)
from posttrain.compat.torch_internals import n_compiled_graphs
from posttrain.config import DpoSection, EvaluationSection, ModelSection
from posttrain.evaluation.answers.generations import Writer, complete
from posttrain.forward.attention import BY_BLOCKS, Segments, register_attention
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.flat_row import lay_out, to_device
from posttrain.forward.logprobs import score_pairs
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferencePolicy, score_reference
from posttrain.training.trainer import TrainingJob

AROUND_128 = (
    (90, 37, 30),
    (90, 38, 31),
    (91, 38, 128),
    (1, 127, 2),
    (127, 1, 1),
    (120, 9, 8),
    (250, 6, 129),
    (33, 65, 64),
)
"""Tokens of prompt, chosen and rejected, so that sequences and rows end just before, at and after a block of 128."""
TOLERANCE_NATS = {torch.float32: 2e-3, torch.bfloat16: 1.0}
"""Largest accepted error of a response's summed log-probability (at most 129 tokens)."""


def log_probabilities(scale: Scale) -> Iterator[Figure]:
    """Log-probabilities of flat (FlexAttention, SDPA) and padded batches against float64, in fp32 and bf16."""
    for family in scale.pick(FAMILIES, FAMILIES[:3]):
        shape = {**scale.pick(SHAPES["small"], SHAPES["tiny"]), "model_type": family}
        shape |= {"num_hidden_layers": 2}
        model = random_model(shape, scale.device)
        pairs = random_pairs(AROUND_128, shape["vocab_size"], 0)
        exact = _exact_logps(copy.deepcopy(model).double(), pairs)
        for layout, attention in (("flat", "flex"), ("flat", "sdpa"), ("padded", "sdpa")):
            for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                section = ModelSection.model_validate(
                    {"base": family, "layout": layout, "attention": attention, "precision": precision}
                )
                scored = score_pairs(copy.deepcopy(model), Dataset.from_list(pairs), section, 4096, family)
                found = torch.tensor([*scored.chosen_logps, *scored.rejected_logps], dtype=torch.float64)
                worst = float((found - exact).abs().max())
                yield Figure(f"{family}, {layout} {attention} {precision}", worst, "nats", TOLERANCE_NATS[dtype])


@torch.no_grad()
def _exact_logps(model: Any, pairs: list[dict[str, Any]]) -> Tensor:
    """Return the log-probabilities of chosen, then rejected responses: one sequence at a time, in float64."""
    found = []
    for name in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            prompt, response = pair["prompt_ids"], pair[name]
            ids = torch.tensor([prompt + response], device=model.device)
            logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(logps.gather(1, ids[0, len(prompt) :, None]).sum()))
    return torch.tensor(found, dtype=torch.float64)


def flex_gradients(scale: Scale) -> Iterator[Figure]:
    """FlexAttention against float64, forward and backward, over 30 lengths of rows, and how often it was compiled."""
    if not scale.on_gpu:
        raise Skipped("FlexAttention has no backward on a CPU")
    register_attention()
    attend = ALL_ATTENTION_FUNCTIONS[BY_BLOCKS]
    generator = torch.Generator(device=scale.device).manual_seed(0)
    before, errors, gradient_errors = n_compiled_graphs(), [], []
    for i in range(30):
        segments = Segments(((40 + 29 * i, 17 + 5 * i, 30), (10, 128, 127 - i)))
        n = sum(map(sum, segments.groups))
        query, key, value = (
            torch.randn(1, heads, n, 64, device=scale.device, generator=generator) for heads in (8, 2, 2)
        )
        upstream = torch.randn(1, n, 8, 64, device=scale.device, generator=generator)
        found = _attention(
            lambda *qkv, s=segments: attend(None, *qkv, None, segments=s)[0], (query, key, value), upstream
        )
        exact = _attention(
            functools.partial(_dense_attention, segments), tuple(t.double() for t in (query, key, value)), upstream
        )
        errors.append(float((found[0] - exact[0]).abs().max()))
        gradient_errors += [float((a - b).abs().max()) for a, b in zip(found[1:], exact[1:], strict=True)]
    yield Figure("largest error of the output", max(errors), "", at_most=5e-3)
    yield Figure("largest error of a gradient", max(gradient_errors), "", at_most=5e-2)
    yield Figure("compiled graphs for 30 lengths", n_compiled_graphs() - before, "", at_most=1)


def _attention(attend: Any, inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attend(*leaves)
    return output.detach(), *torch.autograd.grad((output * upstream).sum(), leaves)


def _dense_attention(segments: Segments, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    group, branch = (labels.to(query.device) for labels in segments.labels())
    place = torch.arange(query.shape[2], device=query.device)
    sees = (group[:, None] == group) & ((branch[:, None] == branch) | (branch == 0)) & (place[:, None] >= place)
    n_repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(n_repeats, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    attended: Tensor = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value
    return attended.transpose(1, 2)


def checkpointing(scale: Scale) -> Iterator[Figure]:
    """Gradients with and without gradient checkpointing, full and LoRA."""
    shape = scale.pick(SHAPES["small"], SHAPES["tiny"])
    pairs = random_pairs(AROUND_128, shape["vocab_size"], 0)
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(shape, Path(folder, "base"), scale.device)
        for method in ("full", "lora"):
            subject = start_from(base, Path(folder, method), method=method, precision="fp32")
            plain, recomputed = (_gradients(subject, pairs, on, scale) for on in (False, True))
            norm = max(float(gradient.abs().max()) for gradient in plain.values())
            worst = max(float((plain[name] - recomputed[name]).abs().max()) for name in plain)
            yield Figure(f"{method}: largest difference, relative", worst / norm, "", at_most=1e-4)


def _gradients(subject: Subject, pairs: list[dict[str, Any]], recompute: bool, scale: Scale) -> dict[str, Tensor]:
    model = load_model(subject.base, subject.section, subject.sft, trainable=True)
    assert use_flat_batches(model, subject.section) is None
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    flat = lay_out([pair["prompt_ids"] for pair in pairs], [pair["chosen_ids"] for pair in pairs])
    loss = -model(flat=to_device(flat, scale.device), fused_lm_head=True).log_probs.sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def lm_head(scale: Scale) -> Iterator[Figure]:
    """The LM head at large vocabularies: error against float64, memory and time."""
    n_tokens = scale.pick(2048, 64)
    for n_vocabulary in scale.pick((151_936, 256_000), (1000, 2000)):
        shape = {**SHAPES["qwen2.5-0.5b"], "vocab_size": n_vocabulary, "num_hidden_layers": 1}
        shape |= scale.pick({}, {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2})
        model = random_model(shape, scale.device)
        section = ModelSection.model_validate({"base": "head", "precision": "fp32", "attention": "sdpa"})
        pairs = random_pairs([(64, n_tokens, 8)], n_vocabulary, 0)
        exact = _exact_logps(copy.deepcopy(model).double(), pairs)[:1]
        assert use_flat_batches(model, section) is None
        flat = to_device(lay_out([pairs[0]["prompt_ids"]], [pairs[0]["chosen_ids"]]), scale.device)

        def step(model: Any = model, flat: dict[str, Any] = flat) -> Tensor:
            model.zero_grad()
            logps: Tensor = model(flat=flat, fused_lm_head=True).log_probs.sum()
            logps.backward()
            return logps.detach()

        for head in ("trained", "frozen"):  # TRL's kernel, and ours, which projects once
            model.get_output_embeddings().weight.requires_grad_(head == "trained")
            name = f"{n_vocabulary} tokens, {head} head"
            yield Figure(f"{name}: error of {n_tokens} tokens' sum", float((step().cpu() - exact).abs()), "nats", 0.05)
            scale.reset_peak()
            before = scale.allocated_gib()
            yield Figure(f"{name}: forward and backward", 1000 * scale.seconds(step, 3), "ms")
            logits_gib = n_tokens * n_vocabulary * 4 / 2**30
            peak = scale.peak_gib() - before
            yield Figure(f"{name}: peak beside the weights", peak, f"GiB (all logits in fp32: {logits_gib:.2f})")


def block_mask(scale: Scale) -> Iterator[Figure]:
    """Time and memory to build FlexAttention's block mask for long rows."""
    for n in scale.pick((8192, 16_384, 32_768), (512, 1024)):
        groups = tuple((n // 16, n // 32, n // 32) for _ in range(8))
        scale.reset_peak()
        seconds = scale.seconds(lambda groups=groups: Segments(groups).block_mask(scale.device), 2)  # type: ignore[misc]
        yield Figure(f"{n} tokens", 1000 * seconds, "ms", at_most=scale.pick(100.0, None))
        yield Figure(f"{n} tokens: peak", scale.peak_gib(), "GiB", at_most=scale.pick(1.0, None))


def quantised(scale: Scale) -> Iterator[Figure]:
    """QLoRA: trained parameters in fp32, and how far they move compared with LoRA at a learning rate of 2e-6."""
    _need_bitsandbytes(scale)
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(SHAPES["small"], Path(folder, "base"), scale.device)
        moved = {}
        for method in ("lora", "qlora"):
            subject = start_from(base, Path(folder, method), method=method)
            trained = _train(subject, Path(folder, f"{method}-dpo"), {"learning_rate": 2e-6, "max_steps": 30})
            before, after = (_adapter(folder) for folder in (subject.sft.path, trained))
            moved[method] = float(sum((after[name] - before[name]).double().norm() ** 2 for name in before)) ** 0.5
            narrow = sum(tensor.dtype != torch.float32 for tensor in after.values())
            yield Figure(f"{method}: parameters not in fp32", narrow, "", at_most=0)
        yield Figure("distance of QLoRA by LoRA's", moved["qlora"] / moved["lora"], "", at_least=0.7, at_most=1.4)


def _adapter(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def _need_bitsandbytes(scale: Scale) -> None:
    if not scale.on_gpu or importlib.util.find_spec("bitsandbytes") is None:
        raise Skipped("needs a CUDA GPU and bitsandbytes")


def _train(subject: Subject, dest: Path, settings: dict[str, Any], n_pairs: int = 64) -> Path:
    """Train DPO on random pairs, and return the checkpoint's folder."""
    n_vocabulary = AutoConfig.from_pretrained(subject.base.id).vocab_size
    lengths = [AROUND_128[i % len(AROUND_128)] for i in range(n_pairs)]
    tokens = as_tokens(random_pairs(lengths, n_vocabulary, 1), subject, 512)
    reference = score_reference(tokens, ReferencePolicy(subject.sft, subject.base, subject.section), 8192)
    limits = tokens.lengths.model_dump()
    dpo = DpoSection.model_validate({"batch_size": 8, "lr_schedule": "constant", **limits, **settings})
    return train_dpo(reference, subject.sft, dpo, TrainingJob(subject.base, subject.section, 0, dest)).path


def optimizer_8bit(scale: Scale) -> Iterator[Figure]:
    """Two trainings with adamw_8bit give the same weights, bit by bit."""
    _need_bitsandbytes(scale)
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(SHAPES["small"], Path(folder, "base"), scale.device)
        subject = start_from(base, Path(folder, "sft"), method="lora")
        settings = {"optimizer": "adamw_8bit", "learning_rate": 1e-4, "max_steps": 10}
        first, second = (_adapter(_train(subject, Path(folder, name), settings)) for name in ("a", "b"))
        differing = sum(not torch.equal(first[name], second[name]) for name in first)
        yield Figure("tensors that differ between two runs", differing, "", at_most=0)


def memory_after_scoring(scale: Scale) -> Iterator[Figure]:
    """GPU memory that remains allocated after a model was scored and dropped."""
    if not scale.on_gpu:
        raise Skipped("measures GPU memory")
    model = random_model(SHAPES["small"], scale.device)
    section = ModelSection.model_validate({"base": "memory", "precision": "bf16"})
    pairs = Dataset.from_list(random_pairs(AROUND_128, SHAPES["small"]["vocab_size"], 0))
    score_pairs(model, pairs, section, 4096, "memory")
    loaded = scale.allocated_gib()
    del model
    yield Figure("still allocated, without gc", scale.allocated_gib() / loaded, "of the model", at_most=0.05)
    gc.collect()
    yield Figure("still allocated, after gc", scale.allocated_gib() / loaded, "of the model", at_most=0.05)


def out_of_memory(scale: Scale) -> Iterator[Figure]:
    """With most memory taken, training falls back to smaller micro-batches and ends with a checkpoint."""
    if not scale.on_gpu:
        raise Skipped("fills GPU memory")
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(SHAPES["small"], Path(folder, "base"), scale.device)
        subject = start_from(base, Path(folder, "sft"), method="lora")
        scale.reset_peak()
        _train(subject, Path(folder, "free"), {"batch_size": 64, "max_steps": 2, "gradient_checkpointing": False})
        needed = scale.peak_gib()
        free = torch.cuda.mem_get_info()[0] / 2**30
        ballast = torch.empty(int((free - 0.6 * needed) * 2**30), dtype=torch.uint8, device=scale.device)
        settings = {"batch_size": 64, "max_steps": 2, "gradient_checkpointing": False}
        trained = _train(subject, Path(folder, "tight"), settings)
        del ballast
        yield Figure("peak with free memory", needed, "GiB")
        yield Figure("checkpoint written with 60 % of it", float(trained.exists()), "", at_least=1.0)


def generation(scale: Scale) -> Iterator[Figure]:
    """Batched greedy answers against one prompt at a time in fp32, and tokens per second in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(scale.pick(SHAPES["small"], SHAPES["tiny"]), Path(folder, "base"), scale.device)
        subject = start_from(base, Path(folder, "sft"), method="lora", precision="fp32")
        chat = load_chat(subject.base, subject.section, subject.sft)
        pairs = random_pairs([(5 + 7 * i, 2, 3) for i in range(16)], len(chat.tokenizer), 0)
        prompts = [pair["prompt_ids"] for pair in pairs]
        section = EvaluationSection.model_validate({"generations": {"max_new_tokens": scale.pick(64, 8)}})
        writer = Writer(load_model(subject.base, subject.section, subject.sft), chat, subject.section)
        together = complete(writer, prompts, section, "together")
        alone = itertools.chain.from_iterable(complete(writer, [prompt], section, "alone") for prompt in prompts)
        same = sum(a == b for a, b in zip(together, alone, strict=True))
        yield Figure("answers that are the same batched and alone", same / len(prompts), "", at_least=1.0)
        section_bf16 = subject.section.model_copy(update={"precision": "bf16"})
        writer = Writer(load_model(subject.base, section_bf16, subject.sft), chat, section_bf16)
        n_new = scale.pick(256, 8)
        longer = EvaluationSection.model_validate({"generations": {"max_new_tokens": n_new}})
        seconds = scale.seconds(lambda: complete(writer, prompts * 4, longer, "speed"), 1)
        yield Figure("tokens per second, 64 prompts", 64 * n_new / seconds, "tokens/s")
