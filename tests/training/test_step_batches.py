"""How the rows of a step are shared: the same rows for any number of processes, about as many tokens for each."""

import numpy as np
import pytest
from datasets import Dataset
from support.stages import LENGTHS, reference_on, sft_on

from posttrain.config import DpoSection, SftSection
from posttrain.training.dpo import train_dpo
from posttrain.training.order import epoch_order
from posttrain.training.step_batches import StepBatches, describe, fit_micro_batches, row_tokens, share
from posttrain.training.trainer import TrainingJob

LONG_TAIL = np.exp(np.random.default_rng(0).normal(5, 0.8, 1000)).astype(np.int64) + 10


def batches(n_tokens=LONG_TAIL, *, processes, micro=1, rows=8, seed=3):
    section = DpoSection(batch_size=rows, gradient_accumulation_steps=micro, processes=processes)
    return StepBatches(n_tokens, section, seed)


def test_rows_are_shared_by_hand():
    """Rows of 9, 8, 3, 2, 2 and 1 tokens for two: 9 + 2 + 2 = 13 and 8 + 3 + 1 = 12, three rows each."""
    assert share([10, 11, 12, 13, 14, 15], np.array([0] * 10 + [2, 9, 1, 3, 8, 2]), 2) == [[11, 10, 15], [14, 13, 12]]


@pytest.mark.parametrize(("processes", "micro", "rows"), [(1, 4, 4), (2, 2, 4), (4, 2, 2), (8, 1, 2)])
def test_a_step_has_the_same_rows_for_any_number_of_processes(processes, micro, rows):
    """1,000 rows are 62 steps of 16 and one of 8, in which every process has a row at least."""
    found = batches(processes=processes, micro=micro, rows=rows)
    steps = [*found.steps(1)]
    order = epoch_order(1000, 3, 1)
    rows_of_steps = [sorted(row for micro_batch in step for part in micro_batch for row in part) for step in steps]
    assert rows_of_steps == [sorted(order[start : start + 16]) for start in range(0, 1000, 16)]
    assert sum(len(step) for step in steps) == found.n_batches()
    for step in steps:
        assert {len(micro_batch) for micro_batch in step} == {processes}
        sizes = {len(part) for micro_batch in step for part in micro_batch}
        assert len(sizes) == 1  # TRL gathers one value a pair from each process
        n_tokens = [sum(LONG_TAIL[part].sum() for part in micro_batch) for micro_batch in step]
        assert n_tokens == sorted(n_tokens, reverse=True)


def test_a_last_step_that_cannot_be_shared_evenly_is_filled_up():
    """Ten rows in steps of eight for four processes: the last two and the first two of the epoch."""
    found = batches(LONG_TAIL[:10], processes=4, rows=2)
    order = epoch_order(10, 3)
    (_, last) = found.steps(0)
    assert sorted(row for part in last[0] for row in part) == sorted(order[8:] + order[:2])


def test_eight_processes_compute_most_of_the_time_and_one_row_each_is_advised_against():
    assert batches(processes=8, rows=8).utilisation() > 0.93
    alone = batches(processes=8, rows=1)
    assert 0.3 < alone.utilisation() < 0.6
    line = describe(alone, "DPO")
    assert "a step of 8 rows is 1 x 1 rows of 8 processes" in line
    assert "raise dpo.batch_size or dpo.gradient_accumulation_steps" in line
    assert "raise" not in describe(batches(processes=8, rows=8), "DPO")


def test_utilisation_by_hand():
    """Two steps of two rows for two processes: 10 and 6, 10 and 2 tokens (or crosswise): 28 of 40 are computed."""
    n_tokens = np.array([10, 10, 6, 2])
    order = epoch_order(4, 3)
    paired = np.empty(4, dtype=np.int64)
    paired[order] = n_tokens[[0, 2, 1, 3]]
    assert batches(paired, processes=2, rows=1).utilisation() == pytest.approx(28 / 40)


def rows_of(n_tokens):
    ids = [[0] * int(n) for n in n_tokens]
    return Dataset.from_dict({"prompt_ids": [[1]] * len(ids), "chosen_ids": ids, "rejected_ids": [[2, 2]] * len(ids)})


def test_batch_tokens_decide_the_micro_batches_and_not_the_step():
    rows = rows_of(LONG_TAIL[:64])
    assert row_tokens(rows).tolist() == (LONG_TAIL[:64] + 3).tolist()
    section = DpoSection(batch_size=16, batch_tokens=2000, processes=1)
    fitted, found = fit_micro_batches(section, rows, 3)
    assert fitted.effective_batch_size == 16
    assert fitted.gradient_accumulation_steps == found.section.gradient_accumulation_steps > 1
    assert found.largest(1) <= 2000
    half = fitted.model_copy(update={"gradient_accumulation_steps": fitted.gradient_accumulation_steps // 2})
    half = half.model_copy(update={"batch_size": 16 // half.gradient_accumulation_steps})
    assert StepBatches(found.n_tokens, half, 3).largest(1) > 2000
    single, _ = fit_micro_batches(section.model_copy(update={"batch_tokens": 1}), rows, 3)
    assert (single.batch_size, single.gradient_accumulation_steps) == (1, 16)
    assert fit_micro_batches(DpoSection(processes=1), rows, 3) == (DpoSection(processes=1), None)


@pytest.mark.slow
def test_micro_batches_by_tokens_train_the_same_model(tiny_base, preferences, tmp_path):
    """Two epochs of SFT and DPO, in micro-batches of at most 150 tokens and in whole steps: the same losses."""
    base, section = tiny_base
    common = {"learning_rate": 1e-3, "epochs": 2.0, "max_length": 96, "batch_size": 8, "eval_steps": 100}
    losses = {}
    for batch_tokens in (None, 150):
        job = TrainingJob(base, section, 0, tmp_path / f"sft-{batch_tokens}")
        sft = sft_on(preferences, SftSection(**common, batch_tokens=batch_tokens), job)
        reference = reference_on(preferences, sft, base, section, LENGTHS)
        job = TrainingJob(base, section, 0, tmp_path / f"dpo-{batch_tokens}")
        dpo = train_dpo(reference, sft, DpoSection(**common, max_prompt_length=64, batch_tokens=batch_tokens), job)
        losses[batch_tokens] = [entry["loss"] for stage in (sft, dpo) for entry in stage.history if "loss" in entry]
    assert len(losses[None]) == 20
    assert losses[150] == pytest.approx(losses[None], rel=1e-4)
