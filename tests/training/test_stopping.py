"""Early stopping ends with the best weights, and a diverged training ends at once."""

import pytest
import torch
from safetensors.torch import load_file
from support.stages import reference_on, sft_on
from transformers import TrainerControl, TrainerState

from posttrain.config import DpoSection, Lengths, SftSection
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.training.dpo import train_dpo
from posttrain.training.stopping import EarlyStopping, Goal, StopAtAccuracy, StopOnDivergence, stopping_callbacks
from posttrain.training.trainer import TrainingJob


def losses(values, patience, threshold=0.0, metric="eval_loss"):
    """Pass one validation per step to the callback, and return the last step, the best step, and the final weight."""
    model = torch.nn.Linear(1, 1, bias=False)
    callback = EarlyStopping(Goal("DPO", patience, threshold, metric))
    control, state = TrainerControl(), TrainerState()
    for step, value in enumerate(values, start=1):
        state.global_step = step
        with torch.no_grad():
            model.weight.fill_(step)
        callback.on_evaluate(None, state, control, metrics={metric: value}, model=model)
        if control.should_training_stop:
            break
    callback.on_train_end(None, state, control, model=model)
    assert callback.kept_step == (None if callback.best_step == state.global_step else callback.best_step)
    return state.global_step, callback.best_step, model.weight.item()


def test_training_stops_after_patience_validations_with_the_best_weights():
    assert losses([0.7, 0.5, 0.6, 0.55, 0.4], patience=2) == (4, 2, 2.0)


def test_a_better_validation_resets_the_count():
    assert losses([0.7, 0.8, 0.6, 0.7, 0.5, 0.6, 0.6], patience=2) == (7, 5, 5.0)


def test_final_weights_are_kept_if_they_are_the_best():
    assert losses([0.7, 0.6, 0.5], patience=1) == (3, 3, 3.0)


def test_a_nan_validation_loss_is_never_the_best():
    assert losses([0.7, float("nan"), float("nan")], patience=2) == (3, 1, 1.0)


def test_the_highest_accuracy_is_kept():
    assert losses([0.6, 0.7, 0.65, 0.7, 0.9], patience=2, metric="eval_rewards/accuracies") == (4, 2, 2.0)


def test_small_improvements_do_not_prolong_a_plateau_but_the_best_weights_are_kept():
    """With a threshold of 0.05, 0.69, 0.68 and 0.67 do not improve on 0.7; 0.66 + 0.05 > 0.7 would be the fourth."""
    assert losses([0.7, 0.69, 0.68, 0.67, 0.5], patience=3, threshold=0.05) == (4, 4, 4.0)
    assert losses([0.7, 0.68, 0.66, 0.64, 0.62, 0.6], patience=3, threshold=0.05) == (6, 6, 6.0)  # 0.64 does


def stopped_at(accuracies, ceiling=0.8, history=()):
    callback, control, state = StopAtAccuracy(ceiling), TrainerControl(), TrainerState()
    state.log_history = [{"step": 0, "rewards/accuracies": value} for value in history]
    callback.on_train_begin(None, state, control)
    for step, value in enumerate(accuracies, start=1):
        state.global_step = step
        callback.on_log(None, state, control, logs={"rewards/accuracies": value})
        if control.should_training_stop:
            return step
    return None


def test_training_stops_when_the_mean_of_ten_accuracies_exceeds_the_ceiling():
    """Nine of 0.9 are too few. After 0.3, ten of 0.9 are needed: nine and 0.3 have a mean of 0.84, so with 0 it is 0.81."""
    assert stopped_at([0.9] * 9) is None
    assert stopped_at([0.9] * 12) == 10
    assert stopped_at([0.0, *[0.9] * 12]) == 10
    assert stopped_at([0.8] * 30) is None
    assert stopped_at([0.9] * 5, history=[0.9] * 8) == 2  # resumed


def logs(*values, **others):
    callback, state = StopOnDivergence(), TrainerState()
    for step, loss in enumerate(values, start=1):
        state.global_step = step
        callback.on_log(None, state, TrainerControl(), logs={"loss": loss, "grad_norm": 1.0, **others})


def test_a_nan_loss_or_infinite_gradient_ends_the_training():
    with pytest.raises(UserError, match=r"dpo: loss is nan at step 2: nothing is saved; lower dpo\.learning_rate"):
        logs(0.69, float("nan"), 0.5)
    with pytest.raises(UserError, match="grad_norm is inf at step 1"):
        logs(0.69, grad_norm=float("inf"))


def test_a_diverged_loss_ends_the_training_and_a_single_spike_does_not():
    """The mean of ten losses of 2.1 is above 3 x 0.69; the mean of nine with an earlier one is not."""
    logs(0.69, *[2.1] * 9)
    with pytest.raises(
        UserError, match=r"has diverged: its mean over the last 10 logs up to step 11 is 2\.1, the first was 0\.69"
    ):
        logs(0.69, *[2.1] * 10)
    logs(0.69, 10.0, *[0.69] * 20)


