"""Flat batches: the layout as computed by hand; losses, log-probabilities and gradients equal to those of TRL alone."""

import copy
import random
import typing
from unittest.mock import Mock

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)  # fmt: skip
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from posttrain.compat.trl_internals import fused_head_kernel
from posttrain.config import LossType, ModelSection
from posttrain.errors import UserError
from posttrain.forward import lm_head
from posttrain.forward.attention import Segments, _by_segment, _Layer
from posttrain.forward.flat import FlatCollator, use_flat_batches
from posttrain.forward.flat_row import lay_out
from posttrain.forward.logprobs import completion_logps
from posttrain.models import loading
from posttrain.models.loading import load_model
from posttrain.models.precision import autocast
from posttrain.training.dpo import PairTrainer

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60
}  # fmt: skip


def test_layout_of_a_group_by_hand():
    """Prompt 1 2 3 with the responses 7 8 9 and 7 5: both begin with 7, so 1 2 3 is the prefix, whose 3 predicts the
    shared 7; each branch begins with that 7. 9 and 5 come last, so nobody needs to see them. The pair 4 -> 6 stands alone."""
    flat = lay_out([[1, 2, 3], [4], [1, 2, 3]], [[7, 8, 9], [6], [7, 5]])
    assert flat["input_ids"].tolist() == [[1, 2, 3, 7, 8, 7, 4]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0]]
    assert flat["segments"].groups == ((3, 2, 1), (0, 1))
    assert flat["predicting"].tolist() == [2, 3, 4, 5, 6]
    assert flat["targets"].tolist() == [7, 8, 9, 5, 6]
    assert flat["rows"].tolist() == [[0, 1, 2], [4, 0, 0], [0, 3, 0]]
    assert flat["mask"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]


def test_equal_responses_are_computed_once():
    """Ranked answers a > b and a > c, as chosen a a and rejected b c: three branches, not four."""
    flat = lay_out([[1, 2]] * 4, [[5, 9], [5, 9], [6, 9], [7, 9]])
    assert flat["segments"].groups == ((1, 2, 2, 2),)
    assert flat["rows"].tolist() == [[0, 1], [0, 1], [2, 3], [4, 5]]


def test_a_response_that_is_a_prefix_of_another_needs_no_branch():
    flat = lay_out([[1, 2], [1, 2]], [[3], [3, 4]])
    assert flat["segments"].groups == ((2, 0, 1),)
    assert flat["targets"].tolist() == [3, 4]
    assert flat["rows"].tolist() == [[0, 0], [0, 1]]


