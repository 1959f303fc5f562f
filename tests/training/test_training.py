"""SFT and DPO: started where they should, trained on what they should, and equal to TRL's own trainer."""

import math
import typing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from support.stages import pair_tokens, reference_on, sft_on
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from posttrain.chat.tokenise import tokenise_completions, tokenise_pairs
from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.config import DpoSection, EvaluationSection, Lengths, LoraSection, LossType, ModelSection, SftSection
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.forward.logprobs import score_pairs
from posttrain.models.checkpoint import Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferencePolicy, score_reference
from posttrain.training.sft import check_stop_tokens, train_sft
from posttrain.training.trainer import TrainingJob, needs_checkpointing

pytestmark = pytest.mark.slow

LENGTHS = Lengths(max_length=96, max_prompt_length=64)
SFT = SftSection(learning_rate=1e-2, max_steps=5, max_length=96, eval_steps=5)
DPO = DpoSection(learning_rate=1e-3, max_steps=4, max_length=96, max_prompt_length=64, eval_steps=4)


@pytest.fixture(scope="module", params=["full", "lora"])
def after_sft(request, tiny_base, preferences, tmp_path_factory):
    """A base, an SFT checkpoint on it, and the reference scored with that."""
    base, section = tiny_base
    section = section.model_copy(update={"method": request.param})
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = sft_on(preferences, SFT, TrainingJob(base, section, 0, folder / "sft"))
    reference = reference_on(preferences, checkpoint, base, section, LENGTHS)
    return SimpleNamespace(base=base, section=section, checkpoint=checkpoint, reference=reference, folder=folder)


def job(after_sft, name):
    return TrainingJob(after_sft.base, after_sft.section, 0, after_sft.folder / name)


def test_sft_gives_a_checkpoint_that_says_what_it_is(after_sft):
    manifest = Checkpoint.load(after_sft.checkpoint.path).manifest
    assert (manifest.stage, manifest.parent) == ("sft", None)
    assert manifest.kind == ("full" if after_sft.section.method == "full" else "adapter")
    assert manifest.base == after_sft.base
    assert manifest.metrics["n_steps"] == 5
    assert manifest.batches == "flat, sdpa"
    assert manifest.metrics["last_loss"] < manifest.metrics["first_loss"]
    files = {file.name for file in after_sft.checkpoint.path.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "history.json"} <= files
    assert not {file for file in files if file.endswith((".bin", ".pt", ".pkl"))}
    if manifest.kind == "adapter":  # no path of this machine in what is shipped
        config = (after_sft.checkpoint.path / "adapter_config.json").read_text()
        assert f'"base_model_name_or_path": "{after_sft.base.id}"' in config


def test_the_seed_decides_an_adapters_first_weights(tiny_base, preferences, tmp_path):
    """They were drawn before the trainer set the seed: two runs of one config gave two models."""
    base, section = tiny_base
    lora, once = section.model_copy(update={"method": "lora"}), SFT.model_copy(update={"max_steps": 1, "eval_steps": 1})

    def trained(seed, folder):
        return sft_on(preferences, once, TrainingJob(base, lora, seed, tmp_path / folder)).digest

    assert trained(0, "a") == trained(0, "b") != trained(1, "c")


def test_sft_loss_is_over_completion_tokens_only(tiny_base, preferences, tmp_path):
    """The first logged loss equals the mean negative log-likelihood of the completions alone, over the whole split."""
    base, section = tiny_base
    once = SftSection(learning_rate=1e-6, max_steps=1, max_length=96, batch_size=len(preferences.train), eval_steps=1)
    first = sft_on(preferences, once, TrainingJob(base, section, 0, tmp_path / "sft")).manifest.metrics["first_loss"]
    model, nll, n = load_model(base, section), 0.0, 0
    chosen = preferences.train.rename_column("chosen", "completion")
    for row in tokenise_completions(load_chat(base, section), chosen, 96).rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        nll -= logps[labels[0, 1:] != -100].sum().item()
        n += int((labels[0, 1:] != -100).sum())
    assert first == pytest.approx(nll / n, rel=1e-4)


