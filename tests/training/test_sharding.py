"""Two processes that share a model train the same as one process, and write the same checkpoint."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from support.stages import reference_on, sft_on
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState

from posttrain.config import DpoSection, Lengths, ModelSection, SftSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import score_pairs
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_model
from posttrain.models.memory import GIB, Shape, loaded_gib, weights_gib
from posttrain.training.dpo import train_dpo
from posttrain.training.launcher import end_process, share_rows
from posttrain.training.sharding import (
    keep_precision,
    load_zero_shares,
    put_back,
    save_shares,
    sharding_arguments,
    trained_weights,
)
from posttrain.training.stopping import EarlyStopping, Goal
from posttrain.training.trainer import TrainingJob

LENGTHS = Lengths(max_length=96, max_prompt_length=64)
# Two micro-batches a process and step; every gradient is longer than the norm that it is scaled down to.
COMMON = {"learning_rate": 1e-3, "max_steps": 10, "max_length": 96, "batch_size": 2, "gradient_accumulation_steps": 4}
COMMON |= {"max_grad_norm": 0.5}
SFT = SftSection(**COMMON)
DPO = DpoSection(**COMMON, max_prompt_length=64)

CASES = {
    "full": ("full", "full", "fp32", False),
    "full in bf16": ("full", "full", "bf16", True),
    "adapter": ("lora", "lora", "fp32", True),
    "adapter in bf16": ("lora", "lora", "bf16", True),
    "merged": ("full", "lora", "fp32", True),
}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
@pytest.mark.parametrize(
    ("case", "sharding"),
    [
        ("full", "fsdp"),
        *(
            pytest.param(*others, marks=pytest.mark.soak)
            for others in [
                ("adapter", "fsdp"),
                ("adapter in bf16", "fsdp"),
                ("full in bf16", "fsdp"),
                ("merged", "fsdp"),
                ("full", "zero2"),
                ("full in bf16", "zero3"),
                ("adapter in bf16", "zero3"),
                ("merged", "zero3"),
            ]
        ),
    ],
)
def test_sharded_training_equals_training_in_one_process(tiny_base, preferences, tmp_path, case, sharding):
    """SFT and DPO on two CPU processes: ten losses, the files, and the log-probabilities of pairs equal those of one process."""
    base, section = tiny_base
    sft_method, dpo_method, precision, gradient_checkpointing = CASES[case]
    for_sft, for_dpo = (
        section.model_copy(update={"method": method, "precision": precision}) for method in (sft_method, dpo_method)
    )
    histories, files, logps = {}, {}, {}
    for n, what in ((1, "none"), (2, sharding)):
        update = {"processes": n, "sharding": what, "gradient_checkpointing": gradient_checkpointing}
        sft = sft_on(preferences, SFT.model_copy(update=update), TrainingJob(base, for_sft, 0, tmp_path / f"sft{n}"))
        reference = reference_on(preferences, sft, base, for_dpo, LENGTHS)
        dpo = train_dpo(
            reference, sft, DPO.model_copy(update=update), TrainingJob(base, for_dpo, 0, tmp_path / f"dpo{n}")
        )
        histories[n] = [
            [entry[key] for entry in stage.history if key in entry]
            for stage in (sft, dpo)
            for key in ("loss", "grad_norm", "eval_loss")
        ]
        files[n] = [about(Checkpoint.load(stage.path)) for stage in (sft, dpo)]
        scored = [
            score_pairs(load_model(base, for_dpo, stage), reference.rows("test"), for_dpo, 4096, "test")
            for stage in (sft, dpo)
        ]
        logps[n] = [found for pairs in scored for found in (*pairs.chosen_logps, *pairs.rejected_logps)]
    # Two processes add gradients up in another order than one does. In fp32 that changes the seventh digit of the adapter. In bf16
    # such a change rounds some activations to the neighbouring number, 2**-8 away, and which ones differs between processors
    # (with AMX or without). So fp32 shows that the same is computed, bf16 that it is computed in the right precision.
    # The rows of a step are also shared among processes by their tokens, DeepSpeed has its own linear layer, and the layers of an
    # adapter are fused in one process and PEFT's own where they are sharded: in bf16 two digits are left.
    bf16 = 2e-2 if dpo_method == "lora" else 1e-2
    tolerance = 1e-4 if precision == "fp32" else bf16
    assert len(histories[1][0]) == len(histories[1][3]) == 10
    for alone, shared in zip(histories[1], histories[2], strict=True):
        assert shared == pytest.approx(alone, rel=tolerance)
    assert files[2] == files[1]
    assert logps[2] == pytest.approx(logps[1], **({"abs": 1e-3} if precision == "fp32" else {"rel": tolerance}))


def about(checkpoint: Checkpoint) -> dict[str, object]:
    """Return everything but the values of a checkpoint: kind, batches, names of files, shape and dtype of each weight."""
    shapes = {}
    for file in checkpoint.path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes |= {
                name: (tensors.get_tensor(name).shape, tensors.get_tensor(name).dtype)
                for name in tensors.keys()  # noqa: SIM118 (not a dict)
            }
    config = [path.read_text(encoding="utf-8") for path in checkpoint.path.glob("*config.json")]
    manifest = checkpoint.manifest
    return {
        "kind": manifest.kind,
        "batches": manifest.batches,
        "files": set(manifest.files),
        "shapes": shapes,
        "": config,
    }


def best_weights_of_a_sharded_model(rank: int, store: str) -> None:
    """Run validations of which the second is the best. At the n-th all weights are n."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, tie_word_embeddings=False))
    fully_shard(model.model.layers[0])
    fully_shard(model)
    callback, control, state = EarlyStopping(Goal("DPO", 2)), TrainerControl(), TrainerState()
    for step, loss in enumerate((0.7, 0.5, 0.6, 0.55), start=1):
        state.global_step = step
        model.reshard()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
            model(torch.tensor([[0, 1]]))  # a validation leaves the outermost weights gathered
        callback.on_evaluate(None, state, control, metrics={"eval_loss": loss}, model=model)
    assert control.should_training_stop
    callback.on_train_end(None, state, control, model=model)
    model.reshard()
    assert all(bool((parameter.full_tensor() == 2).all()) for parameter in model.parameters())
    torch.distributed.destroy_process_group()
    end_process(0)