def test_turns_between_trained_answers_are_seen_but_not_predicted():
    """2 answers 1, and 5 6 answer 1 2 3 4: positions 0, 3 and 4 predict them."""
    row = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, -100, -100, 5, 6]}
    batch = FlatCollator()([row])
    flat = batch["flat"]
    assert flat["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert (flat["predicting"].tolist(), flat["targets"].tolist()) == ([0, 3, 4], [2, 5, 6])
    assert flat["mask"].tolist() == [[True, False, False, True, True]]
    assert flat["rows"][flat["mask"]].tolist() == [0, 1, 2]
    assert batch["labels"].tolist() == [row["labels"]]


def test_block_mask_equals_the_definition_of_segments():
    """Each token sees its own prefix or branch up to itself, and a branch its group's prefix, checked for each pair of tokens."""
    segments = Segments(((2, 2, 1), (0, 3), (1, 0, 2)))
    of_token = [(g, b, i) for g, group in enumerate(segments.groups) for b, n in enumerate(group) for i in range(n)]
    expected = [
        [g == h and ((b == c and j <= i) or (c == 0 and b > 0)) for h, c, j in of_token] for g, b, i in of_token
    ]
    n = len(of_token)
    mask_mod = segments.block_mask(torch.device("cpu")).mask_mod
    seen = mask_mod(torch.tensor(0), torch.tensor(0), torch.arange(n)[:, None], torch.arange(n)[None])
    assert seen.tolist() == expected


def random_pairs(seed, n=6, n_vocabulary=60):
    """Return pairs of different lengths. Some share a prompt, a response or its beginning; some responses have one token."""
    rng = random.Random(seed)

    def tokens(low, high):
        return [rng.randrange(n_vocabulary) for _ in range(rng.randint(low, high))]

    prompts = [tokens(1, 20) for _ in range(n - 2)]
    rows = []
    for i in range(n):
        begin = tokens(0, 3)
        chosen, rejected = begin + tokens(1, 15), begin + tokens(1, 4)
        if i == n - 1:
            chosen, rejected = rows[0]["chosen_ids"], [5]
        rows.append(
            {
                "prompt_ids": prompts[i % len(prompts)],
                "chosen_ids": chosen,
                "rejected_ids": rejected if rejected != chosen else [*rejected, 1],
                "ref_chosen_logps": -rng.random() * 40,
                "ref_rejected_logps": -rng.random() * 40,
            }
        )
    rows[n - 2]["prompt_ids"] = rows[0]["prompt_ids"]
    rows[n - 1]["prompt_ids"] = rows[0]["prompt_ids"]
    return rows


@pytest.fixture(scope="module", params=["full", "lora"])
def trainer(request, tiny_folder, tmp_path_factory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    if request.param == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    arguments = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trainer")), beta=0.1, bf16=False, use_cpu=True, report_to="none",
        precompute_ref_log_probs=True, gradient_checkpointing=False, use_weighting=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    rows = Dataset.from_list(random_pairs(0))
    made = PairTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    if request.param == "lora":
        made.model.delete_adapter("ref")
    assert use_flat_batches(made.model, ModelSection()) is None
    made.pairs_per_batch = len(rows)
    return made


def loss_and_gradient(trainer, batch):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = DPOTrainer.compute_loss(trainer, trainer.model, batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    metrics = {name: values.pop() for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("loss_type", typing.get_args(LossType))
@pytest.mark.parametrize("seed", range(3))
def test_losses_gradients_and_metrics_equal_trls(trainer, loss_type, seed):
    """For every loss and for batches of different lengths: to 1e-5 in fp32, for all metrics that TRL reports."""
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.label_smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    trainer.use_weighting = seed == 2 and loss_type not in ("aot", "aot_unpaired", "hinge", "sft")
    rows = random_pairs(seed)
    loss, gradient, metrics = loss_and_gradient(trainer, FlatCollator()(rows))
    expected_loss, expected_gradient, expected_metrics = loss_and_gradient(
        trainer, DataCollatorForPreference(pad_token_id=0)(rows)
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm() + 1e-8
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-5)


def alone(model, rows):
    """Return each response's log-probability in plain PyTorch, one sequence at a time: first chosen, then rejected."""
    logps = []
    for which in ("chosen_ids", "rejected_ids"):
        for row in rows:
            ids = torch.tensor([row["prompt_ids"] + row[which]])
            mask = (torch.arange(ids.shape[1]) >= len(row["prompt_ids"]))[None]
            logps.append(completion_logps(model(input_ids=ids).logits, ids, mask).item())
    return logps


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        Qwen3Config(**SHAPE, head_dim=8),
        MistralConfig(**SHAPE, sliding_window=None),
        MistralConfig(**SHAPE, sliding_window=8),
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=8, attn_logit_softcapping=0.5),
        MixtralConfig(**SHAPE, num_local_experts=2),
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60),
        OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=60, dropout=0.0,
                  word_embed_proj_dim=32),
        GraniteConfig(**SHAPE, logits_scaling=8.0),
        PhiConfig(**SHAPE),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_architectures_share_prompts_or_return_a_reason(config, attention):
    """With flat batches, log-probabilities equal those of each response alone."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = random_pairs(1)
    with torch.no_grad():
        expected = alone(model, rows)
        reason = use_flat_batches(model, ModelSection(attention=attention))
        print(config.model_type, reason)
        assert reason is None
        found = model(flat=FlatCollator()(rows)["flat"], fused_lm_head=True).log_probs.sum(dim=1)
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_windows_go_by_position_within_the_branch():
    """A window of 3 on the prefix 0 1 2 and the branches 3 4 and 3: the second branch's token at position 3 sees 1 and 2 of the
    prefix and itself, but nothing of the first branch."""
    segments = Segments(((3, 2, 1),))
    assert segments.positions().tolist() == [0, 1, 2, 3, 4, 3]
    first, second = segments.masks(torch.float32, torch.device("cpu"), 3)
    assert (first == 0).tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [False, True, True, True, False],
        [False, False, True, True, True],
    ]
    assert (second == 0).tolist() == [[False, True, True, True]]
    seen = segments.block_mask(torch.device("cpu"), 3).mask_mod(
        torch.tensor(0), torch.tensor(0), torch.arange(6)[:, None], torch.arange(6)[None]
    )
    assert seen[5].tolist() == [False, True, True, False, False, True]
    assert seen[:5, :5].tolist() == (first == 0).tolist()


def test_a_model_that_does_not_pass_on_its_window_keeps_trls_batches():
    """The probe's few tokens are shorter than any real window, so they cannot tell."""
    model = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=None)).eval()
    model.config = copy.deepcopy(model.config)  # the layers keep theirs
    model.config.sliding_window = 4096
    assert "does not pass its sliding window of 4096 tokens" in use_flat_batches(model, ModelSection())


