"""The `posttrain` command and what the README says."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.paths import ROOT

from posttrain.cli.main import main
from posttrain.config import ModelSection, load_config
from posttrain.config.reference_tables import checks_table, settings_table
from posttrain.errors import UserError
from posttrain.models.memory import read_shape
from posttrain.training.plan import plan


def test_the_readme_lists_every_setting():
    """`posttrain settings` prints what stands there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert settings_table() in readme
    assert checks_table() in readme


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_check_tells_what_a_config_costs(path):
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 0
    assert "dpo: " in result.output
    assert "effective batch size" in result.output
    assert "learning_rate" in result.output  # the resolved config


def test_check_of_the_demo_is_right():
    """4070 rows, 87.5 % of them trained on: 3561; in batches of 16 SFT takes 223 steps, DPO half of that."""
    stages = plan(load_config(ROOT / "configs" / "demo.yaml"))
    assert stages["sft"].n_rows == stages["dpo"].n_rows == 3561
    assert (stages["sft"].n_steps, stages["dpo"].n_steps) == (223, 112)
    assert 0 < stages["sft"].memory_gib < stages["dpo"].memory_gib < 2


def test_the_demos_shape_is_that_of_its_weights():
    """`check` must not build the model to know its size."""
    from posttrain.models.base import demo_folder

    section = load_config(ROOT / "configs" / "demo.yaml").model
    assert read_shape(section) == read_shape(section.model_copy(update={"base": str(demo_folder())}))


def test_check_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, posttrain.cli.main\n"
        "posttrain.cli.main.main(['check', 'configs/demo.yaml'], standalone_mode=False)\n"
        "sys.exit(len({'torch', 'zenml', 'transformers', 'datasets', 'mlflow'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert time.monotonic() - started < 10  # under 1 on a quiet machine


@pytest.mark.parametrize("arguments", [["check", "no.yaml"], ["report", "no-such-run"]])
def test_a_mistake_is_one_line(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: no")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("base", ["/nope/x", "./nope", "models/my/base", "my model"])
def test_check_tells_that_there_is_no_such_base(base):
    with pytest.raises(UserError, match=r"neither a folder, seen from .*, nor a Hub id"):
        read_shape(ModelSection(base=base))


def test_check_tells_that_a_base_is_not_whole(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="is not a complete transformers model"):
        read_shape(ModelSection(base=str(tmp_path)))


def test_check_names_the_file_and_the_key(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("parameters: {config: {dpo: {betta: 1}}}")
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 1
    assert result.output == f"Error: {path}: dpo.betta: unknown key (did you mean 'beta'?)\n"