def test_sft_refuses_responses_that_never_stop(tiny_base):
    chat = load_chat(*tiny_base)
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    with pytest.raises(UserError, match="without the stop token '<eos>'"):
        check_stop_tokens(chat, Dataset.from_list([row]), max_length=10)
    check_stop_tokens(chat, Dataset.from_list([row]), max_length=4)  # cut, so it may end anywhere
    row = {"input_ids": [5, 6, 7, chat.stop_id], "labels": [-100, -100, 7, chat.stop_id]}
    check_stop_tokens(chat, Dataset.from_list([row]), max_length=10)


def test_dpo_starts_at_the_sft_policy_and_moves(after_sft, preferences):
    checkpoint = train_dpo(after_sft.reference, after_sft.checkpoint, DPO, job(after_sft, "dpo"))
    assert checkpoint.manifest.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert checkpoint.manifest.parent == after_sft.checkpoint.digest
    assert checkpoint.digest != after_sft.checkpoint.digest
    first = checkpoint.history[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["learning_rate"] == pytest.approx(1e-3)


def test_the_saved_policy_is_the_trained_one(after_sft, preferences):
    """What is loaded from the checkpoint scores the validation pairs as the trainer's last validation did."""
    checkpoint = train_dpo(after_sft.reference, after_sft.checkpoint, DPO, job(after_sft, "saved"))
    chat = load_chat(after_sft.base, after_sft.section, checkpoint)
    rows = tokenise_pairs(chat, preferences.validation, 96, 64).rows
    policy = load_model(after_sft.base, after_sft.section, checkpoint)
    scored = score_pairs(policy, rows, after_sft.section, 4096, "test")
    logged = next(entry for entry in checkpoint.history if "eval_logps/chosen" in entry)
    assert scored.chosen_logps.mean() == pytest.approx(logged["eval_logps/chosen"], rel=1e-4)


def test_dpo_stops_at_a_wrong_reference_and_names_the_checkpoint(after_sft, preferences):
    """Log-probabilities that are off by 3 nats: TRL alone would train, and look well."""
    table = after_sft.reference.table
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        table = table.set_column(table.column_names.index(column), column, [table[column].to_numpy() - 3.0])
    reference = replace(after_sft.reference, table=table)
    with pytest.raises(UserError, match=f"Expected the SFT checkpoint {after_sft.checkpoint.digest[:16]}"):
        train_dpo(reference, after_sft.checkpoint, DPO, job(after_sft, "wrong"))
    assert not (after_sft.folder / "wrong").exists()


def test_dpo_stops_at_a_reference_of_the_base(after_sft, preferences, tiny_base, tmp_path):
    """SFT forgotten: the reference was scored with another checkpoint than DPO starts from."""
    untrained = SFT.model_copy(update={"learning_rate": 1e-9})
    other = sft_on(preferences, untrained, TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "other"))
    reference = reference_on(preferences, other, after_sft.base, after_sft.section, LENGTHS)
    with pytest.raises(UserError, match="DPO does not start at its reference"):
        train_dpo(reference, after_sft.checkpoint, DPO, job(after_sft, "of-base"))


def test_dpo_can_be_held_to_another_model_than_it_starts_from(after_sft, preferences, tmp_path, capfd):
    """`dpo.reference: sft` in a later round: the first margins are those of the start over the reference, not 0."""
    untrained = SFT.model_copy(update={"learning_rate": 1e-9})
    other = sft_on(preferences, untrained, TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "other"))
    reference = reference_on(preferences, other, after_sft.base, after_sft.section, LENGTHS)
    held = DPO.model_copy(update={"reference": "sft"})
    checkpoint = train_dpo(reference, after_sft.checkpoint, held, job(after_sft, "held"))
    assert checkpoint.manifest.parent == after_sft.checkpoint.digest
    assert abs(checkpoint.manifest.metrics["first_loss"] - math.log(2)) > 1e-3
    assert f"with another reference, {other.digest[:16]}" in capfd.readouterr().out


