"""Private parts of other libraries are used in posttrain/compat and nowhere else."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

FOLDERS = ("posttrain", "pipelines", "steps", "materializers")
OWN = (*FOLDERS, "")
PUBLIC_DESPITE_ITS_NAME = {"_asdict": "documented method of named tuples", "_replace": "another one"}

DOCUMENTED = {"os._exit"}
"""Public functions of the standard library whose names begin with an underscore."""


def modules() -> list[Path]:
    """Return all modules outside posttrain/compat."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "compat" not in path.relative_to(ROOT).parts]


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Yield imports of private modules or names from other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package not in OWN and package != "__future__" and any(map(is_private, parts)):
                yield f"line {node.lineno}: import of {name}"


def defined_names(tree: ast.AST) -> set[str]:
    """Return the names that a module defines or assigns itself: functions, classes, variables and attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def private_attributes(tree: ast.AST) -> Iterator[str]:
    """Yield private attributes that the module itself does not define, and those of any code, closure or frame object."""
    own = defined_names(tree) | set(PUBLIC_DESPITE_ITS_NAME)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in own and ast.unparse(node) not in DOCUMENTED:
                yield f"line {node.lineno}: {ast.unparse(node)}"
            if node.attr in ("__code__", "__closure__", "__globals__", "f_locals"):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "setattr", "hasattr")
            and isinstance(node.args[1], ast.Constant)
            and is_private(str(node.args[1].value))
            and node.args[1].value not in own
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def overridden(path: Path) -> Iterator[str]:
    """Yield private methods and attributes of a module's classes that a base class from another package also has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name: defined_names(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.bases}
    if not names:
        return
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name, defined in names.items():
        foreign = [base for base in getattr(module, name).__mro__ if base.__module__.split(".")[0] not in OWN]
        for base in foreign:
            if base.__module__ in ("builtins", "abc", "typing") or base.__module__.startswith("pydantic"):
                continue
            try:
                source = inspect.getsource(base)
            except (OSError, TypeError):
                continue
            taken = {attribute for attribute in defined if is_private(attribute) and f".{attribute} = " in source}
            taken |= {attribute for attribute in defined if is_private(attribute) and attribute in vars(base)}
            for attribute in sorted(taken):
                yield f"{name} defines {attribute} of {base.__module__}.{base.__name__}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_part_of_another_library_is_used(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [*private_imports(tree), *private_attributes(tree), *overridden(path)]
    assert not found, f"{path.relative_to(ROOT)}: move into posttrain/compat, with a contract test: {'; '.join(found)}"


def test_every_function_of_compat_states_version_reason_and_end():
    """One place for the reader: what was read, why it is needed and when it can go."""
    lacking = []
    for path in sorted((ROOT / "posttrain" / "compat").glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                not isinstance(node, ast.FunctionDef | ast.ClassDef)
                or is_private(node.name)
                or node.name == "LossSoFar"
            ):
                continue
            text = ast.get_docstring(node) or ""
            complete = all(word in text for word in ("Reason:", "Read against:", "Remove when:"))
            if not complete and "Reason, versions and condition for removal are the same" not in text:
                lacking.append(f"{path.name}: {node.name}")
    assert not lacking


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from torch.utils._pytree import tree_map", "import of torch.utils._pytree.tree_map"),
        ("import torch._dynamo", "import of torch._dynamo"),
        ("from posttrain.data.checks import _own", ""),
        ("model.config._attn_implementation", "model.config._attn_implementation"),
        ("getattr(trainer, '_metrics')", "getattr(trainer, '_metrics')"),
        ("forward.__code__.co_name", "forward.__code__"),
        ("self._count = 1\nother._count", ""),
        ("row._asdict()", ""),
    ],
)
def test_the_rule_finds_private_uses(code, expected):
    tree = ast.parse(code)
    found = "; ".join([*private_imports(tree), *private_attributes(tree)])
    assert (expected in found) if expected else not found