def test_callbacks_follow_the_settings():
    assert [type(c) for c in stopping_callbacks(DpoSection(), has_validation=False)] == [StopOnDivergence]
    both = stopping_callbacks(DpoSection(early_stopping_patience=3, stop_on_divergence=False), has_validation=True)
    assert [type(c) for c in both] == [EarlyStopping]
    ceiling = stopping_callbacks(DpoSection(stop_at_accuracy=0.8, stop_on_divergence=False), has_validation=False)
    assert [type(c) for c in ceiling] == [StopAtAccuracy]
    by_accuracy = DpoSection(early_stopping_patience=3, early_stopping_metric="accuracy", early_stopping_threshold=0.01)
    assert stopping_callbacks(by_accuracy, has_validation=True)[-1].goal == Goal(
        "DPO", 3, 0.01, "eval_rewards/accuracies"
    )
    of_sft = stopping_callbacks(SftSection(early_stopping_patience=2), has_validation=True)
    assert [callback.goal for callback in of_sft] == [Goal("SFT", 2)]
    with pytest.raises(UserError, match=r"sft\.early_stopping_patience 2: early stopping needs validation pairs"):
        stopping_callbacks(SftSection(early_stopping_patience=2), has_validation=False)
    with pytest.raises(UserError, match=r"dpo\.early_stopping_patience 3: early stopping needs validation pairs"):
        stopping_callbacks(DpoSection(early_stopping_patience=3), has_validation=False)


LENGTHS = {"max_length": 96, "max_prompt_length": 64}


@pytest.fixture(scope="module", params=["full", "lora"])
def start(request, tiny_base, preferences, tmp_path_factory):
    base, section = tiny_base
    stage = TrainingJob(
        base, section.model_copy(update={"method": request.param}), 0, tmp_path_factory.mktemp("sft") / "sft"
    )
    sft = sft_on(preferences, SftSection(max_steps=2, max_length=96, learning_rate=1e-3), stage)
    # With chosen and rejected swapped in validation, training makes the validation loss worse.
    swapped = preferences.train.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    swapped = swapped.remove_columns("id").add_column("id", [f"v{i}" for i in range(len(swapped))])
    contrary = Preferences(preferences.train, swapped, preferences.test)
    reference = reference_on(contrary, sft, base, stage.model, Lengths(**LENGTHS))
    return contrary, reference, sft, stage


def train(start, folder, **settings):
    _, reference, sft, stage = start
    section = DpoSection(**LENGTHS, eval_steps=1, lr_schedule="constant", **settings)
    return train_dpo(reference, sft, section, TrainingJob(stage.base, stage.model, 0, folder))


@pytest.mark.slow
def test_the_checkpoint_holds_the_best_weights(start, tmp_path):
    """Training makes validation worse, so the first step is the best. Its weights equal those of a run of one step."""
    stopped = train(start, tmp_path / "stopped", learning_rate=1e-2, max_steps=9, early_stopping_patience=2)
    assert stopped.manifest.metrics["n_steps"] == 3
    one = train(start, tmp_path / "one", learning_rate=1e-2, max_steps=1)
    (name,) = (path.name for path in one.path.glob("*.safetensors"))
    ours, theirs = load_file(stopped.path / name), load_file(one.path / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_the_best_validation_accuracy_counts_every_pair_once(start, tmp_path):
    """Forty validation pairs in batches of 16, 16 and 8: the logged accuracy is a multiple of 1/40. By accuracy, step 1 is best."""
    settings = {"early_stopping_patience": 2, "early_stopping_metric": "accuracy", "batch_size": 16}
    stopped = train(start, tmp_path / "stopped", learning_rate=1e-2, max_steps=9, **settings)
    accuracies = [e["eval_rewards/accuracies"] for e in stopped.history if "eval_loss" in e]
    assert all(40 * accuracy == pytest.approx(round(40 * accuracy), abs=1e-6) for accuracy in accuracies)
    best = 1 + accuracies.index(max(accuracies))
    assert stopped.manifest.metrics["n_steps"] == len(accuracies) == best + 2
    assert stopped.manifest.metrics["kept_step"] == best
    assert stopped.manifest.metrics["n_validation"] == 40


@pytest.mark.slow
def test_sft_keeps_the_weights_with_the_lowest_validation_loss(tiny_base, preferences, tmp_path):
    base, section = tiny_base
    settings = {"max_length": 96, "learning_rate": 0.05, "lr_schedule": "constant", "eval_steps": 1, "batch_size": 16}
    stopped, one = (
        sft_on(preferences, SftSection(**settings, **more), TrainingJob(base, section, 0, tmp_path / name))
        for name, more in (("stopped", {"max_steps": 20, "early_stopping_patience": 2}), ("one", {"max_steps": 20}))
    )
    losses = [entry["eval_loss"] for entry in one.history if "eval_loss" in entry]
    best = next(i for i in range(1, 19) if min(losses[i : i + 2]) >= min(losses[:i]))
    kept = 1 + losses.index(min(losses[:best]))
    assert stopped.manifest.metrics["n_steps"] < 20
    assert stopped.manifest.metrics["kept_step"] == kept


@pytest.mark.slow
def test_a_diverging_training_ends_before_its_last_step(start, tmp_path):
    with pytest.raises(UserError, match=r"dpo: (the loss has diverged|loss is nan|grad_norm is)"):
        train(start, tmp_path / "exploded", learning_rate=1.0, max_steps=60)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "settings", [{"early_stopping_threshold": 0.1}, {"early_stopping_metric": "accuracy"}], ids=["threshold", "metric"]
)
def test_a_setting_of_early_stopping_without_patience_is_refused(settings):
    with pytest.raises(ValueError, match="early_stopping_patience is not, so it has no effect"):
        DpoSection(**settings)
