"""Check the training path on this machine's GPU and measure its speed: `python -m benchmarks.gpu --out FOLDER`.

Each check runs in a process of its own with a time limit, so that a crash or a hang costs one check. The table comes last, and
`gpu.json` and `gpu.md` in the folder hold it. Without a GPU every check runs at a small scale, which rehearses the script.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asks for GPUs without starting CUDA, which a fork cannot share

import torch

from benchmarks.gpu_checks import correctness, speed
from benchmarks.gpu_checks.figures import Check, Scale, Skipped

CHECKS: dict[Check, int] = {
    speed.ceilings: 20,
    correctness.log_probabilities: 60,
    correctness.flex_gradients: 60,
    correctness.checkpointing: 30,
    correctness.lm_head: 30,
    correctness.block_mask: 20,
    speed.lora_half_billion: 120,
    speed.lora_eight_billion: 150,
    correctness.memory_after_scoring: 20,
    correctness.quantised: 45,
    correctness.optimizer_8bit: 45,
    correctness.out_of_memory: 45,
    correctness.generation: 45,
    speed.full_half_billion: 90,
    speed.liger_half_billion: 90,
}
"""The checks in order, and the seconds that each may take on a GPU."""
REHEARSAL_FACTOR = 10


def main(arguments: list[str]) -> int:
    """Run the checks, and return 1 if a figure is out of its limit or a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the table and the log")
    parser.add_argument("--only", nargs="*", default=None, help="names of checks")
    parser.add_argument("--limit-s", type=float, default=470.0, help="seconds for all checks together (default: 470)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.limit_s
    results = []
    for check, box_s in CHECKS.items():
        if options.only and check.__name__ not in options.only:
            continue
        box_s *= 1 if torch.cuda.is_available() else REHEARSAL_FACTOR
        result = run(check, min(box_s, end - time.monotonic()), options.out / "log.txt")
        results.append(result)
        print(f"{result['check']}: {result['outcome']} ({result['seconds']:.0f} s)", flush=True)
        (options.out / "gpu.json").write_text(json.dumps({**machine(), "checks": results}, indent=1), encoding="utf-8")
    table = "\n".join(lines(results))
    (options.out / "gpu.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return int(any(result["outcome"].startswith(("failed", "stopped", "out of")) for result in results))


def run(check: Check, box_s: float, log: Path) -> dict[str, Any]:
    """Run a check in a process of its own, and return its figures and how it ended."""
    began = time.monotonic()
    result: dict[str, Any] = {"check": check.__name__, "title": (check.__doc__ or "").strip(), "figures": []}
    if box_s <= 0:
        return {**result, "outcome": "not run: no time left", "seconds": 0.0}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(check, sender, log))
    process.start()
    sender.close()
    outcome = None
    while outcome is None:
        left = box_s - (time.monotonic() - began)
        if left <= 0 or not receiver.poll(left):
            outcome = f"stopped after {box_s:.0f} s"
            break
        try:
            message = receiver.recv()
        except EOFError:
            process.join()
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
            outcome = f"failed, exit code {process.exitcode}: {last}"
            break
        if "figure" in message:
            result["figures"].append(message["figure"])
        else:
            outcome = message["outcome"]
    if not outcome.startswith("stopped"):
        process.join(10)
    process.kill()
    if outcome == "ok" and any(figure["ok"] is False for figure in result["figures"]):
        outcome = "out of its limits"
    return {**result, "outcome": outcome, "seconds": time.monotonic() - began}


def _child(check: Check, sender: Connection, log: Path) -> None:
    # Open until the process ends, so that the traceback of a check that raises is in the log, too.
    sys.stdout = sys.stderr = file = log.open("a", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    print(f"\n== {check.__name__}")
    scale = Scale(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    try:
        for figure in check(scale):
            print(figure)
            sender.send({"figure": figure.to_json()})
        sender.send({"outcome": "ok"})
    except Skipped as reason:
        sender.send({"outcome": f"skipped: {reason}"})


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    import transformers
    import trl

    card = "none: rehearsal on a CPU"
    if torch.cuda.is_available():
        card = os.popen("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader").read().strip()
    return {
        "card": card,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table in Markdown."""
    about = machine()
    yield ", ".join(f"{name} {value}" for name, value in about.items())
    yield ""
    yield "| check | figure | value | limit | |"
    yield "| --- | --- | ---: | --- | --- |"
    for result in results:
        yield f"| **{result['check']}** | {result['title']} | {result['seconds']:.0f} s | | {result['outcome']} |"
        for figure in result["figures"]:
            bounds = [("≥", figure["at_least"]), ("≤", figure["at_most"])]
            limit = ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
            verdict = {True: "ok", False: "**no**", None: ""}[figure["ok"]]
            yield f"| | {figure['name']} | {figure['value']:.4g} {figure['unit']} | {limit} | {verdict} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