def test_pairs_without_a_reference_are_an_error(after_sft, preferences):
    few = replace(after_sft.reference, table=after_sft.reference.table.slice(0, 3))
    rows = after_sft.reference.rows("train")
    with pytest.raises(UserError, match=r"37 of 40 pairs .* have no reference log-probabilities"):
        few.of(rows, LENGTHS)
    assert few.of(rows.select([2, 0]), LENGTHS).chosen_logps.tolist() == rows.select([2, 0])["ref_chosen_logps"][:]


def test_dpo_with_other_lengths_than_its_reference_is_refused(after_sft):
    longer = DPO.model_copy(update={"max_length": 128})
    message = r"cut to max_length 96 and max_prompt_length 64, but max_length 128 .* score the reference again"
    with pytest.raises(UserError, match=message):
        train_dpo(after_sft.reference, after_sft.checkpoint, longer, job(after_sft, "longer"))


def test_evaluation_with_a_reference_of_other_lengths_is_refused(after_sft, preferences):
    """The log-probabilities of 96 tokens would be divided by the 16 that are evaluated."""
    shorter = pair_tokens(preferences, after_sft.base, after_sft.section, Lengths(max_length=16, max_prompt_length=8))
    models = EvaluatedModels(after_sft.base, after_sft.section, after_sft.checkpoint)
    message = (
        r"scored on tokens cut to max_length 96 and max_prompt_length 64, but max_length 16 and max_prompt_length 8 are set "
        r"now.*: score the reference again with the tokens that are used now"
    )
    with pytest.raises(UserError, match=message):
        evaluate(models, EvaluationData(preferences, shorter, after_sft.reference), EvaluationSection())
    alone = evaluate(models, EvaluationData(preferences, shorter), EvaluationSection())
    again = reference_on(preferences, after_sft.checkpoint, after_sft.base, after_sft.section, shorter.lengths)
    stored = evaluate(models, EvaluationData(preferences, shorter, again), EvaluationSection())
    assert stored.figures.stages["sft"].chosen_perplexity.value == pytest.approx(
        alone.figures.stages["sft"].chosen_perplexity.value, rel=1e-4
    )


def test_reference_with_other_token_ids_is_refused(after_sft, preferences):
    """The same ids and lengths, but one response was edited."""
    rows = after_sft.reference.rows("test").select_columns(["id", "prompt_ids", "chosen_ids", "rejected_ids"])
    edited = rows.map(lambda row: {"chosen_ids": [*row["chosen_ids"][:-1], 5]} if row["id"] == rows[3]["id"] else row)
    message = rf"1 of 8 pairs \(first: {rows[3]['id']}\) have other chosen_ids than the reference was scored on: .*score the ref"
    with pytest.raises(UserError, match=message):
        after_sft.reference.of(edited, LENGTHS)
    after_sft.reference.of(rows, LENGTHS)


def test_evaluation_with_the_reference_of_another_checkpoint_is_refused(after_sft, preferences):
    other = replace(after_sft.reference, checkpoint="f" * 64)
    tokens = pair_tokens(preferences, after_sft.base, after_sft.section)
    models = EvaluatedModels(after_sft.base, after_sft.section, after_sft.checkpoint)
    with pytest.raises(UserError, match=r"scored with checkpoint f{16}, not with .*: score the reference again"):
        evaluate(models, EvaluationData(preferences, tokens, other), EvaluationSection())


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
def test_tokens_of_another_template_are_refused(after_sft, preferences, tmp_path):
    section = after_sft.section.model_copy(update={"chat_template": "chatml"})
    chat = load_chat(after_sft.base, section)
    tokens = tokenise_data(chat, preferences, None, TokeniseSettings(LENGTHS, sft_max_length=96))
    message = (
        r"tokenised with another tokenizer or chat template .*: tokenise the pairs again with the tokenizer of the"
    )
    with pytest.raises(UserError, match=f"{message} SFT checkpoint"):
        score_reference(tokens.pairs, ReferencePolicy(after_sft.checkpoint, after_sft.base, after_sft.section), 512)
    with pytest.raises(UserError, match=f"{message} base model"):
        train_sft(tokens.sft, SFT, job(after_sft, "other-template"))
    models = EvaluatedModels(after_sft.base, after_sft.section, after_sft.checkpoint)
    with pytest.raises(UserError, match=f"{message} trained models"):
        evaluate(models, EvaluationData(preferences, tokens.pairs), EvaluationSection())


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
def test_sft_refuses_rows_that_were_cut_to_another_length(after_sft, preferences):
    chat = load_chat(after_sft.base, after_sft.section)
    tokens = tokenise_data(chat, preferences, None, TokeniseSettings(LENGTHS, sft_max_length=32)).sft
    with pytest.raises(UserError, match=r"sft\.max_length is 96, but the rows were cut to 32 tokens"):
        train_sft(tokens, SFT, job(after_sft, "other-length"))


