"""Log-probabilities and the DPO loss compared with values computed by hand, and TRL compared with them."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig

from posttrain.chat.tokenise import tokenise_pairs
from posttrain.forward.logprobs import batches_by_length, batches_by_prompt, completion_logps, dpo_loss, score_pairs
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import PairTrainer


def test_completion_logps_by_hand():
    """Two tokens in the vocabulary. Position 1 predicts token 1 with p = 3/4, position 2 token 0 with p = 1/2; the
    prediction at position 0 belongs to the prompt and the last predicts nothing: ln 3/4 + ln 1/2."""
    logits = torch.tensor([[[9.0, -9.0], [0.0, math.log(3)], [1.0, 1.0], [5.0, 0.0]]])
    input_ids = torch.tensor([[0, 0, 1, 0]])
    mask = torch.tensor([[0, 0, 1, 1]])
    assert completion_logps(logits, input_ids, mask).item() == pytest.approx(math.log(3 / 4) + math.log(1 / 2))


def test_dpo_loss_by_hand():
    """Rewards 0.5 * (-10 + 12) = 1 and 0.5 * (-9 + 8) = -0.5: margin 1.5, loss -ln sigmoid(1.5) = 0.2014."""
    loss, margin = dpo_loss(*(torch.tensor([x]) for x in (-10.0, -9.0, -12.0, -8.0)), beta=0.5)  # type: ignore[misc]
    assert margin.item() == pytest.approx(1.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_a_policy_at_its_reference_has_loss_ln_2(beta):
    logps = torch.tensor([-3.0, -700.0]), torch.tensor([-5.0, -2.0])
    loss, margin = dpo_loss(*logps, *logps, beta)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert margin.tolist() == [0.0, 0.0]


def test_batches_contain_every_sequence_once_within_the_budget():
    responses = [[0] * n for n in (5, 1, 9, 3, 3, 40, 2)]
    prompts = [[0]] * len(responses)
    batches = list(batches_by_length(prompts, responses, tokens_per_batch=14))
    assert sorted(i for batch in batches for i in batch) == list(range(len(responses)))
    assert all(len(batch) == 1 or len(batch) * max(len(responses[i]) + 1 for i in batch) <= 14 for batch in batches)
    assert batches[0] == [5]  # longer than the budget: in a batch of its own


def test_batches_by_prompt_count_a_prompt_once():
    """Prompt a (4 tokens) with responses of 3 and 5 makes 12; b (2) with 6 makes 8: together 20, and 19 is too little."""
    prompts, responses = [[1] * 4, [2] * 2, [1] * 4], [[0] * 3, [0] * 6, [0] * 5]
    assert list(batches_by_prompt(prompts, responses, 20)) == [[0, 2, 1]]
    assert list(batches_by_prompt(prompts, responses, 19)) == [[0, 2], [1]]
    assert list(batches_by_prompt(prompts, responses, 9)) == [
        [0],
        [2],
        [1],
    ]  # a group too large for the budget is split
    assert list(batches_by_prompt(prompts, responses, 1)) == [[0], [2], [1]]


@pytest.fixture(scope="module")
def scored(tiny_base, pairs):
    """Return a model, tokenised pairs, and the log-probability of each response computed alone in plain PyTorch."""
    base, section = tiny_base
    model = load_model(base, section)
    rows = tokenise_pairs(load_chat(base, section), pairs, 128, 96).rows
    alone = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for row in rows:
            for which, values in alone.items():
                ids = torch.tensor([row["prompt_ids"] + row[f"{which}_ids"]])
                mask = (torch.arange(ids.shape[1]) >= len(row["prompt_ids"]))[None]
                values.append(completion_logps(model(input_ids=ids).logits, ids, mask).item())
    return model, section, rows, alone


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("tokens_per_batch", [1, 200, 100_000])
def test_scores_equal_those_of_each_response_alone(scored, tokens_per_batch, layout):
    """Sorting, sharing prompts, padding and the fused head change nothing."""
    model, section, rows, alone = scored
    section = section.model_copy(update={"layout": layout})
    result = score_pairs(model, rows, section, tokens_per_batch, "test")
    assert result.chosen_logps.tolist() == pytest.approx(alone["chosen"], rel=1e-5)
    assert result.rejected_logps.tolist() == pytest.approx(alone["rejected"], rel=1e-5)
    assert result.n_chosen_tokens.tolist() == [len(ids) for ids in rows["chosen_ids"]]


def test_trl_computes_the_papers_loss(scored, tmp_path):
    """TRL's loss and rewards for a policy that differs from its reference equal equation 7 in plain PyTorch."""
    model, _, rows, alone = scored
    shift = torch.linspace(-1, 3, len(rows))
    chosen, rejected = torch.tensor(alone["chosen"]), torch.tensor(alone["rejected"])
    expected, margins = dpo_loss(chosen, rejected, chosen - shift, rejected + 0.5 * shift, beta=0.3)
    stored = Dataset.from_dict(
        {
            **rows.to_dict(),
            "ref_chosen_logps": (chosen - shift).tolist(),
            "ref_rejected_logps": (rejected + 0.5 * shift).tolist(),
        }
    )
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, bf16=False, use_cpu=True, report_to="none", precompute_ref_log_probs=True,
        gradient_checkpointing=False, per_device_train_batch_size=len(rows),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    trainer = PairTrainer(model=model, args=arguments, train_dataset=stored, processing_class=tokenizer)
    batch = trainer.data_collator([dict(row) for row in stored])
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    mode = "train" if model.training else "eval"
    assert trainer._metrics[mode]["rewards/margins"][0] == pytest.approx(margins.mean().item(), rel=1e-4)


def test_score_pairs_does_not_change_the_model(scored):
    model, section, rows, _ = scored
    model.train()
    score_pairs(model, rows, section, 1000, "test")
    assert model.training
