"""Several processes that share every step: the same training as one, its logs here, its failures one line."""

import contextlib
import multiprocessing
import os
import signal
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.stages import reference_on, sft_on
from transformers import TrainerCallback

from posttrain.config import DpoSection, Lengths, SftSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import score_pairs
from posttrain.models.loading import load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.launcher import _Relay, _smaller, share_rows
from posttrain.training.trainer import TrainingJob

LENGTHS = Lengths(max_length=96, max_prompt_length=64)
SFT = SftSection(learning_rate=1e-3, max_steps=10, max_length=96, batch_size=2, gradient_accumulation_steps=2)
DPO = DpoSection(
    learning_rate=1e-3, max_steps=10, max_length=96, max_prompt_length=64, batch_size=2, gradient_accumulation_steps=2
)


@dataclass
class Recorder(TrainerCallback):
    """Keeps what it is called with."""

    logs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.is_world_process_zero
        self.logs.append((state.global_step, logs))

    def on_save(self, args, state, control, **kwargs):
        self.saved.append(state.global_step)


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_base, preferences, tmp_path, request):
    """SFT and DPO on two CPU processes (gloo): the ten losses, and what the model makes of pairs, are one process's."""
    base, section = tiny_base
    histories, margins = {}, {}
    for n in (1, 2):
        recorder = Recorder()
        sft = sft_on(
            preferences,
            SFT.model_copy(update={"processes": n}),
            TrainingJob(base, section, 0, tmp_path / f"sft{n}"),
        )
        if n == 2:
            request.getfixturevalue("forked_processes")  # SFT's are spawned, as users' are, which takes long
        reference = reference_on(preferences, sft, base, section, LENGTHS)
        where = TrainingJob(base, section, 0, tmp_path / f"dpo{n}", (recorder,))
        dpo = train_dpo(reference, sft, DPO.model_copy(update={"processes": n}), where)
        histories[n] = [[entry["loss"] for entry in stage.history if "loss" in entry] for stage in (sft, dpo)]
        scored = score_pairs(load_model(base, section, dpo), reference.rows("test"), section, 4096, "test")
        margins[n] = scored.chosen_logps - scored.rejected_logps
        assert [step for step, logs in recorder.logs if "loss" in logs] == list(range(1, 11))
    assert [len(losses) for losses in histories[1]] == [10, 10]
    for alone, shared in zip(histories[1], histories[2], strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)
    assert margins[2] == pytest.approx(margins[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_a_failure_of_a_process_is_one_line(tiny_base, preferences, tmp_path):
    base, section = tiny_base
    once = SFT.model_copy(update={"max_steps": 1})
    first, second = (
        sft_on(preferences, once, TrainingJob(base, section, seed, tmp_path / f"sft{seed}")) for seed in (0, 1)
    )
    reference = reference_on(preferences, first, base, section, LENGTHS)
    with pytest.raises(UserError, match="DPO does not start at its reference"):
        train_dpo(
            reference, second, DPO.model_copy(update={"processes": 2}), TrainingJob(base, section, 0, tmp_path / "dpo")
        )
    assert not (tmp_path / "dpo").exists()


@pytest.mark.parametrize(
    ("batch_size", "n_micro_batches", "expected"), [(8, 4, (8, 2)), (8, 1, (4, 1)), (6, 3, (3, 3)), (1, 2, (1, 1))]
)
def test_the_effective_batch_stays(batch_size, n_micro_batches, expected):
    section = DpoSection(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches, processes=2)
    n, shared = share_rows(section)
    assert (shared.batch_size, shared.gradient_accumulation_steps) == expected
    assert n * shared.effective_batch_size == section.effective_batch_size


def test_micro_batches_by_tokens_are_halved_when_memory_runs_out(capsys):
    """Down to about the longest row; then there is nothing left to halve."""
    section = DpoSection(batch_size=64, batch_tokens=3000, max_length=1024)
    smaller = _smaller(section, "no memory")
    assert (smaller.batch_tokens, smaller.batch_size) == (1500, 64)
    assert "micro-batches of at most 1500 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="out of memory in the first step"):
        _smaller(_smaller(smaller, "no memory"), "no memory")


def test_rows_that_cannot_be_shared_are_an_error():
    with pytest.raises(
        UserError, match="processes: a step of 3 micro-batches of 5 rows cannot be split evenly among 2 processes"
    ):
        share_rows(DpoSection(batch_size=5, gradient_accumulation_steps=3, processes=2))


def send(queue, *events):
    for event in events:
        queue.put(event)


def send_and_die(queue, *events):
    send(queue, *events)
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_sending(queue):
    os.write(queue.pipe.fileno(), struct.pack("!i", 1000) + b"half of an event")
    os.kill(os.getpid(), signal.SIGKILL)


def send_until_the_queue_is_closed(queue):
    with contextlib.suppress(BrokenPipeError):
        while True:
            queue.put(LOG)


LOG = {"step": 1, "epoch": 0.5, "logs": {"loss": 0.7}}
FORK = multiprocessing.get_context("fork")


def relayed(target, *events, worker=threading.Thread, callbacks=()):
    """Runs a worker that sends events, and returns what arrived."""
    recorder = Recorder()
    relay = _Relay((recorder, *callbacks))
    with relay.running() as queue:
        sender = worker(target=target, args=(queue, *events))
        sender.start()
        sender.join()
    return relay, recorder, sender


def test_everything_that_was_sent_has_arrived_at_the_end():
    relay, recorder, _ = relayed(send, *[LOG] * 300, {"step": 2, "saved": True}, {"error": "wrong"})
    assert recorder.logs == [(1, {"loss": 0.7})] * 300
    assert recorder.saved == [2]
    assert relay.raised == {"error": "wrong"}


@pytest.mark.parametrize(("target", "n_logs"), [(send_and_die, 2), (die_in_the_middle_of_sending, 0)])
def test_the_relay_ends_when_a_process_is_killed(target, n_logs):
    _, recorder, process = relayed(target, *[LOG] * n_logs, worker=FORK.Process)
    assert process.exitcode == -signal.SIGKILL
    assert recorder.logs == [(1, {"loss": 0.7})] * n_logs


class Refuse(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        raise UserError("the callback refuses")


def test_a_callback_that_raises_ends_the_training():
    """As it does in one process; else the process would wait for ever for somebody to read its logs."""
    with pytest.raises(UserError, match="the callback refuses"):
        relayed(send_until_the_queue_is_closed, callbacks=(Refuse(),))
