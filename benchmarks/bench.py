"""The driver: `python -m benchmarks.bench --quick`, or without it everything, in the order of what matters.

Engines run as processes of their own and take turns step by step, on the same pairs, so that a machine that slows down slows all
of them; the order within a round rotates. Each group's rows are written as it ends, and a group whose file is there is not run
again (`--fresh` does).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.cases import BASELINE, CACHE, ENGINES, N_LOAD, N_ROUNDS, PEER, RESULTS, ROOT, Case, Engine, job

Row = dict[str, Any]
N_COMPARED = 10
N_RUNGS_AT_ONCE = 3
STEP_0_TOLERANCE = {"fp32": 1.0e-3, "bf16": 1.0e-2}
"""In nats: bf16 rounds a response that is scored in another batch otherwise."""
TOLERANCE = {"fp32": 1.0e-3, "bf16": 3.0e-2}
"""Relative, of the first ten losses; bf16 keeps three digits of every logit."""


class WorkerFailed(Exception):
    """An engine ended before it was done."""


class Worker:
    """An engine's process, stopped wherever it is not its turn."""

    def __init__(self, job: dict[str, Any], scratch: Path) -> None:
        self.engine = job["engine"]["name"]
        read, write = os.pipe()
        peer = job["engine"]["module"] == "peer"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(os.cpu_count()),
            "HF_HOME": str(
                scratch / "hf"
            ),  # a reference or a tokenisation that an earlier run left would not be measured
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "true",
            "BENCH_REPORT_FD": str(write),
            "BENCH_SPAWNED": str(time.monotonic()),
        }
        self.log = scratch / f"{self.engine.replace('/', ' ')}.log"
        self.process = subprocess.Popen(
            [str(PEER / "bin" / "python") if peer else sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            cwd=scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            text=True,
        )
        os.close(write)
        self.report = os.fdopen(read)

    def hear(self) -> dict[str, Any]:
        """The next line that the worker sends."""
        line = self.report.readline()
        if not line:
            self.process.wait()
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise WorkerFailed(f"{self.engine}: ended with {self.process.returncode}:\n{tail}")
        message: dict[str, Any] = json.loads(line)
        return message

    def go_on(self) -> dict[str, Any]:
        """Gives the worker its turn and returns what it sends at the end of it."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> dict[str, Any]:
        """Lets the worker come to its end, and returns what it measured."""
        message = self.go_on() if self.process.poll() is None else self.hear()
        while message["event"] != "done":
            message = self.hear()
        self.process.wait()
        return message

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def run_group(case: Case, engines: Sequence[Engine]) -> list[Row]:
    """A row an engine, measured in turns; the first engine's losses are what the others' are compared with."""
    folder = prepare(case)
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch:
        try:
            for engine in engines:
                print(f"  {engine.name}: starts", flush=True)
                own = Path(scratch) / str(len(workers))
                own.mkdir()
                workers.append(Worker(job(case, engine, folder, gated=True), own))
                workers[-1].hear()
            for round_ in range(case.n_steps - 1):
                turn = round_ % len(workers)
                seconds = {w.engine: w.go_on()["step_s"] for w in (*workers[turn:], *workers[:turn])}
                print(f"  step {round_ + 2}: " + ", ".join(f"{e} {s:.2f} s" for e, s in seconds.items()), flush=True)
            measured = [worker.end() for worker in workers]
        finally:
            for worker in workers:
                worker.stop()
    rows = [_row(case, engine, found) for engine, found in zip(engines, measured, strict=True)]
    for row in rows:
        row |= compare(row, rows[0])
        row["speedup_over_baseline"] = ratio(rows[0]["step_s"], row["step_s"])
        print(_line(row), flush=True)
    return rows


def run_ladder(case: Case, rungs: Sequence[Engine]) -> list[Row]:
    """As `run_group`, a few rungs at once, each time beside the first: together they would not fit into memory."""
    first, *others = rungs
    rows: list[Row] = []
    for start in range(0, len(others), N_RUNGS_AT_ONCE):
        baseline, *found = run_group(case, [first, *others[start : start + N_RUNGS_AT_ONCE]])
        rows += found if rows else [baseline, *found]
    return rows


def compare(row: Row, baseline: Row) -> Row:
    """Whether a row's figures count: DPO starts at ln 2, and its losses are the baseline's."""
    losses, expected = row["losses"][:N_COMPARED], baseline["losses"][:N_COMPARED]
    deviations = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=False)]
    start = abs(losses[0] - math.log(2)) if losses else math.nan
    finite = bool(losses) and all(map(math.isfinite, (start, *deviations)))
    parity = (
        finite
        and len(losses) == len(expected) == min(N_COMPARED, row["n_steps"])
        and start <= STEP_0_TOLERANCE[row["dtype"]]
        and max(deviations) <= TOLERANCE[row["dtype"]]
        and (row["n_train"], row["n_test"]) == (baseline["n_train"], baseline["n_test"])
    )
    return {
        "parity": parity,
        "max_deviation": max(deviations) if finite else None,
        "step_0_deviation": start if finite else None,
    }


def ratio(slower_s: Sequence[float], faster_s: Sequence[float]) -> float | None:
    """How many times as fast, as the median over the rounds of the ratio within a round."""
    ratios = [a / b for a, b in zip(slower_s, faster_s, strict=True)]
    return statistics.median(ratios) if ratios else None


def _row(case: Case, engine: Engine, found: dict[str, Any]) -> Row:
    step_s = found["step_s"]
    return {
        "profile": case.profile,
        "model": case.model,
        "method": case.method,
        "engine": engine.name,
        "dtype": engine.dtype,
        "pairs_per_s": case.batch_size / statistics.median(step_s) if step_s else None,
        **{
            key: found.get(key)
            for key in ("wall_s", "peak_rss_gib", "backbone_tokens", "head_rows", "step_s", "losses")
        },
        "counted_pairs": case.batch_size,
        **{key: found[key] for key in ("n_train", "n_test")},
        "batch_size": case.batch_size,
        "n_steps": case.n_steps,
        "max_length": case.max_length,
        "learning_rate": case.learning_rate,
        "seed": case.seed,
        "options": engine.options,
        **where(),
    }


def where() -> Row:
    """What a figure belongs to: machine, date, versions, commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cpu = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "machine": f"{os.cpu_count()} cores of {cpu}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("torch", "trl", "transformers", "peft")},
        "commit": commit.stdout.strip(),
    }


