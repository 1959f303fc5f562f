"""`posttrain init` and `posttrain run`: a project of one's own."""

import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from support.paths import ROOT
from zenml_cli import cli as zenml

from posttrain import __version__, _check_project, configure
from posttrain.cli.main import main
from posttrain.cli.project_files import find_project, make_project
from posttrain.project_version import other_version


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, which is also the current folder."""
    make_project(tmp_path / "my project")
    monkeypatch.chdir(tmp_path / "my project")
    return tmp_path / "my project"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What ZenML's command is told, which does not run; the content of the file follows its arguments."""
    told: list[list[str]] = []

    def note(args: list[str], **_: object) -> None:
        told.append([*args, Path(args[args.index("--config") + 1]).read_text(encoding="utf-8")])

    monkeypatch.setattr(zenml, "main", note)
    return told


def test_the_version_is_printed():
    assert call("--version").output == f"posttrain, version {__version__}\n"


def test_a_project_has_the_repositorys_files(project: Path):
    made = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    own = {"README.md", "pyproject.toml"}
    assert {name for name in made - own if (project / name).read_bytes() != (ROOT / name).read_bytes()} == set()
    for name in ("pipelines", "steps", "materializers"):
        assert {path.name for path in (project / name).glob("*.py")} == {
            path.name for path in (ROOT / name).glob("*.py")
        }
    beside = {
        "collect_pipeline.py",
        "dpo_pipeline.py",
        "sweep_pipeline.py",
        "configs/demo.yaml",
        "configs/stacks/kubernetes.sh",
        "Dockerfile",
    }
    assert beside | own | {".zen/.gitkeep", ".dockerignore", ".gitignore", "constraints.txt"} <= made
    assert not any("__pycache__" in name or name.startswith(("posttrain", "tests", "benchmarks")) for name in made)


def test_a_project_depends_on_this_version(project: Path):
    """Its Dockerfile installs what pyproject.toml names, with the extras that the repository's own has."""
    made = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert made["name"] == "my-project"
    assert made["dependencies"] == [f"posttrain=={__version__}"]
    assert set(made["optional-dependencies"]) == set(ours["optional-dependencies"]) - {"dev"}
    assert "$" not in (project / "README.md").read_text(encoding="utf-8").replace("$(", "")


def test_init_tells_what_to_do_next(tmp_path: Path):
    result = call("init", tmp_path / "new" / "project")
    assert result.exit_code == 0
    assert f"cd {tmp_path / 'new' / 'project'}\n  zenml pipeline run dpo_pipeline" in result.output


def test_init_in_the_current_folder_needs_no_cd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "cd " not in call("init", ".").output
    assert (tmp_path / "dpo_pipeline.py").exists()


def test_init_takes_an_empty_folder_and_no_other(tmp_path: Path):
    assert call("init", tmp_path).exit_code == 0
    result = call("init", tmp_path)
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}: is not empty: name a new or an empty folder\n"
    (tmp_path / "file").write_text("")
    assert call("init", tmp_path / "file").exit_code == 2
    result = call("init", tmp_path / "file" / "project")
    assert result.exit_code == 1
    assert "cannot be written (Not a directory)" in result.output


def test_a_project_is_found_from_below(project: Path):
    (project / "notes" / "today").mkdir(parents=True)
    assert find_project(project / "notes" / "today") == project
    assert find_project(project.parent) is None


def test_run_without_a_project_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = call("run")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: no project at or above {tmp_path}: change to its folder, or make one with `posttrain init DIR`"
    ]


def test_run_is_zenmls_command(project: Path, started: list[list[str]]):
    assert call("run", "--stack", "default").exit_code == 0
    assert call("run", "configs/sweep.yaml").exit_code == 0
    assert [told[:-1] for told in started] == [
        ["pipeline", "run", "dpo_pipeline", "--config", "configs/demo.yaml", "--stack", "default"],
        ["pipeline", "run", "sweep_pipeline", "--config", "configs/sweep.yaml"],
    ]


def test_run_names_the_stacks_that_there_are(project: Path, started: list[list[str]]):
    result = call("run", "--stack", "nope")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: --stack nope: no such stack (known: ")
    assert started == []


def test_run_with_other_settings_leaves_the_rest_of_the_file_alone(project: Path, started: list[list[str]]):
    path = project / "configs" / "nightly_kubernetes.yaml"
    assert call("run", path, "--set", "dpo.beta=0.2", "--set", "data.sources.0.limit=9").exit_code == 0
    expected = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected["parameters"]["config"]["dpo"]["beta"] = 0.2
    expected["parameters"]["config"]["data"]["sources"][0]["limit"] = 9
    assert yaml.safe_load(started[0][-1]) == expected
    assert not Path(started[0][4]).exists()


def test_set_can_choose_the_sweep(project: Path, started: list[list[str]]):
    assert call("run", "--set", "sweep.grid={beta: [0.1, 0.5]}").exit_code == 0
    assert started[0][2] == "sweep_pipeline"


@pytest.mark.parametrize("command", ["check", "data", "run"])
def test_an_unknown_key_of_set_is_named(project: Path, command: str, started: list[list[str]]):
    result = call(command, "configs/demo.yaml", "--set", "dpo.betta=0.2")
    assert result.exit_code == 1
    assert result.output == "Error: configs/demo.yaml with --set: dpo.betta: unknown key (did you mean 'beta'?)\n"
    assert started == []


def test_check_uses_the_values_of_set(project: Path):
    result = call("check", "--set", "dpo.batch_size=3", "--set", "dpo.gradient_accumulation_steps=7")
    assert result.exit_code == 0
    assert "dpo: about 3561 rows, effective batch size 21" in result.output


def test_a_mistake_that_zenml_finds_names_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the repository: a new project's pipelines would stay imported in this process."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mine.yaml"
    path.write_text("steps: {train_dpoo: {}}\nparameters: {config: {name: mine}}\n")
    result = call("run", path, "--set", "dpo.beta=0.2")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(f"Error: {path} with --set: steps.train_dpoo: unknown step")


def test_a_project_of_another_version_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure()  # its own version
    about = project / "pyproject.toml"
    about.write_text(about.read_text(encoding="utf-8").replace(f"=={__version__}", "==0.1.0"), encoding="utf-8")
    _check_project.cache_clear()
    message = (
        f"the project {project} was made with posttrain 0.1.0, and {__version__} is installed: install that version"
    )
    with pytest.raises(click.ClickException) as caught:
        configure()
    assert message in caught.value.message
    result = call("run")
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert message in result.output
    assert call("--version").exit_code == 0
    about.write_text(about.read_text(encoding="utf-8").replace("==0.1.0", ">=0.1.0"), encoding="utf-8")
    configure()  # the version is the user's own affair


def test_the_check_of_the_version_finds_the_project_above(tmp_path: Path) -> None:
    (tmp_path / ".zen").mkdir()
    (tmp_path / "inner").mkdir()
    assert other_version(tmp_path / "inner", "2.0") is None
    (tmp_path / "pyproject.toml").write_text('dependencies = ["posttrain==1.0"]')
    assert "was made with posttrain 1.0, and 2.0 is installed" in str(other_version(tmp_path / "inner", "2.0"))
    assert other_version(tmp_path, "1.0") is None