@pytest.mark.slow
def test_early_stopping_restores_the_best_weights_of_a_sharded_model(tmp_path, fork_server):
    store = str(tmp_path / "store")
    torch.multiprocessing.start_processes(
        best_weights_of_a_sharded_model, (store,), nprocs=2, start_method="forkserver"
    )


def train_an_odd_layer_by_zero(rank: int, n: int, stage: int, folder: str) -> None:
    """Train three steps and two more in two processes. Three processes resume after the third step."""
    import deepspeed  # in spawned processes only: the import takes seconds

    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store{n}", rank=rank, world_size=n)
    torch.manual_seed(n)  # the loaded weights differ from the initial ones
    layer = torch.nn.Linear(5, 7)  # 35 and 7 weights: no equal shares for two or three processes
    sizes = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    engine, *_ = deepspeed.initialize(
        model=layer,
        optimizer=torch.optim.AdamW([{"params": [weights]} for weights in layer.parameters()], lr=0.1),
        config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": sizes},
    )
    trainer = SimpleNamespace(
        model=layer,
        model_wrapped=engine,
        is_fsdp_enabled=False,
        is_deepspeed_enabled=True,
        is_world_process_zero=lambda: rank == 0,
    )

    def train(n_steps: int) -> None:
        for _ in range(n_steps):
            engine.backward(engine(torch.arange(5.0)).square().mean())
            engine.step()

    checkpoint, expected = str(Path(folder) / "checkpoint"), Path(folder) / "expected.pt"
    if n == 2:
        train(3)
        save_shares(trainer, checkpoint)
    else:
        load_zero_shares(trainer, checkpoint)
    train(2)
    weights = trained_weights(layer)
    assert (rank == 0 or stage == 2) == bool(weights)
    if n == 2 and rank == 0:
        torch.save(weights, expected)
    elif rank == 0:
        torch.testing.assert_close(weights, torch.load(expected, weights_only=True))
    train(1)
    put_back(layer, weights)
    found = trained_weights(layer)
    assert all(bool((found[name] == weights[name]).all()) for name in weights)
    torch.distributed.destroy_process_group()
    end_process(0)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_resumes_with_another_number_of_processes(tmp_path, stage):
    for n in (2, 3):
        torch.multiprocessing.spawn(train_an_odd_layer_by_zero, (n, stage, str(tmp_path)), nprocs=n)


def test_a_model_in_deepspeed_runs_under_autocast():
    layer, inputs = torch.nn.Linear(2, 2), torch.ones(1, 2)
    state = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=True, model=layer)
    state.args = SimpleNamespace(device=torch.device("cpu"))
    keep_precision(state, torch.float32)
    assert layer(inputs).dtype == torch.float32
    keep_precision(state, torch.bfloat16)
    assert layer(inputs).dtype == torch.bfloat16


def test_fsdp_gathers_weights_in_bf16_and_adds_gradients_up_in_fp32():
    plugin = SimpleNamespace(mixed_precision_policy=None)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    trainer = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False, accelerator=accelerator)
    for dtype, expected in ((torch.float32, (None, None)), (torch.bfloat16, (torch.bfloat16, torch.float32))):
        keep_precision(trainer, dtype)
        policy = plugin.mixed_precision_policy
        assert (policy.param_dtype, policy.reduce_dtype) == expected


def test_zero_without_deepspeed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="sharding: zero3 needs DeepSpeed, which is not installed: set it to fsdp"):
        sharding_arguments("zero3")


def test_sharding_with_one_process_is_refused():
    with pytest.raises(
        UserError, match="sharding: fsdp splits a model among several processes, but processes auto gives only one"
    ):
        share_rows(SftSection(sharding="fsdp"))


SHAPE = Shape(
    n_parameters=8 * GIB, n_layers=1, hidden_size=1, n_adapter_parameters_per_rank=GIB // 16, inner_size=1, query_size=1,
    key_size=1, n_vocabulary=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "sharding", "expected"),
    [
        ("full", "none", 8 * 16),
        ("full", "fsdp", 8 * 16 / 8),
        ("full", "zero2", 8 * (4 + 16 / 8)),
        ("full", "zero3", 8 * 20 / 8),
        ("lora", "none", 8 * 2 + 16),
        ("lora", "fsdp", (8 * 2 + 16) / 8),
        ("lora", "zero2", 8 * 2 + 4 + 16 / 8),
        ("lora", "zero3", (8 * 2 + 20) / 8),
    ],
)
def test_memory_is_estimated_per_process(method, sharding, expected):
    """8 Gi parameters, an adapter of 1 Gi (rank 16), 8 processes: weights 4 bytes or 2, gradients 4, optimizer 8, ZeRO's copy 4."""
    section = SftSection(sharding=sharding, processes=8)
    model = ModelSection(base="x", method=method, precision="bf16")
    assert weights_gib(section, model, SHAPE, in_16_bit=True) == pytest.approx(expected)
    assert loaded_gib(model, SHAPE, in_16_bit=True) == 8 * (4 if method == "full" else 2)
