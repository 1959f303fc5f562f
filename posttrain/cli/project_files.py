"""The files of a project: where they are, and how a new project is made from them."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Template

from posttrain import __version__
from posttrain.errors import UserError

INSTALLED = Path(__file__).parents[1] / "project"
REPOSITORY = Path(__file__).parents[2]
# The files into which a project's name and posttrain's version are filled in, and their names in the project.
TEMPLATES = (("README.md", "README.md"), ("pyproject.toml.template", "pyproject.toml"))


def template_folder() -> Path:
    """Return the folder that holds pipelines, steps and configs: in the installed package, or the repository itself."""
    return INSTALLED if (INSTALLED / "pipelines").is_dir() else REPOSITORY


def find_project(folder: Path | None = None) -> Path | None:
    """Return the nearest project at or above a folder (default: the current folder), or None."""
    folder = (folder or Path.cwd()).resolve()
    return next(
        (at for at in (folder, *folder.parents) if (at / ".zen").is_dir() and (at / "pipelines").is_dir()), None
    )


def make_project(folder: Path) -> None:
    """Copy the files of a project into a new or empty folder.

    Raises:
        UserError: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty: name a new or an empty folder")
        for source, path in _files():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / path)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}): name another folder") from error
    values = {"name": _distribution_name(folder), "version": __version__}
    for template, name in TEMPLATES:
        text = Template((INSTALLED / template).read_text(encoding="utf-8")).substitute(values)
        (folder / name).write_text(text, encoding="utf-8")


def _files() -> Iterator[tuple[Path, Path]]:
    """Yield each file of a project: where it is, and its path in the project."""
    root = template_folder()
    filled_in = {INSTALLED / template for template, _ in TEMPLATES}
    names = _repository_files() if root == REPOSITORY else [path.name for path in INSTALLED.iterdir()]
    for name in names:
        inside = (root / name).rglob("*") if (root / name).is_dir() else [root / name]
        for path in inside:
            if path.is_file() and "__pycache__" not in path.parts and path not in filled_in:
                yield path, path.relative_to(root)


def _repository_files() -> list[str]:
    """Return what hatch_build.py puts into the wheel."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    names: list[str] = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["project"]
    return names


def _distribution_name(folder: Path) -> str:
    """Return the folder's name in the form that pyproject.toml requires."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "project"
