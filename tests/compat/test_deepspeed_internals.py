"""What posttrain/compat/deepspeed_internals.py relies on in DeepSpeed, trained on one CPU process."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT

from posttrain.compat.deepspeed_internals import choose_deepspeed_accelerator, is_partitioned, own_share

CONTRACT = """
import sys
import deepspeed, torch
from types import SimpleNamespace
from support.contracts import require
from posttrain.compat.deepspeed_internals import is_partitioned, own_optimizer_state, own_share

stage, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
layer = torch.nn.Linear(5, 7)
sizes = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
engine, *_ = deepspeed.initialize(
    model=layer, optimizer=torch.optim.AdamW([{"params": [weights]} for weights in layer.parameters()], lr=0.1),
    config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": sizes},
)
state = own_optimizer_state(engine, "step", ("exp_avg", "exp_avg_sq"))
fact = "the optimizer has one flat tensor per parameter group, with the state of AdamW"
require([set(own) for own in state] == [{"step", "exp_avg", "exp_avg_sq"}] * 2, "deepspeed", fact, own_optimizer_state)
require(sorted(own["exp_avg"].numel() >= n for own, n in zip(state, (35, 7))) == [True] * 2, "deepspeed", fact, own_optimizer_state)
engine.backward(engine(torch.arange(5.0)).square().mean())
engine.step()
after = own_optimizer_state(engine, "step", ("exp_avg", "exp_avg_sq"))
require(all(own["step"] == 1 for own in after), "deepspeed", "the state is the one that a step updates", own_optimizer_state)
marked = [is_partitioned(weights) for weights in layer.parameters()]
require(marked == [stage == 3] * 2, "deepspeed", "ZeRO-3 sets ds_id on parameters, ZeRO-2 does not", is_partitioned)
if stage == 3:
    whole = torch.arange(35.0).view(7, 5)
    share = own_share(layer.weight, whole)
    require(share[:35].tolist() == list(range(35)), "deepspeed", "ds_tensor has the size of a share", own_share)
"""


@pytest.mark.soak
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_keeps_weights_and_state_where_expected(stage, tmp_path):
    """In a process of its own, because importing DeepSpeed changes the process. `make test-soak` installs DeepSpeed."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CONTRACT, str(stage), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_shares_are_equal_parts_padded_with_zeros(monkeypatch):
    """7 numbers for 3 processes: 3 each, the last one 1 and two zeros."""
    whole, shares = torch.arange(1.0, 8.0), []
    parameter = SimpleNamespace(ds_id=0, ds_tensor=torch.empty(3))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(own_share(parameter, whole).tolist())
    assert shares == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]
    assert is_partitioned(parameter)
    assert not is_partitioned(torch.nn.Parameter(whole))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is chosen then")
def test_deepspeed_uses_the_cpu_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    choose_deepspeed_accelerator()
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    choose_deepspeed_accelerator()
    assert os.environ["DS_ACCELERATOR"] == "xpu"