def fast_dtype(model: str) -> str:
    """The precision in which this machine is fast; asked of another process, so that this one stays small."""
    ask = [sys.executable, "-c", "from posttrain.models.precision import has_amx; print(has_amx())"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=True)
    return "bf16" if answer.stdout.strip() == "True" and model not in cases.NARROW else "fp32"


def run_sweep(case: Case, engines: Sequence[Engine]) -> list[Row]:
    """The wall time of four betas: one process where the engine can share its reference, else one after another."""
    folder = prepare(case)
    rows: list[Row] = []
    for engine in engines:
        shares = engine.module == "ours"
        runs = [cases.SWEEP_BETAS] if shares else [(beta,) for beta in cases.SWEEP_BETAS]
        with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch:
            found = [_alone(job(case, engine, folder, gated=False, betas=betas), Path(scratch)) for betas in runs]
        row = _row(case, engine, found[-1])
        row |= {
            "sweep_betas": cases.SWEEP_BETAS,
            "sweep_wall_s": sum(one["wall_s"] for one in found),
            "wall_s": None if shares else statistics.median(one["wall_s"] for one in found),
            "peak_rss_gib": max(one["peak_rss_gib"] for one in found),
        }
        rows.append(row | compare(row, row if not rows else rows[0]))
        print(f"  {engine.name}: four betas in {row['sweep_wall_s']:.0f} s", flush=True)
    return rows


def run_growth(sizes: Sequence[Case]) -> list[Row]:
    """Pairs per second of training on more and more pairs, each size several times in turn."""
    found: dict[int, list[Row]] = {case.n_train: [] for case in sizes}
    for _ in range(N_ROUNDS):
        for case in sizes:
            with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch:
                folder = prepare(case, f"{case.name}-{case.n_train}")
                one = _alone(job(case, ENGINES["ours"], folder, gated=False), Path(scratch))
            one["pairs_per_s"] = case.batch_size * len(one["step_s"]) / sum(one["step_s"])
            print(f"  {case.n_train} pairs: {one['pairs_per_s']:.1f} pairs/s, {one['wall_s']:.0f} s", flush=True)
            found[case.n_train].append(one)
    rows = []
    for case in sizes:
        row = _row(case, ENGINES["ours"], found[case.n_train][-1])
        del row["step_s"], row["losses"]
        for key in ("pairs_per_s", "wall_s", "peak_rss_gib"):
            row[key] = statistics.median(one[key] for one in found[case.n_train])
        rows.append(row | {"profile": "growth", "parity": None})
    return rows


