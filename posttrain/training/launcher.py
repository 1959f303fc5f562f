"""Several processes of this machine for one job, one to a GPU (or on a CPU), as `torchrun` would start them."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import TrainerCallback

from posttrain.config import TrainSection
from posttrain.errors import UserError
from posttrain.models.checkpoint import Checkpoint
from posttrain.training.resume.training_checkpoints import Preempted
from posttrain.training.trainer import OutOfMemory, TrainingJob

POLL_S = 0.2
PREEMPTED = 128 + signal.SIGTERM
"""Exit code of a process that wrote a checkpoint because it was told to end."""


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
    if n == 1 and section.sharding != "none":
        raise UserError(
            f"sharding: {section.sharding} shares a model out among several processes, and processes {section.processes} is one "
            "on this machine: take one with several GPUs, or set sharding to none"
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
    return n, section.model_copy(update={name: getattr(section, name) // n, "processes": n})


def on_processes(section: TrainSection, train: Callable[..., Checkpoint], *inputs: Any, job: TrainingJob) -> Checkpoint:
    """What `train(section, *inputs, job)` returns, trained by as many processes as the section says, which share every step.

    The callbacks stay in this process: they are called with every log of the first of them. A step that does not fit into
    memory is tried again in smaller micro-batches, as many rows to a step as before.

    Raises:
        UserError: what a process raised; the others are ended with it.
        RuntimeError: a process ended otherwise; names the one that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-training-") as folder:
        job = replace(job, work=Path(folder))
        if job.checkpoints is None:
            return _fitting(section, train, inputs, job)
        with job.checkpoints.in_use(Path(folder)) as (resumption, upload):
            callbacks = (*job.callbacks, upload)
            return _fitting(section, train, inputs, replace(job, resumption=resumption, callbacks=callbacks))


def _fitting(
    section: TrainSection, train: Callable[..., Checkpoint], inputs: tuple[Any, ...], job: TrainingJob
) -> Checkpoint:
    while True:
        n, shared = share_rows(section)
        try:
            return train(shared, *inputs, job) if n == 1 else _launch(n, train, (shared, *inputs), job)
        except OutOfMemory as error:
            section = _smaller(section, str(error))
        gc.collect()  # the model and all that hung on the failed step
        torch.cuda.empty_cache()


def _smaller(section: TrainSection, error: str) -> TrainSection:
    """The section with half the micro-batch, or the largest share of it that makes whole ones, and as many more of them."""
    rows = section.batch_size
    factor = next((n for n in range(2, rows + 1) if rows % n == 0), None)
    if factor is None:
        raise UserError(
            f"out of memory in the first step with batch_size {rows} ({error}): lower max_length, set gradient_checkpointing to "
            "true, train an adapter (model.method lora or qlora), or take a larger machine"
        )
    smaller = {
        "batch_size": rows // factor,
        "gradient_accumulation_steps": section.gradient_accumulation_steps * factor,
    }
    print(
        f"Out of memory in the first step ({error}): micro-batches of {rows // factor} rows instead of {rows}, and "
        f"{smaller['gradient_accumulation_steps']} of them to a step of {section.effective_batch_size} rows as before"
    )
    return section.model_copy(update=smaller)


def _launch(n: int, train: Callable[..., Checkpoint], inputs: tuple[Any, ...], job: TrainingJob) -> Checkpoint:
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
        with (
            _relay(events, job.callbacks),
            _quiet("torch.distributed.elastic", "torchelastic-events-null"),
            _signals_as_before(),
        ):
            try:
                elastic_launch(launch, _worker)(train, inputs, replace(job, callbacks=(), checkpoints=None), events)
            except SignalException as error:  # the processes were given it too, and the time to write a checkpoint
                raise Preempted(str(error)) from error
            except ChildFailedError as error:
                raised = {key: value for event in _read(events) for key, value in event.items()}
                if "out_of_memory" in raised:
                    raise OutOfMemory(raised["out_of_memory"]) from error
                if "error" in raised:
                    raise UserError(raised["error"]) from error
                rank, failure = error.get_first_failure()
                if failure.exitcode == PREEMPTED:
                    raise Preempted(f"process {rank} of {n} was interrupted") from error
                raise RuntimeError(
                    f"process {rank} of {n} failed (exit code {failure.exitcode}): {failure.message}"
                ) from error
    return Checkpoint.load(job.dest)


def _worker(train: Callable[..., Checkpoint], inputs: tuple[Any, ...], job: TrainingJob, events: Path) -> None:
    first = os.environ["RANK"] == "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before the model is loaded onto it
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it would say, the first says
    try:
        train(*inputs, replace(job, callbacks=(_WriteLogs(events),) if first else ()))
    except UserError as error:
        _write(events, {"error": str(error)})
        raise
    except OutOfMemory as error:
        _write(events, {"out_of_memory": str(error)})
        raise
    except Preempted:
        sys.exit(PREEMPTED)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _WriteLogs(TrainerCallback):
    """Writes down every log and checkpoint, so that the process that started this one can pass it to its callbacks."""

    def __init__(self, events: Path) -> None:
        self.events = events

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        _write(self.events, {"step": state.global_step, "epoch": state.epoch, "logs": logs or {}})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _write(self.events, {"step": state.global_step, "saved": True})


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
            about: Any = SimpleNamespace(
                is_world_process_zero=True, epoch=event.get("epoch"), global_step=event.get("step")
            )
            absent: Any = None  # the trainer's arguments and control are in the other process
            for callback in callbacks:
                if "logs" in event:
                    callback.on_log(absent, about, absent, logs=event["logs"])
                if "saved" in event:
                    callback.on_save(absent, about, absent)

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
def _signals_as_before() -> Iterator[None]:
    """After it, signals are handled as before: the launcher leaves its own handlers behind."""
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


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