def test_sinks_take_part_in_the_softmax_without_a_value():
    """One query, two keys with score 0 and a sink of ln 2: the weights are 1/4, 1/4 and 1/2, so values 4 and 8 give 3."""
    q, k, v = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.tensor([4.0, 8.0]).view(1, 1, 2, 1)
    layer = _Layer(scale=0.5, dropout=0.0, window=None, sinks=torch.tensor([2.0]).log(), softcap=None)
    found = _by_segment(q, k, v, Segments(((0, 2),)), layer)
    assert found.flatten().tolist() == pytest.approx([4 / 3, 3.0])


@pytest.mark.parametrize(("setting", "value"), [("layout", "flat"), ("attention", "flex")])
def test_flat_batches_that_a_model_cannot_have_are_an_error(setting, value):
    model = AutoModelForCausalLM.from_config(
        MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=60, state_size=4)
    )
    with pytest.raises(UserError, match=f"model.{setting}: {value} needs flat batches.*linear_attention"):
        use_flat_batches(model, ModelSection(**{setting: value}))


def test_a_wrong_padded_forward_is_refused():
    """TRL multiplies this head by logit_scale; a family that does not would be trained as another model."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval()
    model.config.logit_scale = 3.0
    with pytest.raises(UserError, match="llama models cannot be trained here: in a padded batch"):
        use_flat_batches(model, ModelSection(layout="padded"))


def test_the_balance_loss_of_a_flat_row_is_the_models_own():
    """A single sequence of 9 tokens, of which the row has 8: the same loss as the model's own on those 8."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MixtralConfig(**SHAPE, num_local_experts=4, router_aux_loss_coef=0.02)
    ).eval()
    ids = torch.randint(60, (9,)).tolist()
    expected = model(input_ids=torch.tensor([ids[:8]]), output_router_logits=True).aux_loss
    assert use_flat_batches(model, ModelSection()) is None
    flat = lay_out([ids[:4]], [ids[4:]])
    assert model(flat=flat, fused_lm_head=True, output_router_logits=True).aux_loss.item() == pytest.approx(
        expected.item()
    )
    assert model(flat=flat, fused_lm_head=True).aux_loss is None


