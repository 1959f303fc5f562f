"""Train with several processes on this machine, one per GPU or several on a CPU, started as `torchrun` starts them."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import TrainerCallback

from posttrain.config import TrainSection
from posttrain.errors import Preempted, UserError
from posttrain.models.checkpoint import Checkpoint
from posttrain.training.trainer import OutOfMemory, TrainingJob

POLL_S = 0.2
PREEMPTED = 128 + signal.SIGTERM
"""Exit code of a process that was asked to end and wrote a training checkpoint first."""


def share_rows(section: TrainSection) -> tuple[int, TrainSection]:
    """Return the number of processes and the section of each. A step has as many rows as with one process.

    Raises:
        UserError: there are fewer GPUs than processes, or the rows of a step cannot be shared evenly.
    """
    n = section.processes if section.processes != "auto" else max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and n > torch.cuda.device_count():
        raise UserError(
            f"processes is {n}, but this machine has {torch.cuda.device_count()} GPUs: lower it, or set it to auto"
        )
    if n == 1 and section.sharding != "none":
        raise UserError(
            f"sharding: {section.sharding} splits a model among several processes, but processes {section.processes} gives only "
            "one on this machine: use a machine with several GPUs, or set sharding to none"
        )
    if section.gradient_accumulation_steps % n == 0:
        name = "gradient_accumulation_steps"
    elif section.batch_size % n == 0:
        name = "batch_size"
    else:
        raise UserError(
            f"processes: a step of {section.gradient_accumulation_steps} micro-batches of {section.batch_size} rows cannot be "
            f"split evenly among {n} processes: make gradient_accumulation_steps or batch_size a multiple of {n}"
        )
    return n, section.model_copy(update={name: getattr(section, name) // n, "processes": n})


def on_processes(section: TrainSection, train: Callable[..., Checkpoint], *inputs: Any, job: TrainingJob) -> Checkpoint:
    """Return what `train(section, *inputs, job)` returns, trained by as many processes as the section sets.

    The processes share every step. The callbacks stay in this process and receive every log of the first process. If a step
    does not fit into memory, it is tried again with smaller micro-batches and as many rows per step as before.

    Raises:
        UserError: a process raised it. The other processes are stopped.
        RuntimeError: a process ended in another way. Names the process that failed first.
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
        gc.collect()  # the model, and what the failed step still refers to
        torch.cuda.empty_cache()


def _smaller(section: TrainSection, error: str) -> TrainSection:
    """Return the section with micro-batches of half the rows (or the largest divisor) and as many more of them."""
    if (
        section.batch_tokens is not None and section.batch_tokens > section.max_length
    ):  # else a micro-batch has a single row
        n_tokens = section.batch_tokens // 2
        print(
            f"Out of memory in the first step ({error}): trying again with micro-batches of at most {n_tokens} tokens"
        )
        return section.model_copy(update={"batch_tokens": n_tokens})
    rows = section.batch_size
    single = section.batch_tokens is not None
    factor = None if single else next((n for n in range(2, rows + 1) if rows % n == 0), None)
    if factor is None:
        raise UserError(
            f"out of memory in the first step with batch_size {rows} ({error}): lower max_length, set gradient_checkpointing to "
            "true, train an adapter (model.method lora or qlora), or use a machine with more memory"
        )
    smaller = {
        "batch_size": rows // factor,
        "gradient_accumulation_steps": section.gradient_accumulation_steps * factor,
    }
    print(
        f"Out of memory in the first step ({error}): trying again with micro-batches of {rows // factor} rows instead of {rows}. "
        f"A step has {smaller['gradient_accumulation_steps']} of them, {section.effective_batch_size} rows as before"
    )
    return section.model_copy(update=smaller)


def _launch(n: int, train: Callable[..., Checkpoint], inputs: tuple[Any, ...], job: TrainingJob) -> Checkpoint:
    with tempfile.TemporaryDirectory(prefix="posttrain-processes-") as folder:
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
        relay = _Relay(job.callbacks)
        try:
            with (
                relay.running() as queue,
                _quiet("torch.distributed.elastic", "torchelastic-events-null"),
                _signals_as_before(),
            ):
                elastic_launch(launch, _worker)(train, inputs, replace(job, callbacks=(), checkpoints=None), queue)
        except SignalException as error:  # the processes received the signal too, and had time to write a checkpoint
            raise Preempted("stopped, saved", error.sigval) from error
        except ChildFailedError as error:
            raise _failure(error, relay.raised, n) from error
    return Checkpoint.load(job.dest)


