"""How fast is DPO? This project against TRL with its defaults and TRL at its best, in turns, at the lengths of HH-RLHF.

Model FLOPs utilisation counts the products that the loss needs: each prompt once for its two responses, the LM head only where a
response token is predicted; 6 FLOPs per weight and token, 4 for LoRA, whose frozen weights get no gradient. It is the
same count for every engine, so padding and repeated prompts lower it.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.gpu_checks.figures import Figure, Scale, Skipped
from benchmarks.gpu_checks.lengths import HH_RLHF
from benchmarks.gpu_checks.models import SHAPES, Subject, as_text, as_tokens, random_pairs, start_from, write_base
from posttrain.config import DpoSection
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferencePolicy, score_reference
from posttrain.training.trainer import TrainingJob

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0}
"""Dense bf16 products per second by NVIDIA's data sheets, in 10^12 FLOPs."""
ENGINES = ("ours", "trl_best", "trl_default")
TRL_BEST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
TRL_OPTIONS: dict[str, dict[str, Any]] = {
    "trl_default": {},
    "trl_best": TRL_BEST,
    "trl_liger": {**TRL_BEST, "use_liger_kernel": True},
}
LOSS_TOLERANCE = 3e-2
MEMORY_DISK = Path("/dev/shm")


def ceilings(scale: Scale) -> Iterator[Figure]:
    """What the device can do: a bf16 product and a copy."""
    n = scale.pick(8192, 256)
    a, b = (torch.randn(n, n, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    yield Figure(f"bf16 product of {n} x {n}", 2 * n**3 / scale.seconds(lambda: a @ b, 10) / 1e12, "TFLOP/s")
    source = torch.empty(scale.pick(2**31, 2**22), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / scale.seconds(lambda: target.copy_(source), 10) / 1e12
    yield Figure("copy, read and written", moved, "TB/s")


class StepClock(TrainerCallback):
    """Times every step, and counts the kernels of the second one (on a CPU: the operators)."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.step_s: list[float] = []
        self.first_s = float("nan")
        self.n_launches = 0
        self.losses: list[float] = []

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.train_sampling_strategy = "sequential"  # every engine sees the same pairs in the same steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            kind = ProfilerActivity.CUDA if self.scale.on_gpu else ProfilerActivity.CPU
            self._profile = profile(activities=[kind], acc_events=True)
            self._profile.__enter__()
        if state.global_step == 2:
            self.scale.reset_peak()
        self._began = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = self._now() - self._began
        if state.global_step == 1:
            self.first_s = seconds
        elif state.global_step == 2:
            self._profile.__exit__(None, None, None)
            self.n_launches = len(self._profile.events())
        else:
            self.step_s.append(seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]

    def _now(self) -> float:
        self.scale.synchronize()
        return time.perf_counter()


@dataclass
class Contest:
    """One model and method, trained by every engine on the same pairs."""

    shape: str
    method: str
    batch_size: int
    scale: Scale
    n_timed_steps: int = 6
    max_length: int = 1024
    pairs: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        n = self.batch_size * (self.n_timed_steps + 2)
        lengths = [HH_RLHF[i % len(HH_RLHF)] for i in range(n)]
        if not self.scale.on_gpu:
            lengths = [(p // 16 + 1, c // 16 + 2, r // 16 + 2) for p, c, r in lengths]
        self.pairs = random_pairs(lengths, SHAPES[self.shape]["vocab_size"], 0)

    def flops_per_step(self) -> float:
        """Return the mean FLOPs that the loss of a step needs; see this module's docstring."""
        shape = SHAPES[self.shape]
        width, inner, n_layers = (shape[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        key_width = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
        layers = n_layers * (2 * width * width + 2 * width * key_width + 3 * width * inner)
        n_responses = sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in self.pairs)
        n_tokens = n_responses + sum(len(pair["prompt_ids"]) for pair in self.pairs)
        weights_by_token = n_tokens * layers + n_responses * width * shape["vocab_size"]
        return float((6 if self.method == "full" else 4) * weights_by_token * self.batch_size / len(self.pairs))

    def n_tokens_per_step(self) -> float:
        """Return the mean number of tokens of a step, each prompt counted once."""
        n = sum(len(pair[f"{name}_ids"]) for pair in self.pairs for name in ("prompt", "chosen", "rejected"))
        return n * self.batch_size / len(self.pairs)

    def run(self, engine: str, subject: Subject, folder: Path) -> tuple[StepClock, float]:
        """Train with an engine, and return its clock and the peak memory of the timed steps in GiB."""
        clock = StepClock(self.scale)
        if engine == "ours":
            self._ours(subject, folder, clock)
        else:
            self._trl(engine, subject, folder, clock)
        return clock, self.scale.peak_gib()

    def _ours(self, subject: Subject, folder: Path, clock: StepClock) -> None:
        tokens = as_tokens(self.pairs, subject, self.max_length)
        reference = score_reference(tokens, ReferencePolicy(subject.sft, subject.base, subject.section), 16_384)
        dpo = DpoSection.model_validate(
            {
                "batch_size": self.batch_size,
                "learning_rate": 1e-5,
                "lr_schedule": "constant",
                "logging_steps": 1,
                "stop_on_divergence": False,
                **tokens.lengths.model_dump(),
            }
        )
        train_dpo(reference, subject.sft, dpo, TrainingJob(subject.base, subject.section, 0, folder, (clock,)))

    def _trl(self, engine: str, subject: Subject, folder: Path, clock: StepClock) -> None:
        dtype = torch.float32 if self.method == "full" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(subject.base.id, dtype=dtype).to(self.scale.device)
        if self.method != "full":
            model = PeftModel.from_pretrained(model, subject.sft.path, is_trainable=True)
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=str(folder),
                beta=0.1,
                learning_rate=1e-5,
                lr_scheduler_type="constant",
                num_train_epochs=1,
                per_device_train_batch_size=self.batch_size,
                max_length=self.max_length,
                bf16=self.scale.on_gpu,
                use_cpu=not self.scale.on_gpu,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                seed=0,
                **TRL_OPTIONS[engine],
            ),
            train_dataset=as_text(self.pairs),
            processing_class=AutoTokenizer.from_pretrained(subject.base.id),
            callbacks=[clock],
        )
        trainer.train()


def lora_half_billion(scale: Scale) -> Iterator[Figure]:
    """0.5B, LoRA on all linear layers."""
    yield from contest(
        Contest(scale.pick("qwen2.5-0.5b", "tiny"), "lora", scale.pick(16, 2), scale), ENGINES, n_rounds=2
    )


def liger_half_billion(scale: Scale) -> Iterator[Figure]:
    """0.5B, LoRA on all linear layers, against TRL at its best with Liger's layers."""
    if not scale.on_gpu or importlib.util.find_spec("liger_kernel") is None:
        raise Skipped("needs a GPU and liger-kernel")
    yield from contest(Contest("qwen2.5-0.5b", "lora", 16, scale), ("ours", "trl_liger"), n_rounds=2)


def full_half_billion(scale: Scale) -> Iterator[Figure]:
    """0.5B, all weights."""
    yield from contest(
        Contest(scale.pick("qwen2.5-0.5b", "tiny"), "full", scale.pick(16, 2), scale), ENGINES, n_rounds=2
    )


def lora_eight_billion(scale: Scale) -> Iterator[Figure]:
    """8B, LoRA on all linear layers."""
    yield from contest(
        Contest(scale.pick("llama-3.1-8b", "tiny"), "lora", scale.pick(4, 2), scale), ENGINES, n_rounds=1
    )


def contest(of: Contest, engines: tuple[str, ...], n_rounds: int) -> Iterator[Figure]:
    """Yield the figures of every engine, which take turns; the first is compared with the others."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if of.scale.on_gpu and MEMORY_DISK.is_dir() else None) as name:
        folder = Path(name)
        base = write_base(SHAPES[of.shape], folder / "base", of.scale.device, torch.bfloat16)
        subject = start_from(base, folder / "sft", method=of.method, precision=of.scale.pick("bf16", "fp32"))
        step_s: dict[str, list[float]] = {engine: [] for engine in engines}
        losses: dict[str, list[float]] = {}
        for turn in range(n_rounds):
            for engine in engines:
                clock, peak = of.run(engine, subject, folder / f"{engine}-{turn}")
                step_s[engine] += clock.step_s
                losses[engine] = clock.losses
                if turn == 0:
                    yield Figure(f"{engine}: first step, with compilation", clock.first_s, "s")
                    yield Figure(f"{engine}: launches of a step", clock.n_launches, "")
                    yield Figure(f"{engine}: peak memory", peak, "GiB")
    for engine in engines:
        yield from _rates(of, engine, median(step_s[engine]))
    for engine in engines[1:]:
        apart = max(abs(a - b) for a, b in zip(losses[engine], losses[engines[0]], strict=True))
        yield Figure(f"losses of {engine} and {engines[0]} differ by at most", apart, "", LOSS_TOLERANCE)
        yield Figure(f"speed by {engine}", median(step_s[engine]) / median(step_s[engines[0]]), "times")


def _rates(of: Contest, engine: str, seconds: float) -> Iterator[Figure]:
    yield Figure(f"{engine}: pairs per second", of.batch_size / seconds, "pairs/s")
    yield Figure(f"{engine}: tokens per second", of.n_tokens_per_step() / seconds, "tokens/s")
    for card, peak in PEAK_TFLOPS.items():
        if of.scale.on_gpu and card in torch.cuda.get_device_name():
            yield Figure(f"{engine}: MFU", 100 * of.flops_per_step() / seconds / peak / 1e12, "%")