def test_a_reference_that_is_stored_is_not_scored_again(after_sft, preferences, monkeypatch):
    """The key is of weights, tokens, lengths, template and precision. Without a new pair, the model is not even loaded."""
    monkeypatch.setattr("posttrain.forward.ranks.load_model", None)

    def score(rows, lengths=LENGTHS):
        tokens = pair_tokens(rows, after_sft.base, after_sft.section, lengths)
        policy = ReferencePolicy(after_sft.checkpoint, after_sft.base, after_sft.section)
        return score_reference(tokens, policy, 512, find=lambda policy: [after_sft.reference])

    assert score(preferences) == after_sft.reference
    fewer = Preferences(preferences.train.select(range(39)), preferences.validation, preferences.test)
    assert score(fewer).key != after_sft.reference.key
    longer = score(preferences, Lengths(max_length=1000, max_prompt_length=500))  # cuts no pair, as 96 and 64 do not
    assert longer.key != after_sft.reference.key
    assert longer.lengths.max_length == 1000
    assert longer.table == after_sft.reference.table


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
@pytest.mark.parametrize("loss_type", typing.get_args(LossType))
def test_every_loss_of_trl_trains(after_sft, preferences, loss_type, tmp_path):
    smoothing = 0.1 if loss_type in ("robust", "exo_pair") else 0.0
    settings = DpoSection(
        loss_type=loss_type,
        label_smoothing=smoothing,
        learning_rate=1e-3,
        max_steps=2,
        max_length=96,
        max_prompt_length=64,
    )
    where = TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / loss_type)
    checkpoint = train_dpo(after_sft.reference, after_sft.checkpoint, settings, where)
    losses = [entry["loss"] for entry in checkpoint.history if "loss" in entry]
    assert [math.isfinite(loss) for loss in losses] == [True, True]
    assert checkpoint.digest != after_sft.checkpoint.digest


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
@pytest.mark.parametrize(("loss_type", "weights"), [("sigmoid", None), (["ipo", "sft"], [1.0, 0.2])])
def test_the_curve_is_that_of_trls_own_trainer(after_sft, preferences, loss_type, weights, tmp_path):
    """TRL's trainer on the raw messages with a reference model of its own: the same losses at every step."""
    settings = DPO.model_copy(
        update={"loss_type": loss_type, "loss_weights": weights, "max_steps": 30, "batch_size": 4}
    )
    ours = train_dpo(
        after_sft.reference,
        after_sft.checkpoint,
        settings,
        TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "o"),
    )
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.1, learning_rate=1e-3, max_steps=30, per_device_train_batch_size=4, logging_steps=1,
        loss_type=settings.losses, loss_weights=weights, bf16=False, use_cpu=True, gradient_checkpointing=False, seed=0,
        max_length=96, report_to="none",
    )  # fmt: skip
    path = after_sft.checkpoint.path
    stock = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path),
        ref_model=AutoModelForCausalLM.from_pretrained(path),
        args=arguments,
        train_dataset=preferences.train.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    stock.train()
    expected = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in ours.history if "loss" in entry] == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 30


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
def test_pairs_weigh_the_same_whatever_the_micro_batches(after_sft, preferences, tmp_path):
    """40 pairs as one step of 40, or as 6 micro-batches of 7, the last of 5: the same steps (TRL's differ)."""
    curves = []
    for batch_size, n_micro_batches in ((40, 1), (7, 6)):
        update = {"batch_size": batch_size, "gradient_accumulation_steps": n_micro_batches, "max_steps": 3}
        where = TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / str(batch_size))
        settings = DPO.model_copy(update=update)
        history = train_dpo(after_sft.reference, after_sft.checkpoint, settings, where).history
        curves.append([entry["loss"] for entry in history if "loss" in entry])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_checkpointing_is_on_only_where_a_step_would_not_fit(after_sft, monkeypatch):
    """Two sequences of 96 tokens a pair, 8 pairs: 1536 tokens through 2 layers of width 32, keys of 16, an MLP of 64.

    A layer keeps 24 x 32 (full) or 16 x 32 + 28 x 16 (LoRA) bytes a token, and 4 (3 x 32 + 4 x 16 + 4 x 64) for attention and MLP.
    The head keeps logits and twice the hidden states in fp32; the optimizer 8 bytes a weight, the gradients 4.
    """
    model = load_model(after_sft.base, after_sft.section, after_sft.checkpoint, trainable=True)
    n_vocabulary = model.config.vocab_size
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = 1536 * (4 * n_vocabulary + 8 * 32)
    if after_sft.section.method == "full":
        layer = 24 * 32 + 4 * (3 * 32 + 4 * 16 + 4 * 64)
        step = 2 * 1536 * layer + max(head, n_vocabulary * 32 * 4 + 1536 * 8 * 64)
        needed = (step + 8 * n_trained) / 2**30
    else:
        layer = 16 * 32 + 28 * 16 + 4 * (3 * 32 + 4 * 16 + 4 * 64)
        needed = (2 * 1536 * layer + max(head, 1536 * 8 * 64) + 12 * n_trained) / 2**30
    for free, expected in ((needed / 0.79, False), (needed / 0.81, True)):
        monkeypatch.setattr("posttrain.training.trainer.free_gib", lambda free=free: free)
        assert needs_checkpointing(DPO, after_sft.section, model) is expected
    assert needs_checkpointing(DPO.model_copy(update={"gradient_checkpointing": True}), after_sft.section, model)


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
def test_an_adapter_on_a_full_checkpoint_is_merged(after_sft, preferences, tmp_path):
    """DPO with LoRA from a full SFT checkpoint depends on nothing but the result."""
    section = after_sft.section.model_copy(update={"method": "lora"})
    checkpoint = train_dpo(
        after_sft.reference, after_sft.checkpoint, DPO, TrainingJob(after_sft.base, section, 0, tmp_path / "dpo")
    )
    assert checkpoint.manifest.kind == "full"
    assert checkpoint.manifest.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    load_model(after_sft.base, section, checkpoint)


