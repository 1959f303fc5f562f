"""Several processes that share every step: the same training as one, its logs here, its failures one line."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers import TrainerCallback

from posttrain.config import DpoSection, Lengths, SftSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import score_pairs
from posttrain.models.loading import load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.launcher import share_rows
from posttrain.training.reference import score_reference
from posttrain.training.sft import train_sft
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

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.is_world_process_zero
        self.logs.append((state.global_step, logs))


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_base, preferences, tmp_path, request):
    """SFT and DPO on two CPU processes (gloo): the ten losses, and what the model makes of pairs, are one process's."""
    base, section = tiny_base
    histories, margins = {}, {}
    for n in (1, 2):
        recorder = Recorder()
        sft = train_sft(
            preferences,
            None,
            SFT.model_copy(update={"processes": n}),
            TrainingJob(base, section, 0, tmp_path / f"sft{n}"),
        )
        if n == 2:
            request.getfixturevalue("forked_processes")  # SFT's are spawned, as users' are, which takes long
        reference = score_reference(preferences, sft, base, section, LENGTHS, 4096)
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
        train_sft(preferences, None, once, TrainingJob(base, section, seed, tmp_path / f"sft{seed}")) for seed in (0, 1)
    )
    reference = score_reference(preferences, first, base, section, LENGTHS, 4096)
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


def test_rows_that_cannot_be_shared_are_an_error():
    with pytest.raises(UserError, match="processes: 2 cannot share a step of 3 micro-batches of 5 rows evenly"):
        share_rows(DpoSection(batch_size=5, gradient_accumulation_steps=3, processes=2))