@pytest.mark.parametrize("ours", [True, False])
def test_the_head_is_ours_on_a_cpu_and_otherwise_trls(ours, monkeypatch):
    """Both return the same losses, so the test observes which of them was called."""
    monkeypatch.setattr(lm_head, "KEPT_BYTES", 2**30 if ours else 0)
    kernel = Mock(wraps=fused_head_kernel())
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", kernel)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    assert use_flat_batches(model, ModelSection()) is None
    model(flat=FlatCollator()(random_pairs(1))["flat"], fused_lm_head=True)
    assert kernel.apply.called != ours


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=60, state_size=4), "linear_attention"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_without_support_keep_trls_batches(config, reason):
    model = AutoModelForCausalLM.from_config(config)
    assert reason in use_flat_batches(model, ModelSection())
    ids = torch.randint(60, (2, 9))
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.shape == (2, 8)


def test_virtual_tokens_keep_trls_batches():
    model = get_peft_model(
        AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )
    assert "virtual tokens" in use_flat_batches(model, ModelSection())


def test_layout_padded_keeps_trls_batches():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    assert use_flat_batches(model, ModelSection(layout="padded")) == "model.layout is set to padded"


def test_generation_is_unchanged():
    """Without segments the attention is transformers' own, also with a cache and with padding on the left."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval()
    ids = torch.randint(2, 60, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    use_flat_batches(model, ModelSection())
    found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert found.tolist() == expected.tolist()


def test_bfloat16_is_as_close_as_trls():
    """Under bf16 autocast the log-probabilities are within 2 % of those in fp32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval()
    rows = random_pairs(2)
    with torch.no_grad():
        expected = torch.tensor(alone(model, rows))
        assert use_flat_batches(model, ModelSection()) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(flat=FlatCollator()(rows)["flat"], fused_lm_head=True).log_probs.float().sum(dim=1)
    assert ((found - expected).abs() / expected.abs()).max() < 0.02


def test_attention_in_bfloat16_is_computed_in_fp32_on_a_cpu():
    """The result equals the fp32 result of the same inputs, rounded once, also under autocast."""
    segments = Segments(((3, 4, 2), (0, 5)))
    inputs = [torch.randn(1, n, 14, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (4, 2, 2)]
    expected = _by_segment(*(part.float() for part in inputs), segments, _Layer(None, 0.0, None, None, None))  # type: ignore[call-arg]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _by_segment(*inputs, segments, _Layer(None, 0.0, None, None, None))  # type: ignore[call-arg]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_an_adapter_in_bfloat16_computes_the_same_without_casts_to_fp32(tiny_base, monkeypatch):
    base, section = tiny_base
    section = section.model_copy(update={"method": "lora", "precision": "bf16"})
    ids = torch.arange(2, 40)[None]
    results, dtypes = [], []
    for always in (False, True):
        if always:
            monkeypatch.setattr(loading, "leave_casts_to_autocast", lambda model: None)
        torch.manual_seed(0)
        model = load_model(base, section, trainable=True)
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            torch.nn.init.normal_(layer.lora_B["default"].weight)
        seen = set()
        layers[0].lora_A["default"].register_forward_pre_hook(lambda _, args, seen=seen: seen.add(args[0].dtype))
        with autocast(section):
            logits = model(ids).logits
        logits.float().square().mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        results.append(torch.cat([logits.flatten().float(), *gradients]))
        dtypes.append(seen)
    assert dtypes == [{torch.bfloat16}, {torch.float32}]
    assert torch.equal(*results)


def test_an_adapter_in_bfloat16_can_be_called_without_autocast(tiny_base):
    base, section = tiny_base
    model = load_model(base, section.model_copy(update={"method": "lora", "precision": "bf16"}), trainable=True)
    assert model(torch.arange(2, 40)[None]).logits.dtype == torch.bfloat16


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).train()
    assert use_flat_batches(model, ModelSection()) is None
    flat = FlatCollator()(random_pairs(3))["flat"]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(flat=flat, fused_lm_head=True).log_probs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)
