"""Why a step ran although an earlier run has its result."""

import ast
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from support.paths import ROOT
from zenml.utils.time_utils import utc_now

from posttrain.orchestration.caching.cache_key import parts_of_step
from posttrain.orchestration.history.step_reasons import code_changes, reasons_to_run
from posttrain.orchestration.history.why import NEVER_CACHED
from posttrain.orchestration.running_step.step_usage import tokens_of

PARTS = {"code": {"posttrain.training.dpo": "aa", "steps.train_dpo": "bb"}, "packages": {"torch": "2.12.0"}}


def step_run(tokens: str = "t", beta: float = 0.1, parts: Any = PARTS, store: str = "s", **more: Any) -> Any:
    made: dict[str, Any] = {
        "inputs": {"tokens": [SimpleNamespace(content_hash=tokens, id="1")]},
        "config": SimpleNamespace(parameters={"dpo": {"beta": beta}, "lengths": {"max_length": 8}}, enable_cache=None),
        "run_metadata": {"key_parts": parts} if parts else {},
        "outputs": {"checkpoint": [SimpleNamespace(artifact_store_id=store)]},
        "cache_expires_at": None,
    }
    return SimpleNamespace(**{**made, **more})


def test_inputs_settings_packages_and_code_are_named():
    parts = {"code": {"posttrain.training.dpo": "ab", "posttrain.new": "cc"}, "packages": {"torch": "2.13.0"}}
    assert reasons_to_run(step_run("u", 0.3, parts), step_run()) == [
        "tokens changed",
        "dpo.beta 0.1 -> 0.3",
        "torch 2.12.0 -> 2.13.0",
        "code of posttrain.new (new), posttrain.training.dpo, steps.train_dpo (removed)",
    ]


def test_a_parameter_has_the_name_of_its_setting():
    longer = SimpleNamespace(parameters={"dpo": {"beta": 0.1}, "lengths": {"max_length": 9}}, enable_cache=None)
    assert reasons_to_run(step_run(config=longer), step_run()) == ["dpo.max_length 8 -> 9"]


@pytest.mark.parametrize(
    ("later", "earlier", "reason"),
    [
        ({"config": SimpleNamespace(parameters={"dpo": {"beta": 0.1}, "lengths": {"max_length": 8}}, enable_cache=False)}, {},
         "the cache was switched off"),
        ({}, {"cache_expires_at": utc_now() - timedelta(hours=1)}, "damaged, missing or too old"),
        ({"store": "other"}, {}, "in another artifact store"),
        ({"parts": None}, {}, "not recorded in detail"),
        ({}, {}, "nothing that is recorded"),
    ],
)  # fmt: skip
def test_equal_inputs_have_another_reason(later, earlier, reason):
    (found,) = reasons_to_run(step_run(**later), step_run(**earlier))
    assert reason in found


def test_no_code_is_compared_where_none_was_recorded():
    assert code_changes(step_run(), step_run(parts=None)) == ([], {})


def test_the_steps_without_cache_are_those_that_are_declared_so():
    declared = set()
    for path in (ROOT / "steps").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and "step(enable_cache=False)" in map(
                ast.unparse, node.decorator_list
            ):
                declared.add(node.name)
    assert declared == NEVER_CACHED


def test_the_parts_of_a_key_name_its_modules_and_packages():
    parts = parts_of_step("steps.train_dpo")
    assert {"steps.train_dpo", "posttrain.training.dpo"} <= parts["code"].keys()
    assert "posttrain.training.sft" not in parts["code"]
    assert "torch" in parts["packages"]


def test_tokens_are_counted_once():
    """Two pairs of 3 + 2 + 1 tokens under base, SFT and DPO: SFT's log-probabilities are those of the reference."""
    import pyarrow as pa

    lengths = {"n_prompt_tokens": [3, 3], "n_chosen_tokens": [2, 2], "n_rejected_tokens": [1, 1]}
    logps = {f"{stage}_chosen_logps": [0.0, 0.0] for stage in ("base", "sft", "dpo")}
    assert tokens_of("evaluate", SimpleNamespace(pairs=pa.table(lengths | logps))) == 24
    table = pa.table({"id": ["a", "b"], "prompt_ids": [[1, 2, 3], [4]], "chosen_ids": [[5], [6, 7]]})
    assert tokens_of("score_reference", SimpleNamespace(table=table)) == 7
    assert tokens_of("tokenise", (SimpleNamespace(tables={"train": table, "test": table}), None, None)) == 14
    assert tokens_of("train_dpo", SimpleNamespace(manifest=SimpleNamespace(metrics={"n_train_tokens": 506.0}))) == 506
    assert tokens_of("train_point", (None, "failed")) == 0
    assert tokens_of("promote", object()) == 0
