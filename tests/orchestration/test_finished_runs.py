"""A run is found again, or the error says where it may be; printed commands work where they are printed."""

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from zenml.client import Client

from posttrain.cli.main import main
from posttrain.errors import UserError
from posttrain.orchestration.finished_runs import _command, find_run, note_of_other_store


def test_the_error_names_the_store_that_make_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such run: .* The ZenML store that was searched is /") as caught:
        find_run("nothing-of-the-kind")
    assert "ZENML_CONFIG_PATH=" not in str(caught.value)
    (tmp_path / ".zenml").mkdir()
    with pytest.raises(UserError, match=r"started with `make` are in \.zenml: set ZENML_CONFIG_PATH=") as caught:
        find_run("nothing-of-the-kind")
    assert str(caught.value).endswith(f"ZENML_CONFIG_PATH={tmp_path.resolve() / '.zenml'}")


def test_a_first_run_beside_the_store_of_make_is_pointed_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs: list[str] = []
    monkeypatch.setattr(Client, "list_pipeline_runs", lambda *_, **__: SimpleNamespace(items=runs))
    assert note_of_other_store() is None
    (tmp_path / ".zenml").mkdir()
    assert "has no runs yet, so nothing is taken from its cache. Runs that were started with `make`" in str(
        note_of_other_store()
    )
    runs.append("a run")
    assert note_of_other_store() is None


@pytest.mark.parametrize("where", ["inside", "elsewhere"])
def test_a_command_can_be_pasted_where_it_was_printed(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "an environment" / "bin"
    scripts.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("ZENML_CONFIG_PATH", "/my stores/zenml")
    monkeypatch.chdir(tmp_path if where == "inside" else "/")
    setting, program, *rest = shlex.split(_command("posttrain report run-1"))
    assert setting == "ZENML_CONFIG_PATH=/my stores/zenml"
    assert Path(program).absolute() == scripts / "posttrain"
    assert not program.startswith("..")
    assert rest == ["report", "run-1"]


def test_a_file_gets_no_colour_codes_of_zenml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENML_LOGGING_COLORS_DISABLED", "restored after the test")
    monkeypatch.delenv("ZENML_LOGGING_COLORS_DISABLED")
    assert CliRunner().invoke(main, ["settings"]).exit_code == 0
    assert os.environ["ZENML_LOGGING_COLORS_DISABLED"] == "true"
