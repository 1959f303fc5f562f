"""`benchmarks/gpu.py`: a check that fails or hangs costs that check alone; every check can be rehearsed on a CPU."""

import json
import os
import time

import pytest

from benchmarks import gpu
from benchmarks.gpu_checks import speed
from benchmarks.gpu_checks.figures import Figure, Scale, Skipped
from benchmarks.gpu_checks.models import SHAPES, random_pairs
from benchmarks.gpu_wheels import keep_one_library


def fine(scale):
    """Within its limit."""
    yield Figure("error", 0.5, "nats", at_most=1.0)


def wrong(scale):
    """Out of its limit."""
    yield Figure("speed", 0.5, "times", at_least=1.0)
    yield Figure("not a number", float("nan"), "", at_most=1.0)


def crashes(scale):
    """Ends its process after a figure."""
    yield Figure("before", 1.0, "")
    os._exit(7)


def raises(scale):
    """Raises."""
    yield Figure("before", 1.0, "")
    raise ValueError("no such kernel")


def hangs(scale):
    """Does not return."""
    time.sleep(60)
    yield Figure("never", 1.0, "")


def lacks(scale):
    """Needs something else."""
    raise Skipped("needs two GPUs")
    yield


@pytest.mark.parametrize(
    ("check", "outcome", "n_figures"),
    [
        (fine, "ok", 1),
        (wrong, "out of its limits", 2),
        (crashes, "failed, exit code 7", 1),
        (raises, "failed, exit code 1: ValueError: no such kernel", 1),
        (hangs, "stopped after 1 s", 0),
        (lacks, "skipped: needs two GPUs", 0),
    ],
)
def test_each_end_of_a_check_is_told_and_its_figures_are_kept(check, outcome, n_figures, tmp_path):
    result = gpu.run(check, 1.0 if check is hangs else 60.0, tmp_path / "log.txt")
    assert result["outcome"].startswith(outcome)
    assert len(result["figures"]) == n_figures


def test_the_table_is_last_and_the_exit_code_tells_whether_all_is_well(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "CHECKS", {fine: 60, wrong: 60})
    assert gpu.main(["--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" (")[0] for line in shown[:2]] == ["fine: ok", "wrong: out of its limits"]
    assert shown[-2:] == ["| | speed | 0.5 times | ≥ 1 | **no** |", "| | not a number | nan  | ≤ 1 | **no** |"]
    assert [check["outcome"] for check in json.loads((tmp_path / "gpu.json").read_text())["checks"]] == [
        "ok",
        "out of its limits",
    ]
    assert gpu.main(["--out", str(tmp_path), "--only", "fine"]) == 0


def test_flops_of_a_step_are_those_of_a_hand_count():
    scale = Scale(gpu.torch.device("cpu"))
    of = speed.Contest("tiny", "lora", 2, scale, n_timed_steps=1)
    of.pairs = random_pairs([(10, 4, 6)] * 6, SHAPES["tiny"]["vocab_size"], 0)
    # A layer of "tiny": q and o 64 x 64, k and v 64 x 32, gate, up and down 64 x 128: 36,864 weights. Two layers, 20 tokens
    # of prompt and responses; a head of 64 x 320 for the 10 tokens of responses. LoRA: 4 FLOPs each, two pairs a step.
    assert of.flops_per_step() == 2 * 4 * (20 * 2 * 36_864 + 10 * 64 * 320)
    assert of.n_tokens_per_step() == 40


def test_one_library_of_bitsandbytes_is_kept_and_its_record_agrees(tmp_path):
    import zipfile

    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    record = "".join(f"bitsandbytes/libbitsandbytes_{name}.so,sha256=x,1\n" for name in ("cpu", "cuda128", "cuda130"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("cpu", "cuda128", "cuda130"):
            archive.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name)
        archive.writestr("bitsandbytes/__init__.py", "")
        archive.writestr("bitsandbytes-1.dist-info/RECORD", record)
    keep_one_library(wheel, "130")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == [
            "bitsandbytes/libbitsandbytes_cuda130.so"
        ]
        assert archive.read("bitsandbytes-1.dist-info/RECORD").decode().splitlines() == [record.splitlines()[2]]


@pytest.mark.soak
def test_every_check_is_rehearsed_on_a_cpu(tmp_path):
    gpu.main(["--out", str(tmp_path), "--limit-s", "3000"])
    outcomes = {check["check"]: check["outcome"] for check in json.loads((tmp_path / "gpu.json").read_text())["checks"]}
    assert set(outcomes) == {check.__name__ for check in gpu.CHECKS}
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith("skipped")} == dict.fromkeys(
        ("ceilings", "log_probabilities", "checkpointing", "lm_head", "block_mask", "lora_half_billion", "lora_eight_billion",
         "generation", "full_half_billion"),
        "ok",
    )  # fmt: skip
