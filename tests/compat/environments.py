"""Run the contract tests against the oldest and the newest releases that pyproject.toml allows.

    python tests/compat/environments.py                    the oldest and the newest of TRL, transformers, PEFT and ZenML
    python tests/compat/environments.py trl==1.15.0        the named releases, with the installed ones of the others

Each combination has an environment of its own: a folder with only the packages that differ from the installed ones, in front
of these on the path. Nothing is installed into the project's environment, and torch is not downloaded again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("trl", "transformers", "peft", "zenml")
TESTS = ("tests/compat", "tests/forward/test_shared_prompt.py", "tests/training/test_training.py")


@dataclass(frozen=True)
class Outcome:
    """The result of the tests with one combination of releases."""

    name: str
    releases: dict[str, Version]
    passed: bool
    summary: str


def allowed_ranges() -> dict[str, SpecifierSet]:
    """Return the ranges of `PACKAGES` in pyproject.toml."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = map(Requirement, document["project"]["dependencies"])
    return {requirement.name: requirement.specifier for requirement in requirements if requirement.name in PACKAGES}


def released(package: str) -> list[Version]:
    """Return the releases of a package that pip can install, oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
    assert listed, answer
    return sorted(map(Version, listed[1].split(", ")))


def combinations() -> dict[str, dict[str, Version]]:
    """Return the oldest and the newest allowed release of each package."""
    allowed = {package: list(one.filter(released(package))) for package, one in allowed_ranges().items()}
    return {
        "oldest": {package: versions[0] for package, versions in allowed.items()},
        "newest": {package: versions[-1] for package, versions in allowed.items()},
    }


def unmet(folder: Path) -> list[str]:
    """Return the requirements of the packages in a folder that neither it nor the environment meets."""
    found: dict[str, Distribution] = {}
    for distribution in (*distributions(path=[str(folder)]), *distributions()):
        found.setdefault(canonicalize_name(distribution.name), distribution)
    missing = []
    for distribution in distributions(path=[str(folder)]):
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            installed = found.get(canonicalize_name(requirement.name))
            if installed is None or not requirement.specifier.contains(installed.version, prereleases=True):
                missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def install(releases: dict[str, Version], folder: Path) -> None:
    """Install the releases that differ from the environment's into a folder, with the dependencies that it lacks."""
    wanted = [f"{name}=={release}" for name, release in releases.items() if Version(version(name)) != release]
    while wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), *wanted], check=True)
        wanted = unmet(folder)


def run_tests(name: str, releases: dict[str, Version], arguments: Iterable[str]) -> Outcome:
    """Run the tests with a combination of releases."""
    print(f"{name}: {', '.join(f'{package} {release}' for package, release in releases.items())}", flush=True)
    with tempfile.TemporaryDirectory(prefix="posttrain-compat-") as folder:
        install(releases, Path(folder))
        path = os.pathsep.join([folder, str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not soak", "-p", "no:cacheprovider", *TESTS, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )
    lines = done.stdout.splitlines()
    if done.returncode:
        print(done.stdout)
    return Outcome(name, releases, done.returncode == 0, lines[-1].strip("= ") if lines else "no output")


def print_table(outcomes: list[Outcome]) -> None:
    """Print one row per combination."""
    print(f"\n{'':8}" + "".join(f"{package:14}" for package in PACKAGES) + "tests")
    for outcome in outcomes:
        releases = "".join(f"{outcome.releases.get(package)!s:14}" for package in PACKAGES)
        print(f"{outcome.name:8}{releases}{'passed' if outcome.passed else 'FAILED'}: {outcome.summary}")


def main() -> int:
    """Run all combinations; the exit code is 1 if a test failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("releases", nargs="*", help="such as trl==1.15.0: test this combination only")
    parser.add_argument("--pytest", default="", help="further arguments of pytest, separated by blanks")
    options = parser.parse_args()
    if options.releases:
        named = dict(release.split("==") for release in options.releases)
        tested = {"named": {package: Version(named.get(package, version(package))) for package in PACKAGES}}
    else:
        tested = combinations()
    outcomes = [run_tests(name, releases, options.pytest.split()) for name, releases in tested.items()]
    print_table(outcomes)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
