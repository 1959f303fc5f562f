"""The `posttrain` command."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.paths import ROOT

from posttrain.cli.main import main
from posttrain.config import ModelSection, load_config
from posttrain.errors import UserError
from posttrain.models.memory import read_shape
from posttrain.training.plan import plan


@pytest.mark.parametrize(
    ("arguments", "page"), [(["settings"], "settings.md"), (["settings", "--checks"], "checks.md")]
)
def test_settings_prints_the_reference(arguments, page):
    printed = CliRunner().invoke(main, arguments).output
    assert printed in (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert printed.count("\n| `") > 30


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_check_prints_what_a_config_costs(path, tiny_folder):
    local_files = ["--set", f"model.base={tiny_folder}"] if path.name == "hh_rlhf_cpu.yaml" else []
    result = CliRunner().invoke(main, ["check", str(path), *local_files])
    assert result.exit_code == 0, result.output
    assert f"{'verifier' if path.name.startswith('verifier') else 'dpo'}: " in result.output
    assert "effective batch size" in result.output
    assert "learning_rate" in result.output  # the resolved config


def test_check_of_the_demo_computes_rows_and_steps():
    """4070 rows, 87.5 % of them trained on: 3561; in batches of 16 SFT takes 223 steps, DPO half of that."""
    stages = plan(load_config(ROOT / "configs" / "demo.yaml"))
    assert stages["sft"].n_rows == stages["dpo"].n_rows == 3561
    assert (stages["sft"].n_steps, stages["dpo"].n_steps) == (223, 112)
    assert 0 < stages["sft"].memory_gib < stages["dpo"].memory_gib < 2


def test_the_demos_shape_matches_its_weights():
    """`check` knows the size without building the model."""
    from posttrain.models.base import demo_folder

    section = load_config(ROOT / "configs" / "demo.yaml").model
    assert read_shape(section) == read_shape(section.model_copy(update={"base": str(demo_folder())}))


def test_check_imports_nothing_heavy():
    """So that it answers in about a second."""
    code = (
        "import sys, posttrain.cli.main\n"
        "posttrain.cli.main.main(['check', 'configs/demo.yaml'], standalone_mode=False)\n"
        "sys.exit(len({'torch', 'zenml', 'transformers', 'datasets', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [["check", "no.yaml"], ["report", "no-such-run"]])
def test_a_mistake_is_reported_in_one_line(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: no")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("base", ["/nope/x", "./nope", "models/my/base", "my model"])
def test_check_refuses_a_base_that_does_not_exist(base):
    with pytest.raises(UserError, match=r"neither a folder, seen from .*, nor a Hub id"):
        read_shape(ModelSection(base=base))


def test_check_refuses_an_incomplete_base(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="is not a complete transformers model"):
        read_shape(ModelSection(base=str(tmp_path)))


def test_check_names_the_file_and_the_unknown_key(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("parameters: {config: {dpo: {betta: 1}}}")
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 1
    assert result.output == f"Error: {path}: dpo.betta: unknown key (did you mean 'beta'?)\n"
