"""The digest of a step's code in its cache key: the modules and packages that can change its result.

ZenML looks at the step's own function only, so without this a step would be served from the cache after an edit of the
library. Every step has a digest of its own: an edit re-runs the steps that use the edited module.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from posttrain.orchestration.caching.source_graph import Reference, SourceGraph, SourceModule
from posttrain.tracking import package_versions

LIBRARY, MATERIALIZERS, REPORTING = "posttrain", "materializers", "posttrain.reporting"

NOT_FOLLOWED = {
    "posttrain.tracking": "publishes results to MLflow",
    "posttrain.orchestration.running_step.run_figures": "publishes results to MLflow",
    "posttrain.orchestration.running_step.step_tracking": "opens the MLflow run of a step",
    "posttrain.orchestration.running_step.step_usage": "records what a step used",
    "posttrain.orchestration.running_step.alerts": "posts alerts",
    "posttrain.orchestration.running_step.stored_files": "compares stored files with their digests",
    "posttrain.orchestration.interruption": "stops runs",
    "posttrain.orchestration.running_step.step": "decides about caching, retries and alerts",
    "posttrain.orchestration.caching.cache_key": "computes these digests",
    "posttrain.config.explain": "words the errors of settings",
    "posttrain.config.equivalents": "names settings of other tools in errors",
}
"""Modules and packages that steps use but that cannot change a result, with their purpose."""
N_DIGEST_CHARS = 10
"""Of a module's digest, where it is only compared with another one of the same module."""

PACKAGES_WITHOUT_EFFECT = frozenset(
    "boto3 botocore click fsspec huggingface_hub matplotlib mlflow psutil pyarrow pydantic requests rich tqdm urllib3 yaml "
    "zenml".split()
)
"""Import names of packages that move, store, check or show results and do not change them."""

ALSO_USED = {
    "torch": ("numpy",),
    "transformers": ("accelerate", "bitsandbytes", "flash-attn", "safetensors", "tokenizers"),
    "trl": ("accelerate", "datasets"),
}
"""Distributions that a package uses to compute results, and that our modules need not import themselves."""


@functools.cache
def step_digest(module: str) -> str:
    """Return the sha256 of the code and of the package versions that can change the result of a step.

    Args:
        module: name of the module that defines the step, such as `steps.train_sft`.
    """
    return digest_of_step(module, _folders(module.partition(".")[0], LIBRARY, MATERIALIZERS))


def digest_of_step(module: str, folders: dict[str, Path]) -> str:
    """Return the digest of a step whose code, library and materializers are in these folders, by top-level package."""
    modules, packages = _parts(module, folders)
    digest = hashlib.sha256()
    for name, found in modules.items():
        digest.update(f"{name} {found}\n".encode())
    for name, version in packages.items():
        digest.update(f"{name} {version}\n".encode())
    return digest.hexdigest()


@functools.cache
def parts_of_step(module: str) -> dict[str, dict[str, str]]:
    """Return what the digest of a step consists of: `code`, the start of each module's digest, and `packages`, their versions.

    Args:
        module: name of the module that defines the step.
    """
    modules, packages = _parts(module, _folders(module.partition(".")[0], LIBRARY, MATERIALIZERS))
    return {"code": {name: digest[:N_DIGEST_CHARS] for name, digest in modules.items()}, "packages": packages}


def _parts(step: str, folders: dict[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of the modules, and the versions of the packages, that can change the result of a step, in order."""
    graph, stored_types = _project(tuple(sorted(folders.items())))
    used = _types_of_step(graph, step)
    own = graph.reached(step)
    # A materializer draws a preview for the dashboard with the reporting package, and stores the result without it.
    stored = graph.reached(*(name for name, types in stored_types.items() if types & used), without=(REPORTING,))
    modules = {}
    for name in sorted(own.modules | stored.modules):
        found = graph.module(name)
        assert found is not None
        modules[name] = found.digest
    return modules, relevant_versions(own.packages | stored.packages)


def relevant_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed distribution that can change a result, in order.

    Builds of one version for a CPU and for a GPU count as the same: a laptop may start what a GPU trains.

    Args:
        packages: import names.
    """
    used = set(packages) - PACKAGES_WITHOUT_EFFECT
    names = {name for package in used for name in (package, *ALSO_USED.get(package, ()))}
    versions = {name: _version(name) for name in sorted(names)}
    return {name: version.partition("+")[0] for name, version in versions.items() if version is not None}


@functools.cache
def code_digest() -> str:
    """Return the sha256 of all code that steps can run and of the recorded package versions: what a run names as its code.

    Unlike the cache keys it changes with every edit, also of comments.
    """
    return digest_of_code(_folders(LIBRARY, MATERIALIZERS, "steps"))


def digest_of_code(folders: dict[str, Path]) -> str:
    """Return the digest of all Python files in these folders, by the name of their package."""
    versions = {package: version.partition("+")[0] for package, version in package_versions().items()}
    digest = hashlib.sha256(repr(versions).encode())
    for name, folder in folders.items():
        paths = (
            path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] != "project"
        )  # the template
        for path in sorted(paths):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _project(folders: tuple[tuple[str, Path], ...]) -> tuple[SourceGraph, dict[str, set[Reference]]]:
    """Return the source graph, parsed once for all steps of a process, and the types that each materializer module stores."""
    graph = SourceGraph(dict(folders), tuple(NOT_FOLLOWED))
    return graph, {name: _stored_types(graph, name) for name in graph.below(MATERIALIZERS)}


def _stored_types(graph: SourceGraph, materializers: str) -> set[Reference]:
    """Return the types that the materializers of a module read and write."""
    module = graph.module(materializers)
    assert module is not None
    values = [
        node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ASSOCIATED_TYPES" and node.value
    ]
    return _types(graph, module, values)


def _types_of_step(graph: SourceGraph, step: str) -> set[Reference]:
    """Return the types that the steps of a module take and return."""
    module = graph.module(step)
    if module is None:
        return set()
    annotations: list[ast.AST] = []
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef) and any(map(_is_step, function.decorator_list)):
            annotations += [function.args, *([function.returns] if function.returns else [])]
    return _types(graph, module, annotations)


def _is_step(decorator: ast.expr) -> bool:
    """Return whether a decorator is `step`, with or without options."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "step"


def _types(graph: SourceGraph, module: SourceModule, nodes: Iterable[ast.AST]) -> set[Reference]:
    """Return the definitions that names in some expressions of a module refer to."""
    names = {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}
    return {graph.definition(module.imports.get(name, Reference(module.name, name))) for name in names}


def _folders(*packages: str) -> dict[str, Path]:
    """Return the folder of each top-level package that exists; of a single module, its path without the suffix."""
    found = {}
    for package in packages:
        if paths := getattr(sys.modules.get(package), "__path__", None):
            found[package] = Path(next(iter(paths)))
        elif (module := sys.modules.get(package)) and module.__file__:
            found[package] = Path(module.__file__).with_suffix("")
        elif (spec := importlib.util.find_spec(package)) and spec.origin:
            origin = Path(spec.origin)
            found[package] = origin.parent if origin.name == "__init__.py" else origin.with_suffix("")
    return found


def _version(package: str) -> str | None:
    """Return the version of the distribution that provides a package; None if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    if importlib.util.find_spec(package) is None:
        return None
    distributions = _distributions().get(package)
    return importlib.metadata.version(distributions[0]) if distributions else None


_distributions = functools.cache(
    importlib.metadata.packages_distributions
)  # takes a second, and most names need no look-up
