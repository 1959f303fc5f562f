"""Lack of memory in a training: the largest micro-batch is tried first, and one that does not fit later is split."""

import pytest
import torch
from support.stages import LENGTHS, reference_on, sft_on

from posttrain.config import DpoSection, SftSection
from posttrain.training import splitting
from posttrain.training.dpo import PairTrainer, train_dpo
from posttrain.training.sft import CompletionTrainer
from posttrain.training.splitting import SplittingTrainer, n_rows, split_batch
from posttrain.training.trainer import TrainingJob

COMMON = {"max_steps": 4, "max_length": 96, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
SFT = SftSection(**COMMON, eval_steps=2)
DPO = DpoSection(**COMMON, max_prompt_length=64, eval_steps=2)


@pytest.fixture(scope="module")
def after_sft(tiny_base, preferences, tmp_path_factory):
    base, section = tiny_base
    section = section.model_copy(update={"method": "lora", "lora": section.lora.model_copy(update={"dropout": 0.1})})
    folder = tmp_path_factory.mktemp("start")
    sft = sft_on(preferences, SFT.model_copy(update={"max_steps": 1}), TrainingJob(base, section, 0, folder / "sft"))
    return base, section, sft, reference_on(preferences, sft, base, section, LENGTHS)


@pytest.fixture(params=["sft", "sft padded", "dpo", "dpo padded"])
def train(request, after_sft, preferences, tmp_path):
    """Return a function that trains and returns the checkpoint."""
    base, section, sft, reference = after_sft
    stage, *padded = request.param.split()
    section = section.model_copy(update={"layout": "padded"} if padded else {})

    def run(name, **update):
        job = TrainingJob(base, section, 0, tmp_path / name)
        if stage == "sft":
            return sft_on(preferences, SFT.model_copy(update=update), job)
        return train_dpo(reference, sft, DPO.model_copy(update=update), job)

    return run


def with_little_memory(monkeypatch, fits, n_times=10**6, step=2):
    """Let the second micro-batch of a step run out of memory in its backward pass, after some gradients have changed."""
    second = None
    for kind in (PairTrainer, CompletionTrainer):
        whole = kind.compute_loss

        def compute_loss(self, model, inputs, *args, whole=whole, **kwargs):
            nonlocal n_times, second
            loss = whole(self, model, inputs, *args, **kwargs)
            late = model.training and self.state.global_step == step and self._n_done == 1
            if late and second is None:
                second = inputs["input_ids"]
            its = n_rows(inputs) < 4 or (second is not None and torch.equal(inputs["input_ids"], second))
            if late and its and n_rows(inputs) > fits and n_times:
                n_times -= 1
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.add_(1.0)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return loss

        monkeypatch.setattr(kind, "compute_loss", compute_loss)


BY_TOKENS = {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}
"""Means over the tokens of a micro-batch. Of parts they are averaged by rows."""


def timeless(history):
    return [{k: v for k, v in entry.items() if not k.endswith(("runtime", "per_second"))} for entry in history]


def test_a_step_that_fits_the_second_time_is_the_same_step(train, monkeypatch):
    """As after fragmentation: weights, losses and metrics equal those of an undisturbed training, with dropout, bit by bit."""
    expected = train("undisturbed")
    with_little_memory(monkeypatch, fits=0, n_times=1)
    found = train("disturbed")
    assert found.digest == expected.digest
    assert timeless(found.history) == timeless(expected.history)


def test_a_micro_batch_that_does_not_fit_is_split_and_every_row_has_its_weight(train, after_sft, monkeypatch, capsys):
    """Four rows do not fit, nor two: four parts. Without dropout losses, norms of gradients, rewards and weights are the same."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, inputs: inputs)
    expected = train("undisturbed")
    with_little_memory(monkeypatch, fits=1)
    found = train("split")
    assert "Out of memory in step 3: its micro-batch of 4 rows was computed in 4 parts" in capsys.readouterr().out
    for ours, theirs in zip(timeless(found.history), timeless(expected.history), strict=True):
        exact = {name for name in theirs if name not in BY_TOKENS}
        assert {name: ours[name] for name in exact} == pytest.approx(
            {name: theirs[name] for name in exact}, rel=1e-4, abs=1e-5
        )
        assert ours == pytest.approx(theirs, rel=0.2, abs=0.01)


@pytest.mark.parametrize("train", ["dpo"], indirect=True)
def test_rows_that_do_not_fit_alone_are_an_error(train, monkeypatch):
    with_little_memory(monkeypatch, fits=0)
    with pytest.raises(Exception, match="dpo: out of memory after step 2"):
        train("never")


@pytest.mark.parametrize("train", ["sft", "dpo"], indirect=True)
def test_the_largest_micro_batch_is_tried_before_the_first_step_without_effect(train, monkeypatch, capsys):
    sizes = []
    for kind in (PairTrainer, CompletionTrainer):
        whole = kind.compute_loss

        def compute_loss(self, model, inputs, *args, whole=whole, **kwargs):
            if model.training:
                sizes.append(
                    sum(len(row[name]) for row in inputs["flat"]["examples"].rows for name in row if name in SIZED)
                )
            return whole(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(kind, "compute_loss", compute_loss)
    tried = train("tried")
    assert len(sizes) == 1 + 8
    assert sizes[0] == max(sizes) > sizes[1]
    monkeypatch.setattr(SplittingTrainer, "_try_largest", lambda *_: None)
    assert train("not tried").digest == tried.digest
    assert len(sizes) == 9 + 8


SIZED = {"prompt_ids", "chosen_ids", "rejected_ids", "input_ids"}


@pytest.mark.parametrize("train", ["dpo"], indirect=True)
def test_a_lack_of_memory_for_the_largest_micro_batch_makes_all_smaller_before_the_first_step(
    train, monkeypatch, capsys
):
    whole = PairTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and n_rows(inputs) > 2 and self._first_try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(self, model, inputs, *args, **kwargs)

    tried = SplittingTrainer._try_largest

    def try_largest(self, *args):
        self._first_try = True
        tried(self, *args)
        self._first_try = False

    monkeypatch.setattr(PairTrainer, "_first_try", False, raising=False)
    monkeypatch.setattr(SplittingTrainer, "_try_largest", try_largest)
    monkeypatch.setattr(PairTrainer, "compute_loss", compute_loss)
    train("smaller")
    assert "trying again with micro-batches of 2 rows instead of 4" in capsys.readouterr().out


def test_parts_of_a_padded_batch_keep_chosen_and_rejected_together():
    """Three pairs: rows 0 to 2 are chosen, rows 3 to 5 rejected."""
    batch = {"input_ids": torch.arange(6)[:, None], "ref_chosen_logps": torch.arange(3.0)}
    first, second = split_batch(batch, 2)
    assert (first["input_ids"].flatten().tolist(), second["input_ids"].flatten().tolist()) == ([0, 1, 3, 4], [2, 5])
    assert second["ref_chosen_logps"].tolist() == [2.0]
    assert len(split_batch(batch, 8)) == 3


def test_metrics_of_parts_become_one_in_which_rows_weigh_the_same():
    """Parts of 3 and 1 rows with 1 and 5: (3 + 5) / 4 = 2."""
    metrics = {"loss": [7.0, 1.0, 5.0], "num_tokens": [9.0]}
    splitting._merge_metrics(metrics, {"loss": [7.0], "num_tokens": [8.0]}, [3, 1])
    assert metrics == {"loss": [7.0, 2.0], "num_tokens": [9.0]}
