"""What is measured: profiles of text, shapes of model, engines and their settings. Tables only, nothing heavy imported.

The driver imports this module, and stays so small that no worker inherits its memory.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED_DATA = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
CACHE = (
    Path(
        os.environ.get("POSTTRAIN_CACHE", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain")
    )
    / "benchmarks"
)
PEER = Path(os.environ.get("BENCH_PEER", CACHE / "llamafactory-0.9.5"))
"""The virtual environment of LLaMA-Factory, made by `make bench-peer`."""


@dataclass(frozen=True)
class Case:
    """Pairs, a model and how it is trained: the same for every engine."""

    profile: str
    model: str
    method: str
    batch_size: int = 4
    n_steps: int = 10
    """The first is the warm-up: it is counted and compared, not timed."""
    n_test: int = 16
    max_length: int = 512
    learning_rate: float = 1.0e-3
    seed: int = 0

    @property
    def name(self) -> str:
        """Names the case's files."""
        return f"{self.profile}-{self.model}-{self.method}"

    @property
    def n_train(self) -> int:
        """Pairs that are trained on, once each."""
        return self.batch_size * self.n_steps


@dataclass(frozen=True)
class Engine:
    """A trainer and the settings that make it another row of the table."""

    name: str
    module: str
    dtype: str = "fp32"
    """Replaced by the group's, but in the ladder."""
    options: dict[str, Any] = field(default_factory=dict)
    """ours: settings, `{"model": {...}, "dpo": {...}}`. stock: arguments of DPOConfig. peer: LLaMA-Factory's own."""
    levers: tuple[str, ...] = ()
    """Functions of `benchmarks.levers`, for what no setting reaches."""


OURS: dict[str, Any] = {}
"""Settings of our rows beside the case's own: the one place where a layout is forced. Empty: what a user gets."""

TRL_BEST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("ours", "ours", options=OURS),
        Engine("trl_default", "stock"),
        Engine("trl_best", "stock", options=TRL_BEST),
        Engine("llamafactory", "peer"),
    )
}
BASELINE = "trl_default"
"""Its losses are what every other engine's are compared with."""


def ladder(dtype: str) -> tuple[Engine, ...]:
    """One lever more a rung; the first is the baseline of the others.

    Args:
        dtype: what the machine is fast at: bf16 stays on from its rung where it is that.
    """
    fast = dtype == "bf16"
    return (
        replace(ENGINES[BASELINE], name="TRL's defaults" + (", but fp32" if fast else "")),
        Engine("+ reference computed before", "stock", options={"precompute_ref_log_probs": True}),
        Engine("+ no gradient checkpointing", "stock", options=TRL_BEST),
        Engine("+ bf16" if fast else "the same in bf16", "stock", "bf16", TRL_BEST),
        Engine("+ LM head on completions only", "stock", dtype, TRL_BEST, ("head_on_completions",)),
        Engine(
            "+ no padding (our flat rows)", "ours", dtype, OURS, ("trls_head", "bf16_as_it_comes", "prompts_not_shared")
        ),
        Engine("+ each prompt once", "ours", dtype, OURS, ("trls_head", "bf16_as_it_comes")),
        *((Engine("+ bf16 without detours", "ours", dtype, OURS, ("trls_head",)),) if fast else ()),
        Engine("+ the head's gradient in one pass", "ours", dtype, OURS),
    )


FULL = tuple(
    Case(profile, model, method, **scale)
    for model, scale in (
        ("smollm2_135m", {"batch_size": 2, "n_test": 4}),
        ("stories260k", {"batch_size": 8, "n_steps": 41, "n_test": 64}),
    )
    for profile in ("hh_rlhf", "long_answers", "long_prompts")
    for method in ("lora", "full")
)
NARROW = ("stories260k",)
"""Models whose steps are slower in bf16, on a CPU with AMX too: `posttrain.models.precision.MIN_AMX_WIDTH`."""
QUICK = tuple(case for case in FULL if case.name == "hh_rlhf-smollm2_135m-lora")
QUICK_ENGINES = (BASELINE, "ours", "trl_best")

SWEEPS = tuple(
    replace(case, n_steps=max(20, case.n_steps)) for case in FULL if case.profile == "hh_rlhf" and case.method == "lora"
)
SWEEP_ENGINES = (BASELINE, "ours")
SWEEP_BETAS = (0.03, 0.1, 0.3, 1.0)

GROWTH = tuple(
    Case("short", "stories260k", "full", batch_size=8, n_steps=n // 8, n_test=64, max_length=256, learning_rate=1.0e-5)
    for n in (504, 2000, 8000)
)
N_LOAD = 100_000
N_ROUNDS = 5


def job(case: Case, engine: Engine, folder: Path, *, gated: bool, betas: tuple[float, ...] = (0.1,)) -> dict[str, Any]:
    """What a worker is told, as it is sent to it."""
    return {
        "case": asdict(case),
        "engine": asdict(engine),
        "folder": str(folder),
        "gated": gated,
        "betas": list(betas),
    }
