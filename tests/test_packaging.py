"""What is declared, pinned and packed: dependencies, constraints.txt, and the contents of the wheel."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PYPROJECT["project"]["optional-dependencies"].items()
}
SHIPPED = ("posttrain", "pipelines", "steps", "materializers")
OWN = {*SHIPPED, "benchmarks", "docs", "tests", "support", "remote"}
# Runs in an environment of its own, which `make bench-peer` makes.
NOT_DECLARED = {"llamafactory"}


def imported(*folders: str) -> set[str]:
    """The third-party distributions that the files of some folders import, wherever in the file."""
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    third_party = modules - set(sys.stdlib_module_names) - OWN - NOT_DECLARED
    # Several distributions may share a package: mlflow comes from mlflow and mlflow-skinny.
    owners = {module: distributions.get(module, [module]) for module in third_party}
    return {canonicalize_name(module if module in found else found[0]) for module, found in owners.items()}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_every_import_of_the_library_is_a_declared_dependency():
    optional = names([one for name, found in EXTRAS.items() if name != "dev" for one in found])
    assert imported(*SHIPPED) - names(DEPENDENCIES) - optional == set()


def test_every_declared_dependency_is_imported():
    assert names(DEPENDENCIES) - imported(*SHIPPED) == set()


def test_every_import_of_tests_and_benchmarks_is_declared():
    declared = names(DEPENDENCIES) | names([one for found in EXTRAS.values() for one in found])
    assert imported("tests", "benchmarks") - declared == set()


def test_constraints_pin_a_version_that_pyproject_allows():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    wrong = [
        f"{requirement} (pinned: {pins.get(canonicalize_name(requirement.name))})"
        for requirement in [*DEPENDENCIES, *(one for found in EXTRAS.values() for one in found)]
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert wrong == []


def test_constraints_name_no_index_and_no_local_build():
    """They are used on any machine, whichever package index and build of torch it has."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "+" not in text.partition("\n")[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_posttrain_only(wheel: zipfile.ZipFile):
    folders = {name.partition("/")[0].split("-")[0] for name in wheel.namelist()}
    assert folders == {"posttrain"}


def test_the_wheel_holds_every_file_of_the_library(wheel: zipfile.ZipFile):
    """Also those that are not Python: py.typed, templates."""
    files = {path for path in (ROOT / "posttrain").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in files} - set(wheel.namelist()) == set()
    assert "posttrain/py.typed" in wheel.namelist()


def test_the_wheel_holds_the_repositorys_own_project_files(wheel: zipfile.ZipFile):
    folder = "posttrain/project/"
    inside = {name.removeprefix(folder): wheel.read(name) for name in wheel.namelist() if name.startswith(folder)}
    own = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {
        name for name, content in inside.items() if name not in own and content != (ROOT / name).read_bytes()
    } == set()
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in ("pipelines", "steps", "materializers", "configs")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {path.name for path in ROOT.glob("*_pipeline.py")}
    expected |= {"Dockerfile", ".dockerignore", ".gitignore", ".zen/.gitkeep", "constraints.txt"}
    assert set(inside) - own == expected


def test_the_licence_is_declared(wheel: zipfile.ZipFile):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "License-File: LICENSE" in text
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_changelog_has_this_version(wheel: zipfile.ZipFile):
    version = Path(str(wheel.filename)).name.split("-")[1]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
