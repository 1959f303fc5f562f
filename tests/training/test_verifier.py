"""A verifier: equal to TRL's plain RewardTrainer, with each prompt computed once, and saved as what was trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.stages import LENGTHS, pair_tokens, sft_on
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from posttrain.config import EvaluationSection, JudgeSection, SftSection, VerifierSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.judge import Contest, judge_by_scores
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.verification.answer_scorer import AnswerScorer
from posttrain.evaluation.verification.judging import lazy_scores
from posttrain.forward.flat_row import to_device
from posttrain.forward.scalar_head import ScoredCollator, lay_out_scored, pad_scored, use_flat_scores
from posttrain.models.base_checkpoint import base_checkpoint
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.models.verifier_model import load_verifier, new_verifier
from posttrain.reporting.model_card import model_card
from posttrain.serving.export import ExportedModel, ExportOptions, export
from posttrain.training.trainer import TrainingJob
from posttrain.training.verifier import VerifierData, absolute_loss, check_unseen, prompt_keys, train_verifier

SFT = SftSection(learning_rate=1e-2, max_steps=2, max_length=96, eval_steps=2)
VERIFIER = VerifierSection(
    learning_rate=3e-3, max_steps=20, max_length=96, max_prompt_length=64, eval_steps=20, batch_size=8
)


@pytest.fixture(scope="module")
def pad_id(tiny_base):
    return load_chat(*tiny_base).tokenizer.pad_token_id


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tiny_base, preferences, tmp_path_factory):
    """A verifier from an SFT checkpoint of the same method."""
    base, section = tiny_base
    section = section.model_copy(update={"method": request.param})
    folder = tmp_path_factory.mktemp(request.param)
    start = sft_on(preferences, SFT, TrainingJob(base, section, 0, folder / "sft"))
    tokens = pair_tokens(preferences, base, section, LENGTHS, start)
    data = VerifierData(tokens, prompt_keys(preferences.train["prompt"]))
    checkpoint = train_verifier(data, start, VERIFIER, TrainingJob(base, section, 0, folder / "verifier"))
    return SimpleNamespace(base=base, section=section, start=start, tokens=tokens, checkpoint=checkpoint, data=data)


def test_loss_and_gradients_are_those_of_trls_trainer(tiny_base, preferences, pad_id, tmp_path):
    """On the same pairs, once through the flat rows and once padded by TRL's own collator."""
    base, section = tiny_base
    torch.manual_seed(3)
    model = new_verifier(base, section, None, pad_id)
    rows = pair_tokens(preferences, base, section).rows("train").select(range(6))
    whole = [{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")} for row in rows]
    args = RewardConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    plain = RewardTrainer(
        model=model, args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(base.id)
    )
    expected = plain.compute_loss(model, plain.data_collator(whole))
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    assert use_flat_scores(model, section, pad_id) is None
    batch = ScoredCollator(pad_id, flat=True)(list(rows))
    loss = plain.compute_loss(model, batch)
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, gradients[name], atol=1e-5), name
    assert batch["flat"]["input_ids"].numel() < plain.data_collator(whole)["attention_mask"].sum() * 0.8


@pytest.mark.parametrize("pads", [False, True], ids=["own stop token", "stop token is the pad token"])
def test_flat_and_padded_scores_are_the_models_own(tiny_base, pad_id, pads):
    base, section = tiny_base
    torch.manual_seed(3)
    pad = 9 if pads else pad_id
    model = new_verifier(base, section, None, pad).eval()
    prompt, other = [5, 6, 7, 8], [4, 5]
    prompts = [prompt, prompt, prompt, prompt, other]
    answers = [[20, 21, 9], [20, 21, 22, 23, 9], [20, 21], [9], [30, 9]]  # one is the beginning of others, one is empty
    with torch.no_grad():
        own = [float(model(input_ids=torch.tensor([p + a])).logits) for p, a in zip(prompts, answers, strict=True)]
        padded = model(**pad_scored(prompts, answers, pad)).logits.flatten().tolist()
        assert use_flat_scores(model, section, pad) is None
        flat = model(flat=lay_out_scored(prompts, answers, pad)).logits.flatten().tolist()
    assert padded == pytest.approx(own, abs=1e-5)
    assert flat == pytest.approx(own, abs=1e-5)
    assert len(set(own)) == (4 if pads else 5)  # with 9 as padding, the first and the third end at the same token


def test_absolute_loss_by_hand():
    """Log-odds 2 and 0 of right answers, -1 of a wrong one and 1 of another: each of them has the same weight."""
    scores = torch.tensor([[2.0], [0.0], [-1.0], [1.0]])
    loss, n_right = absolute_loss(scores)
    assert float(loss) == pytest.approx((0.126928 + 0.693147 + 0.313262 + 1.313262) / 4, abs=1e-5)
    assert n_right == 2


def test_a_verifier_learns_and_says_what_it_is(trained):
    manifest = Checkpoint.load(trained.checkpoint.path).manifest
    assert (manifest.stage, manifest.kind, manifest.parent) == ("verifier", "full", trained.start.digest)
    assert (manifest.max_length, manifest.max_prompt_length, manifest.batches) == (96, 64, "flat, sdpa")
    assert manifest.metrics["last_loss"] < 0.5 < 0.6 < manifest.metrics["first_loss"]
    assert trained.checkpoint.history[-2]["eval_accuracy"] > 0.8


def test_plain_transformers_gives_equal_scores(trained, preferences):
    """Of the saved checkpoint, for the texts that the scorer renders itself."""
    prompts, answers = preferences.test["prompt"], [turns[-1]["content"] for turns in preferences.test["chosen"]]
    scorer = AnswerScorer.load(trained.checkpoint, trained.section)
    found = scorer.score([*prompts, prompts[0]], [*answers, answers[0]])
    assert found[-1] == pytest.approx(found[0], abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(trained.checkpoint.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.checkpoint.path)
    for prompt, answer, score in zip(prompts, answers, found, strict=False):
        ids = tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": answer}], return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            assert float(plain(**ids).logits) == pytest.approx(float(score), abs=1e-4)
    assert np.std(found) > 0.1


def test_an_adapter_on_the_base_itself_stays_an_adapter(tiny_base, preferences, tmp_path):
    """Its head is trained and stored with it."""
    base, section = tiny_base
    lora = section.model_copy(update={"method": "lora"})
    (tmp_path / "base").mkdir()
    start = base_checkpoint(base, lora, tmp_path / "base")
    data = VerifierData(pair_tokens(preferences, base, lora), ())
    both = VERIFIER.model_copy(update={"loss": "both", "max_steps": 3, "eval_steps": 3})
    checkpoint = train_verifier(data, start, both, TrainingJob(base, lora, 0, tmp_path / "verifier"))
    assert checkpoint.manifest.kind == "adapter"
    assert {"absolute_accuracy", "accuracy"} <= checkpoint.history[0].keys()
    again = load_verifier(base, lora, checkpoint)
    torch.manual_seed(0)
    first = new_verifier(base, lora, start, checkpoint.manifest.pad_id)
    heads = [model.get_base_model().score.state_dict() for model in (first, again)]
    assert heads[0].keys() == heads[1].keys()
    assert not torch.equal(heads[0]["modules_to_save.default.weight"], heads[1]["modules_to_save.default.weight"])
    prompt, answer = preferences.test["prompt"][0], "restart it"
    scores = {float(AnswerScorer.load(checkpoint, lora).score([prompt], [answer])[0]) for _ in range(2)}
    assert len(scores) == 1  # no weight is drawn at random when it is loaded


def test_a_verifier_does_not_judge_prompts_that_it_has_seen(trained, preferences):
    check_unseen(trained.checkpoint, preferences.test["prompt"], "desk:production")
    spelled: list = [{"role": "user", "content": preferences.train["prompt"][0][0]["content"].upper() + " "}]
    with pytest.raises(UserError, match="verifier desk:production: was trained on 1 of the 2 prompts"):
        check_unseen(trained.checkpoint, [spelled, preferences.test["prompt"][0]], "desk:production")


def test_the_kinds_of_checkpoints_are_not_mixed_up(trained):
    with pytest.raises(UserError, match="is a verifier, which scores answers and writes none"):
        load_model(trained.base, trained.section, trained.checkpoint)
    with pytest.raises(UserError, match="is a SFT model, which has no head for scores"):
        load_verifier(trained.base, trained.section, trained.start)


def test_tokens_of_other_lengths_are_refused(trained, tmp_path):
    longer = VERIFIER.model_copy(update={"max_length": 97})
    with pytest.raises(UserError, match="the pairs were cut to max_length=96"):
        train_verifier(trained.data, trained.start, longer, TrainingJob(trained.base, trained.section, 0, tmp_path))


def test_a_flat_row_of_scores_keeps_its_devices_and_segments(pad_id):
    flat = lay_out_scored([[1, 2, 3]] * 2, [[4, 5], [6]], pad_id)
    assert flat["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 6]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert flat["last"].tolist() == [4, 6]
    assert to_device(flat, torch.device("cpu"))["segments"].groups == ((2, 3, 2),)


def test_the_export_of_an_adapter_scores_as_it_does(tiny_base, preferences, tmp_path):
    """Merged, for plain transformers; its card shows how to score, and no key of a training prompt leaves with it."""
    base, section = tiny_base
    lora = section.model_copy(update={"method": "lora"})
    (tmp_path / "base").mkdir()
    start = base_checkpoint(base, lora, tmp_path / "base")
    data = VerifierData(pair_tokens(preferences, base, lora), prompt_keys(preferences.train["prompt"]))
    short = VERIFIER.model_copy(update={"max_steps": 3, "eval_steps": 3})
    checkpoint = train_verifier(data, start, short, TrainingJob(base, lora, 0, tmp_path / "verifier"))
    card = model_card("desk-verifier", checkpoint.manifest, adapter=False)
    export(ExportedModel(checkpoint, lora, card), str(tmp_path / "export"), ExportOptions(dtype="fp32"))
    files = {file.name for file in (tmp_path / "export").iterdir()}
    assert not {"trained_prompts.json", "generation_config.json"} & files
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    prompt = preferences.test["prompt"][0]
    messages = [*prompt, {"role": "assistant", "content": "restart it"}]
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        score = float(plain(**inputs).logits[0, 0])
    expected = AnswerScorer.load(checkpoint, lora).score([prompt], ["restart it"])
    assert score == pytest.approx(float(expected[0]), abs=1e-4)
    assert "AutoModelForSequenceClassification" in card.content
    assert 'pipeline("text-generation"' not in card.content


def test_a_verifier_judges_answers(trained, preferences):
    """The answer with the higher score wins, equal texts are a tie, and prompts that it was trained on are refused."""
    models = EvaluatedModels(trained.base, trained.section)
    section = EvaluationSection(judge=JudgeSection(verifier="desk:1"))
    scores = lazy_scores(trained.checkpoint, models, preferences.test["prompt"], section)
    prompt = preferences.test["prompt"][0]
    contests = [
        Contest("a", prompt, "restart it no", "restart it yes"),
        Contest("b", prompt, "restart it yes", "restart it no"),
        Contest("c", prompt, "yes", "yes"),
    ]
    judgement = judge_by_scores(contests, scores, "desk:1", 0.95)
    assert judgement.verdicts == {"a": "newer", "b": "older", "c": "tie"}
    assert (judgement.judge, judgement.n_failed) == ("verifier desk:1", 0)
    assert (judgement.win_rate.n_wins, judgement.win_rate.n_ties, judgement.win_rate.n_losses) == (1, 1, 1)
    assert judgement.win_rate.n_prompts == 1
    with pytest.raises(UserError, match="verifier desk:1: was trained on 40 of the 40 prompts"):
        lazy_scores(trained.checkpoint, models, preferences.train["prompt"], section)
    with pytest.raises(UserError, match="desk:1 is no verifier"):
        lazy_scores(trained.start, models, preferences.test["prompt"], section)
