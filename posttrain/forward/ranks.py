"""Several processes with a copy of the same model each, one per GPU, that divide work without gradients among themselves."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import torch
from datasets import Dataset

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import Batching, PairLogps, ResponseLogps, merge, score_part
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import Model, load_model

T = TypeVar("T")
CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class LoadedBy:
    """What each process loads its copy of the model by."""

    base: Base
    section: ModelSection
    checkpoint: Checkpoint | None
    processes: int | Literal["auto"] = "auto"
    """auto: one per GPU, or one on a CPU."""

    @property
    def n(self) -> int:
        """Return the number of processes.

        Raises:
            UserError: there are fewer GPUs.
        """
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        n = max(1, n_gpus) if self.processes == "auto" else self.processes
        if n > n_gpus > 0:
            raise UserError(
                f"evaluation.processes is {n}, but this machine has {n_gpus} GPUs: lower it, or set it to auto"
            )
        return n

    def load(self) -> Model:
        """Return this process's copy."""
        return load_model(self.base, self.section, self.checkpoint, frozen=True)


@dataclass(frozen=True)
class ModelCopy:
    """The model of one rank."""

    model: Model
    section: ModelSection
    """How it was loaded."""
    rank: int = 0
    n_ranks: int = 1


class Ranks:
    """This process, which has rank 0, and the other ones."""

    def __init__(self, own: ModelCopy, others: Sequence[tuple[Connection, BaseProcess]]) -> None:
        self.model = own.model
        self._own, self._others = own, others

    def run(self, function: Callable[..., T], *inputs: Any) -> list[T]:
        """Return `function(ModelCopy, *inputs)` of every rank.

        Raises:
            RuntimeError: another process ended. Its message is in the log.
        """
        n = self._own.n_ranks
        for rank, (pipe, process) in enumerate(self._others, start=1):
            try:
                pipe.send((function, inputs))
            except OSError as error:
                raise _ended(rank, n, process) from error
        results = [function(self._own, *inputs)]
        for rank, (pipe, process) in enumerate(self._others, start=1):
            try:
                results.append(pipe.recv())
            except (EOFError, OSError) as error:
                raise _ended(rank, n, process) from error
        return results

    def score(self, rows: Dataset, tokens_per_batch: int, label: str) -> PairLogps:
        """Return the log-probabilities of every pair's responses, equal to those of one process. See `score_as_it_is`."""
        return merge(rows, self.run(_score_part, rows, tokens_per_batch, label))


def _score_part(own: ModelCopy, rows: Dataset, tokens_per_batch: int, label: str) -> ResponseLogps:
    return score_part(own.model, rows, own.section, Batching(tokens_per_batch, label, own.rank, own.n_ranks))


@contextmanager
def on_ranks(source: LoadedBy) -> Iterator[Ranks]:
    """Load a model in as many processes as are set. The other processes end with the context.

    Raises:
        UserError: there are fewer GPUs than processes, or the model cannot be loaded.
    """
    n, n_threads = source.n, torch.get_num_threads()
    with ExitStack() as stack:
        others: list[tuple[Connection, BaseProcess]] = []
        if n > 1:
            stack.callback(torch.set_num_threads, n_threads)
            torch.set_num_threads(max(1, n_threads // n))
        for rank in range(1, n):
            ours, theirs = CONTEXT.Pipe()
            arguments = (theirs, source, rank, torch.get_num_threads())
            process = CONTEXT.Process(target=_follow, args=arguments, name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()  # so that the end of the process closes the pipe
            stack.callback(_end, ours, process)
            others.append((ours, process))
        yield Ranks(ModelCopy(source.load(), source.section, 0, n), others)


def _follow(pipe: Connection, source: LoadedBy, rank: int, n_threads: int) -> None:
    """Run in another process what rank 0 runs too, until rank 0 closes the pipe or ends."""
    os.environ["RANK"] = str(rank)  # only rank 0 shows progress bars
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # only rank 0 writes to stdout
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    torch.set_num_threads(n_threads)
    own = ModelCopy(source.load(), source.section, rank, source.n)
    while True:
        try:
            function, inputs = pipe.recv()
        except EOFError:
            return
        pipe.send(function(own, *inputs))


def _end(pipe: Connection, process: BaseProcess) -> None:
    pipe.close()
    process.terminate()  # it may still compute after a failure or an interruption
    process.join()


def _ended(rank: int, n: int, process: BaseProcess) -> RuntimeError:
    process.join()
    return RuntimeError(
        f"process {rank} of {n} ended (exit code {process.exitcode}), perhaps because memory ran out: its message is above; lower "
        "evaluation.processes or evaluation.tokens_per_batch"
    )