def _failure(error: ChildFailedError, raised: dict[str, str], n: int) -> BaseException:
    """Return the exception to raise for a failed process."""
    if "out_of_memory" in raised:
        return OutOfMemory(raised["out_of_memory"])
    if "error" in raised:
        return UserError(raised["error"])
    rank, failure = error.get_first_failure()
    if failure.exitcode == PREEMPTED:
        return Preempted(f"process {rank} of {n} was interrupted")
    return RuntimeError(f"process {rank} of {n} failed (exit code {failure.exitcode}): {failure.message}")


def _worker(train: Callable[..., Checkpoint], inputs: tuple[Any, ...], job: TrainingJob, queue: _Queue) -> None:
    first = os.environ["RANK"] == "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before the model is loaded onto it
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # only rank 0 writes to stdout
    preempted = False
    try:
        train(*inputs, replace(job, callbacks=(_SendLogs(queue),) if first else ()))
    except UserError as error:
        queue.put({"error": str(error)})
        raise
    except OutOfMemory as error:
        queue.put({"out_of_memory": str(error)})
        raise
    except Preempted:
        preempted = True
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if preempted:
        end_process(PREEMPTED)


def end_process(code: int) -> NoReturn:
    """End this process at once, without the interpreter's shutdown, in which it may abort.

    Gloo's threads release the tensors of a collective after it has returned, and need the GIL for it. A thread that asks for
    the GIL during the shutdown is made to exit inside a destructor, which ends the process with SIGABRT ("terminate called
    without an active exception"). `destroy_process_group` does not wait for the threads if something, as FSDP, still refers
    to the group. See pytorch/pytorch#190489.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass(frozen=True)
class _Queue:
    """The sending end of a queue from the training processes to the process that started them.

    `multiprocessing.SimpleQueue` is the same pipe and lock, but keeps both ends open in every process. Here the receiving
    process closes its sending end, so it sees the end of the queue when all senders are gone, even one that was killed.
    """

    pipe: Connection
    lock: Lock

    def put(self, event: dict[str, Any]) -> None:
        with self.lock:
            self.pipe.send(event)


class _SendLogs(TrainerCallback):
    """Sends every log and saved checkpoint to the process that started this one, which passes it to its callbacks."""

    def __init__(self, queue: _Queue) -> None:
        self.queue = queue

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        self.queue.put({"step": state.global_step, "epoch": state.epoch, "logs": numbers})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.queue.put({"step": state.global_step, "saved": True})


class _Relay:
    """Passes the logs of other processes to callbacks of this one as they arrive."""

    def __init__(self, callbacks: tuple[TrainerCallback, ...]) -> None:
        self.raised: dict[str, str] = {}
        """Failures of the processes: `error` or `out_of_memory`, and the message."""
        self._callbacks = callbacks

    @contextmanager
    def running(self) -> Iterator[_Queue]:
        """Give the queue that the processes write to. At the end, everything that they sent has been passed on.

        If a callback raises, the queue is closed, so that the training ends too, and the exception is raised at the end.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        ended = threading.Event()
        with ThreadPoolExecutor(1, "relay") as thread:
            following = thread.submit(self._follow, receiver, ended)
            try:
                yield _Queue(sender, context.Lock())
            finally:
                sender.close()
                ended.set()
                following.result()

    def _follow(self, receiver: Connection, ended: threading.Event) -> None:
        with receiver:
            while True:
                # When the processes have ended, the pipe contains all messages. Do not wait for the pipe to close: a child
                # process that they left behind may keep it open.
                last = ended.is_set()
                while receiver.poll(0 if last else POLL_S):
                    try:
                        event = receiver.recv()
                    except (EOFError, OSError):  # no sender is left; the last one may have been killed while it sent
                        return
                    self._pass_on(event)
                if last:
                    return

    def _pass_on(self, event: dict[str, Any]) -> None:
        self.raised |= {name: event[name] for name in ("error", "out_of_memory") if name in event}
        about: Any = SimpleNamespace(
            is_world_process_zero=True, epoch=event.get("epoch"), global_step=event.get("step")
        )
        absent: Any = None  # the trainer's arguments and control exist in the other process only
        for callback in self._callbacks:
            if "logs" in event:
                callback.on_log(absent, about, absent, logs=event["logs"])
            if "saved" in event:
                callback.on_save(absent, about, absent)


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Restore the signal handlers at the end. The launcher replaces them and does not restore them."""
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
    """Silence loggers whose messages are also raised as exceptions."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
