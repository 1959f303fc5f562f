"""Importing the library changes nothing in the process; `configure()` and the functions that need it do."""

import os
import subprocess
import sys

import pytest
from support.paths import ROOT

EFFECTS = """
import ast, importlib, logging, os, sys, warnings
from pathlib import Path

root = Path(sys.argv[1])
modules = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted((root / "posttrain").rglob("*.py"))
}
# What other libraries do when they are imported is not ours: the same imports come first.
for tree in modules.values():
    for node in tree.body:
        foreign = isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module.split(".")[0] != "posttrain")
        if foreign and "__future__" not in ast.unparse(node) and "posttrain" not in ast.unparse(node):
            exec(ast.unparse(node))

from accelerate import PartialState
from transformers import AttentionInterface
import torch, datasets, transformers

def state():
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "attention": sorted(AttentionInterface().keys()),
        "levels": {
            name: logger.level for name, logger in logging.root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger) and logger.level
        },
        "root handlers": list(logging.root.handlers),
        "processes": torch.distributed.is_initialized(),
        "bars": (datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()),
        "threads": torch.get_num_threads(),
    }

before = state()
for name in sorted(modules):
    importlib.import_module(name)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"importing {name} changes {changed}"
"""


@pytest.mark.slow
def test_importing_a_module_changes_nothing(tmp_path):
    done = run("-c", EFFECTS, str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process without this one's telemetry settings."""
    kept = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=300
    )


TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "ZENML_ANALYTICS_OPT_IN", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
ASK = f"import os; print([os.environ.get(name) for name in {TELEMETRY}])"


def test_configure_turns_telemetry_off():
    code = f"import posttrain; posttrain.configure(); {ASK}"
    assert run("-c", code).stdout.strip() == "['1', 'false', 'true', '1']"


def test_configure_keeps_the_users_choice():
    code = f"import posttrain; posttrain.configure(); {ASK}"
    assert run("-c", code, MLFLOW_DISABLE_TELEMETRY="false").stdout.strip() == "['1', 'false', 'false', '1']"


def test_configure_applies_to_a_hub_client_that_is_imported_already():
    code = (
        "import huggingface_hub.constants as c, posttrain; before = c.HF_HUB_DISABLE_TELEMETRY; posttrain.configure()"
    )
    assert run("-c", f"{code}; print(before, c.HF_HUB_DISABLE_TELEMETRY)").stdout.strip() == "False True"
    allowed = {"HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0"}
    assert run("-c", f"{code}; print(before, c.HF_HUB_DISABLE_TELEMETRY)", **allowed).stdout.strip() == "False False"


@pytest.mark.parametrize("package", ["steps", "pipelines"])
def test_steps_and_pipelines_configure_before_they_import_mlflow(package):
    code = f"import sys, {package}; assert not {{'mlflow', 'zenml'}} & set(sys.modules); {ASK}"
    assert run("-c", code).stdout.strip() == "['1', 'false', 'true', '1']"


def test_the_command_configures():
    code = f"from posttrain.cli.main import main; main(['check', 'configs/demo.yaml'], standalone_mode=False); {ASK}"
    assert run("-c", code).stdout.strip().splitlines()[-1] == "['1', 'false', 'true', '1']"