class PoisonWeights(TrainerCallback):
    """Makes the first weight NaN after the first step, as a division by zero in a kernel would."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        next(model.parameters()).data.view(-1)[0] = math.nan


def test_a_loss_that_is_no_number_saves_nothing(after_sft, preferences, tmp_path):
    where = TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "dpo", (PoisonWeights(),))
    with pytest.raises(UserError, match=r"loss is nan at step 2.*lower dpo\.learning_rate"):
        train_dpo(after_sft.reference, after_sft.checkpoint, DPO, where)
    assert not where.dest.exists()


def test_8_bit_adam_without_a_gpu_is_refused_with_the_remedy(after_sft, preferences):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings = DPO.model_copy(update={"optimizer": "adamw_8bit"})
    with pytest.raises(UserError, match="adamw_8bit needs a CUDA GPU"):
        train_dpo(after_sft.reference, after_sft.checkpoint, settings, job(after_sft, "8bit"))


def test_a_checkpoint_of_another_base_is_refused(after_sft, tiny_base):
    base, _ = tiny_base
    other = base.model_copy(update={"digest": "f" * 64})
    with pytest.raises(UserError, match=r"set model\.base to the model that it was trained from"):
        load_model(other, after_sft.section, after_sft.checkpoint)


def test_evaluation_scores_all_models_on_the_same_pairs(after_sft, preferences, tmp_path):
    where = TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "dpo")
    dpo = train_dpo(after_sft.reference, after_sft.checkpoint, DPO, where)
    models = EvaluatedModels(after_sft.base, after_sft.section, after_sft.checkpoint, dpo)
    tokens = pair_tokens(preferences, after_sft.base, after_sft.section)
    result = evaluate(models, EvaluationData(preferences, tokens, after_sft.reference), EvaluationSection())
    again = evaluate(models, EvaluationData(preferences, tokens), EvaluationSection(tokens_per_batch=64))
    assert result.pairs["id"].to_pylist() == preferences.test["id"][:]
    for column in ("base_chosen_logps", "sft_chosen_logps", "dpo_rejected_logps"):
        assert again.pairs[column].to_pylist() == pytest.approx(result.pairs[column].to_pylist(), rel=1e-4)
    assert set(result.figures.comparisons) == {"sft_vs_base", "dpo_vs_sft"}


def test_layers_that_do_not_exist_are_named_with_those_that_do(tiny_base):
    base, section = tiny_base
    wrong = section.model_copy(update={"method": "lora", "lora": LoraSection(target_modules=["nope"])})
    with pytest.raises(UserError, match=r"no layer of the model is named nope: name some of .*q_proj"):
        load_model(base, wrong, trainable=True)


@pytest.mark.parametrize("after_sft", ["lora"], indirect=True)
def test_settings_that_contradict_the_checkpoint_are_refused(after_sft):
    """They would be ignored: a checkpoint brings its own adapter and template."""
    with pytest.raises(UserError, match="set it to lora"):
        load_model(after_sft.base, after_sft.section.model_copy(update={"method": "full"}), after_sft.checkpoint)
    wider = after_sft.section.model_copy(update={"lora": LoraSection(rank=64)})
    with pytest.raises(UserError, match=r"rank 64 and alpha 32 do not match the adapter of .*, which has 16 and 32"):
        load_model(after_sft.base, wider, after_sft.checkpoint)
    with pytest.raises(UserError, match=r"alpaca does not match .*, which was trained with tokenizer"):
        load_chat(
            after_sft.base, after_sft.section.model_copy(update={"chat_template": "alpaca"}), after_sft.checkpoint
        )


@pytest.mark.parametrize("after_sft", ["full"], indirect=True)
def test_an_evaluation_that_is_not_finite_is_refused(after_sft, preferences, tmp_path):
    """As JSON it would be null, which nothing can read back."""
    broken = load_model(after_sft.base, after_sft.section, after_sft.checkpoint)
    broken.get_input_embeddings().weight.data.fill_(math.nan)
    broken.save_pretrained(tmp_path / "dpo")
    load_chat(after_sft.base, after_sft.section, after_sft.checkpoint).tokenizer.save_pretrained(tmp_path / "dpo")
    about = after_sft.checkpoint.manifest.model_dump(exclude={"files", "digest", "stage"})
    dpo = seal(tmp_path / "dpo", [], stage="dpo", **about)
    models = EvaluatedModels(after_sft.base, after_sft.section, after_sft.checkpoint, dpo)
    tokens = pair_tokens(preferences, after_sft.base, after_sft.section)
    with pytest.raises(UserError, match="dpo gives log-probabilities that are not finite"):
        evaluate(models, EvaluationData(preferences, tokens, after_sft.reference), EvaluationSection())


def test_training_does_without_validation_pairs(after_sft, preferences, tmp_path):
    none = Preferences(preferences.train, preferences.validation.select([]), preferences.test)
    reference = reference_on(none, after_sft.checkpoint, after_sft.base, after_sft.section, LENGTHS)
    where = TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "dpo")
    checkpoint = train_dpo(reference, after_sft.checkpoint, DPO, where)
    assert "validation_loss" not in checkpoint.manifest.metrics
    sft_on(none, SFT, TrainingJob(after_sft.base, after_sft.section, 0, tmp_path / "sft"))


def test_a_gpu_method_without_a_gpu_is_refused(tiny_base):
    base, section = tiny_base
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="qlora needs a CUDA GPU"):
        load_model(base, ModelSection(base=section.base, method="qlora"))
