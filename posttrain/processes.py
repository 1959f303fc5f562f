"""Several processes of this machine for one stage, one to a GPU (or on a CPU), as `torchrun` would start them."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import TrainerCallback

from posttrain.checkpoint import Checkpoint
from posttrain.config import TrainSection
from posttrain.errors import UserError
from posttrain.training import Stage

POLL_S = 0.2


def share_rows(section: TrainSection) -> tuple[int, TrainSection]:
    """How many processes train, and the section of each: a step has as many rows as it had for one process.

    Raises:
        UserError: the rows of a step cannot be shared evenly.
    """
    n = section.processes if section.processes != "auto" else max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and n > torch.cuda.device_count():
        raise UserError(
            f"processes: {n} are asked for, but {torch.cuda.device_count()} GPUs are here: lower it, or set it to auto"
        )
    if section.gradient_accumulation_steps % n == 0:
        name = "gradient_accumulation_steps"
    elif section.batch_size % n == 0:
        name = "batch_size"
    else:
        raise UserError(
            f"processes: {n} cannot share a step of {section.gradient_accumulation_steps} micro-batches of {section.batch_size} "
            "rows evenly: make gradient_accumulation_steps or batch_size a multiple of it"
        )
    return n, section.model_copy(update={name: getattr(section, name) // n, "processes": 1})


def on_processes(n: int, train: Callable[..., Checkpoint], *inputs: Any, stage: Stage) -> Checkpoint:
    """What `train(*inputs, stage)` returns, trained by n processes that share every step.

    The callbacks stay in this process: they are called with every log of the first of the n.

    Raises:
        UserError: what a process raised; the others are ended with it.
        RuntimeError: a process ended otherwise; names the one that failed first.
    """
    if n == 1:
        return train(*inputs, stage)
    with tempfile.TemporaryDirectory(prefix="posttrain-processes-") as folder:
        events = Path(folder) / "events.jsonl"
        events.touch()
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="spawn",
            monitor_interval=0.2,
        )
        with _relay(events, stage.callbacks), _quiet("torch.distributed.elastic", "torchelastic-events-null"):
            try:
                elastic_launch(launch, _worker)(train, inputs, replace(stage, callbacks=()), events)
            except ChildFailedError as error:
                if message := next((event["error"] for event in _read(events) if "error" in event), None):
                    raise UserError(message) from error
                rank, failure = error.get_first_failure()
                raise RuntimeError(
                    f"process {rank} of {n} failed (exit code {failure.exitcode}): {failure.message}"
                ) from error
    return Checkpoint.load(stage.dest)


def _worker(train: Callable[..., Checkpoint], inputs: tuple[Any, ...], stage: Stage, events: Path) -> None:
    first = os.environ["RANK"] == "0"
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it would say, the first says
    try:
        train(*inputs, replace(stage, callbacks=(_WriteLogs(events),) if first else ()))
    except UserError as error:
        _write(events, {"error": str(error)})
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _WriteLogs(TrainerCallback):
    """Writes down every log, so that the process that started this one can pass it to its callbacks."""

    def __init__(self, events: Path) -> None:
        self.events = events

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        _write(self.events, {"step": state.global_step, "epoch": state.epoch, "logs": logs or {}})


def _write(events: Path, event: dict[str, Any]) -> None:
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, default=float) + "\n")  # one write: whole lines, whoever else writes


def _read(events: Path) -> list[dict[str, Any]]:
    text = events.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def _relay(events: Path, callbacks: tuple[TrainerCallback, ...]) -> Iterator[None]:
    """Inside, callbacks are called with the logs that another process writes down, soon after each."""
    done = threading.Event()
    passed = 0

    def pass_on() -> None:
        nonlocal passed
        for event in _read(events)[passed:]:
            passed += 1
            if "logs" in event:
                state = SimpleNamespace(global_step=event["step"], epoch=event["epoch"], is_world_process_zero=True)
                for callback in callbacks:
                    callback.on_log(None, state, None, logs=event["logs"])  # type: ignore[arg-type]

    def follow() -> None:
        while not done.wait(POLL_S):
            pass_on()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        pass_on()


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Inside, these loggers say nothing: what they would report is raised."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
