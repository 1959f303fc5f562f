"""What the models answer: the same whatever the batch, stopped and counted as it should be."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from support.stages import pair_tokens, sft_on

from posttrain.config import EvaluationSection, GenerationsSection, SftSection
from posttrain.data.demo import pairs as demo
from posttrain.evaluation.answers.answer_figures import repetition
from posttrain.evaluation.answers.generation_batches import kv_bytes, merged, rows_that_fit
from posttrain.evaluation.answers.generations import Writer, choose_prompts, complete, generate
from posttrain.evaluation.answers.judge import win_rate
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.models.checkpoint import Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.training.trainer import TrainingJob

SFT = SftSection(learning_rate=1e-2, max_steps=5, max_length=96, eval_steps=5)


def section(tokens_per_batch=8192, **generations) -> EvaluationSection:
    return EvaluationSection(
        tokens_per_batch=tokens_per_batch, generations=GenerationsSection(**{"max_new_tokens": 12, **generations})
    )


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0),
        ([1, 2, 3], 0),  # no 4-gram
        ([1, 2, 3, 4, 5], 0),  # 1234 2345
        ([1, 1, 1, 1, 1, 1], 2 / 3),  # 1111 three times: two of three stood there before
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # of five 4-grams 1234 comes twice
    ],
)
def test_repetition_by_hand(ids, share):
    assert repetition(ids) == pytest.approx(share)


def test_win_rate_by_hand():
    """6 wins, 2 ties, 2 losses of 10: 70 %; the sign test of 6 to 2 is 2 (28 + 8 + 1) / 256."""
    found = win_rate([1.0] * 6 + [0.5] * 2 + [0.0] * 2, 0.95)
    assert (found.n_wins, found.n_ties, found.n_losses) == (6, 2, 2)
    assert found.share.value == pytest.approx(0.7)
    # With a win and a loss more 4 / 12 +- 2.262 x sqrt((10 / 12 - 1 / 9) / 12), of which half is added to one half.
    assert found.share.low == pytest.approx(0.3892, abs=1e-4)
    assert found.p_value == pytest.approx(74 / 256)
    assert win_rate([0.5], 0.95).p_value == 1.0


def test_answers_are_the_same_in_any_batch_and_equal_to_a_loop_without_one(tiny_base, preferences):
    base, model = tiny_base
    chat, policy = load_chat(base, model), load_model(base, model)
    writer = Writer(policy, chat, model)
    prompts = [
        chat.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in preferences.test["prompt"]
    ]
    assert len({len(prompt) for prompt in prompts}) > 3  # ragged, so padding has a part in it
    alone = complete(writer, prompts, section(tokens_per_batch=1), "one at a time")
    together = complete(writer, prompts, section(), "at once")
    assert alone == together
    ids, expected = torch.tensor([prompts[0]]), []
    with torch.no_grad():
        for _ in range(12):
            token = int(policy(input_ids=ids).logits[0, -1].argmax())
            if token in chat.stop_ids:
                break
            expected.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert together[0] == (expected, len(expected) < 12)


def test_an_adapter_is_merged_to_answer_where_nothing_is_rounded(tiny_base):
    """In fp32 the answers stay the same; in bf16 the adapter stays apart."""
    base, model = tiny_base
    adapted = model.model_copy(update={"method": "lora"})
    torch.manual_seed(1)
    policy = load_model(base, adapted, trainable=True)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    chat, prompts = load_chat(base, model), [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    base_answers = complete(Writer(load_model(base, model), chat, model), prompts, section(), "base")
    expected = complete(Writer(policy, chat, adapted), prompts, section(), "apart")
    assert expected != base_answers
    plain = merged(policy)
    assert not isinstance(plain, PeftModel)
    assert complete(Writer(plain, chat, adapted), prompts, section(), "merged") == expected
    narrow = load_model(base, adapted.model_copy(update={"precision": "bf16"}), trainable=True)
    assert merged(narrow) is narrow


def test_a_gpu_answers_as_many_prompts_at_once_as_have_room(monkeypatch, tiny_base):
    """Half of the 1 MiB beside the weights: 64 rows of 64 tokens. On a CPU 8192 tokens a batch are 128 rows.

    Keys and values of a token: 2 layers, 2 heads of width 8 for keys, bf16: 2 x 2 x 16 x 2 = 128 bytes.
    """
    base, model = tiny_base
    policy = load_model(base, model)
    assert kv_bytes(policy.config, 2) == 128
    assert rows_that_fit(policy, 64, 8192) == 128
    properties = SimpleNamespace(total_memory=2**20 + 4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: properties)
    weight = SimpleNamespace(device=torch.device("cuda"), numel=lambda: 1024, element_size=lambda: 4)
    on_gpu = SimpleNamespace(parameters=lambda: iter([weight]), config=policy.config, dtype=torch.bfloat16)
    assert rows_that_fit(on_gpu, 64, 1) == 64
    assert rows_that_fit(on_gpu, 10**6, 1) == 1
    assert rows_that_fit(on_gpu, 1, 1) == 256


def test_sampling_is_repeatable_and_differs_from_greedy(tiny_base, preferences):
    base, model = tiny_base
    chat, policy = load_chat(base, model), load_model(base, model)
    writer = Writer(policy, chat, model)
    prompts = [[5, 6, 7], [8, 9]]
    first, again = (complete(writer, prompts, section(temperature=2.0), "drawn") for _ in range(2))
    assert first == again
    assert first != complete(writer, prompts, section(), "greedy")


def test_the_models_own_sampling_settings_are_not_used(tiny_base):
    base, model = tiny_base
    chat, policy = load_chat(base, model), load_model(base, model)
    writer = Writer(policy, chat, model)
    expected = complete(writer, [[5, 6, 7]], section(), "plain")
    policy.generation_config.repetition_penalty = 10.0
    assert complete(writer, [[5, 6, 7]], section(), "with a penalty") == expected


def test_prompts_stay_the_same_when_responses_or_other_rows_change(preferences):
    chosen = choose_prompts(preferences.test, 3)
    assert len(chosen) == 3
    changed = preferences.test.map(lambda row: {"chosen": row["rejected"], "id": row["id"] + "x"})
    assert choose_prompts(changed, 3)["prompt"] == chosen["prompt"]
    reordered = preferences.test.select(range(len(preferences.test) - 1, -1, -1))
    assert choose_prompts(reordered, 3)["prompt"] == chosen["prompt"]
    twice = preferences.test.select([0, 0, 0])
    assert len(choose_prompts(twice, 3)) == 1


def test_sft_and_dpo_answer_side_by_side(tiny_base, preferences, tmp_path):
    base, model = tiny_base
    sft = sft_on(preferences, SFT, TrainingJob(base, model, 0, tmp_path / "sft"))
    tokens = pair_tokens(preferences, base, model)
    found = generate(preferences, tokens, EvaluatedModels(base, model, sft, sft), section(n=5))
    assert len(found.exchanges) == 5
    assert set(found.stages) == {"sft", "dpo"}
    for exchange in found.exchanges:
        assert exchange.responses["sft"] == exchange.responses["dpo"]
        assert exchange.responses["sft"].true_reward is None  # not the demo
    stop = sum(e.responses["sft"].stopped for e in found.exchanges) / 5
    assert found.stages["sft"].stop_rate.value == stop
    compared = found.comparisons["dpo_vs_sft"]
    assert (compared.by_true_reward, compared.by_judge) == (None, None)
    assert (compared.stop_rate.value, compared.repetition.value, compared.empty.value) == (0, 0, 0)
    assert compared.length_ratio.value == 1
    found.save(tmp_path)
    assert type(found).load(tmp_path) == found
    none = generate(preferences, tokens, EvaluatedModels(base, model, sft), section(n=0))
    assert none.exchanges == []
    assert none.stages == {}


def with_template(checkpoint: Checkpoint, folder: Path, template: str) -> Checkpoint:
    """The same weights with another chat template."""
    shutil.copytree(checkpoint.path, folder)
    (folder / "manifest.json").unlink()
    (folder / "history.json").unlink()
    (folder / "chat_template.jinja").write_text(template)
    return seal(folder, [], **checkpoint.manifest.model_dump(exclude={"files", "digest"}))


def test_the_champion_answers_the_same_prompts_with_its_own_template(tiny_base, preferences, tmp_path):
    """It reads longer prompts, answers as it would alone, and the newest model is compared with it and with SFT."""
    base, model = tiny_base
    sft = sft_on(preferences, SFT, TrainingJob(base, model, 0, tmp_path / "sft"))
    other = SftSection(learning_rate=1e-3, max_steps=1, max_length=96, eval_steps=5)
    dpo = sft_on(preferences, other, TrainingJob(base, model, 0, tmp_path / "dpo"))
    template = load_chat(base, model, sft).tokenizer.chat_template.replace(
        "<|{{ m['role'] }}|>", "<|{{ m['role'] }}|> so"
    )
    champion = with_template(sft, tmp_path / "champion", template)
    tokens = pair_tokens(preferences, base, model)
    found = generate(preferences, tokens, EvaluatedModels(base, model, sft, dpo, champion), section(n=5))
    assert list(found.stages) == ["sft", "dpo", "champion"]
    assert list(found.comparisons) == ["dpo_vs_sft", "dpo_vs_champion"]
    assert all(list(exchange.responses) == ["sft", "dpo", "champion"] for exchange in found.exchanges)
    own = load_chat(base, model, champion)
    asked = [
        own.tokenizer.apply_chat_template(e.prompt, add_generation_prompt=True, return_dict=False)
        for e in found.exchanges
    ]
    alone = complete(Writer(load_model(base, model, champion), own, model), asked, section(), "alone")
    texts = [own.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids, _ in alone]
    assert [e.responses["champion"].text for e in found.exchanges] == texts
    assert texts != [e.responses["sft"].text for e in found.exchanges]


def test_a_champion_that_is_this_runs_model_is_not_asked_again(tiny_base, preferences, tmp_path, monkeypatch):
    base, model = tiny_base
    sft = sft_on(preferences, SFT, TrainingJob(base, model, 0, tmp_path / "sft"))
    loaded = []

    def counted(*args, **options):
        loaded.append(args)
        return load_model(*args, **options)

    monkeypatch.setattr("posttrain.forward.ranks.load_model", counted)
    tokens = pair_tokens(preferences, base, model)
    found = generate(preferences, tokens, EvaluatedModels(base, model, sft, champion=sft), section(n=5))
    assert len(loaded) == 1
    assert list(found.comparisons) == ["sft_vs_champion"]
    assert found.stages["sft"] == found.stages["champion"]


def test_on_the_demo_the_hidden_reward_judges(tiny_base, preferences, tmp_path):
    """One model on both sides: no answer wins, and the rewards are those of the demo."""
    base, model = tiny_base
    rows = [row for row, _ in zip(demo.rows(), range(3), strict=False)]
    test = preferences.test.select(range(3)).map(
        lambda _, i: {"prompt": [{"role": "user", "content": rows[i]["prompt"]}], "true_margin": 1.0}, with_indices=True
    )
    pairs = type(preferences)(preferences.train, preferences.validation, test)
    sft = sft_on(preferences, SFT, TrainingJob(base, model, 0, tmp_path / "sft"))
    tokens = pair_tokens(pairs, base, model)
    found = generate(pairs, tokens, EvaluatedModels(base, model, sft, sft), section(n=3))
    assert found.comparisons["dpo_vs_sft"].by_true_reward.n_ties == 3
    for exchange in found.exchanges:
        response = exchange.responses["dpo"]
        assert response.true_reward == demo.reward(exchange.prompt[0]["content"], response.text)