def run_loading() -> list[Row]:
    """Reading, checking and splitting 100 000 pairs, several times."""
    case = Case("load", "none", "none", n_steps=0)
    file = CACHE / "cases" / f"load-{N_LOAD}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    engine, found = Engine("ours", "load", options={"file": str(file), "n": N_LOAD}), []
    for _ in range(N_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch:
            found.append(_alone(job(case, engine, file.parent, gated=False), Path(scratch)))
        print(f"  {found[-1]['load_s']:.1f} s, {found[-1]['peak_rss_gib']:.2f} GiB", flush=True)
    medians = {
        key: statistics.median(one[key] for one in found)
        for key in ("wall_s", "load_s", "peak_rss_gib", "rss_before_gib", "text_gib")
    }
    row = _row(case, replace(engine, options={}), found[-1])
    return [row | medians | {"pairs_per_s": N_LOAD / medians["load_s"], "parity": None}]


def _alone(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    worker = Worker(job, scratch)
    try:
        while (message := worker.hear())["event"] != "done":
            pass
        worker.process.wait()
    finally:
        worker.stop()
    return message


def prepare(case: Case, name: str | None = None) -> Path:
    """The folder of a case's files, made in a process of its own where it is not there yet."""
    folder = CACHE / "cases" / (name or f"{case.name}-{case.n_train}")
    if not (folder / "case.json").exists():
        print(f"  preparing {folder}", flush=True)
        command = [sys.executable, "-m", "benchmarks.prepare", json.dumps(asdict(case)), str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WorkerFailed(f"{case.name}: no files: {done.stderr[-1500:]}")
    return folder


def _line(row: Row) -> str:
    faster = f"{row['speedup_over_baseline']:.2f} x" if row["speedup_over_baseline"] else ""
    deviation = "no number" if row["max_deviation"] is None else f"{row['max_deviation']:.1e}"
    parity = f"losses {'agree' if row['parity'] else 'DO NOT AGREE'} ({deviation})"
    return (
        f"  {row['engine']:<40}{row['pairs_per_s'] or 0:8.3f} pairs/s {faster:>8}  {row['wall_s']:6.0f} s  "
        f"{row['peak_rss_gib']:5.2f} GiB  {parity}"
    )


def available(names: Iterable[str], dtype: str) -> list[Engine]:
    """The engines that are installed, in this precision; says which is not, and why."""
    engines = [replace(ENGINES[name], dtype=dtype) for name in names]
    if not (PEER / "bin" / "python").exists() and any(engine.module == "peer" for engine in engines):
        print(f"LLaMA-Factory is left out: {PEER} is not there; `make bench-peer` sets it up")
        engines = [engine for engine in engines if engine.module != "peer"]
    return engines


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 1 where a group failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="HH-RLHF, the 135 M shape, LoRA: ours and TRL twice")
    parser.add_argument("--fresh", action="store_true", help="run again what has its results already")
    parser.add_argument("--only", default="", help="groups whose name contains this")
    options = parser.parse_args(arguments)
    first = [BASELINE, *(name for name in ENGINES if name != BASELINE)]
    fast = {model: fast_dtype(model) for model in {case.model for case in cases.FULL}}
    groups: dict[str, Callable[[], list[Row]]] = {}
    if options.quick:
        for case in cases.QUICK:
            dtype = fast[case.model]
            groups[f"quick-{case.name}-{dtype}"] = partial(run_group, case, available(cases.QUICK_ENGINES, dtype))
    else:
        installed = {dtype: available(first, dtype) for dtype in {"fp32", *fast.values()}}
        engines = {
            f"{case.name}-{dtype}": partial(run_group, case, installed[dtype])
            for case in cases.FULL
            # fp32 too, to compare to five digits, where bf16 is the faster one.
            for dtype in dict.fromkeys((fast[case.model], "fp32") if case in cases.QUICK else (fast[case.model],))
        }
        real = {name: run for name, run in engines.items() if name.startswith("hh_rlhf")}
        groups |= {**real, "ladder": partial(run_ladder, cases.QUICK[0], cases.ladder(fast[cases.QUICK[0].model]))}
        for case in cases.SWEEPS:
            dtype = fast[case.model]
            groups[f"sweep-{case.name}-{dtype}"] = partial(run_sweep, case, available(cases.SWEEP_ENGINES, dtype))
        groups |= {"growth": partial(run_growth, cases.GROWTH), "load": run_loading, **engines}
    failed = 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, run in groups.items():
        file = RESULTS / f"{name}.json"
        if options.only not in name or (file.exists() and not (options.fresh or options.quick)):
            continue
        print(f"{name}:", flush=True)
        try:
            rows = run()
        except WorkerFailed as error:
            failed += 1
            print(f"  failed: {error}", file=sys.stderr)
            continue
        part = file.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        shutil.move(part, file)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
