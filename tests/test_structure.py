"""The size and naming rules of the code, which no linter checks."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from support.paths import ROOT

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 5
MAX_MODULES_IN_A_PACKAGE = 16
"""DESIGN asks for about a dozen."""

IMPOSED_SIGNATURES = {
    "posttrain/forward/lm_head.py: forward",  # torch.autograd.Function
    "posttrain/forward/attention.py: forward",  # transformers' attention interface
}
LIBRARY = sorted((ROOT / "posttrain").rglob("*.py"))
CODE = [*LIBRARY, *(path for place in ("pipelines", "steps", "materializers") for path in (ROOT / place).glob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_modules_and_functions_are_short(path):
    too_long = [
        f"{name_of(path)}: {n} lines" for n in [len(path.read_text("utf-8").splitlines())] if n > MAX_MODULE_LINES
    ]
    for function in functions(path):
        n_lines = function.end_lineno - function.lineno + 1
        if n_lines > MAX_FUNCTION_LINES:
            too_long.append(f"{function.name}: {n_lines} lines")
    assert too_long == []


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_functions_take_few_parameters(path):
    many = {
        function.name: len(parameters(function))
        for function in functions(path)
        if len(parameters(function)) > MAX_PARAMETERS and f"{name_of(path)}: {function.name}" not in IMPOSED_SIGNATURES
    }
    assert many == {}


def test_no_two_modules_or_classes_share_a_name():
    places = defaultdict(list)
    for path in LIBRARY:
        module = path.parent.name if path.stem == "__init__" else path.stem
        places[f"module {module}"].append(name_of(path))
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[f"class {node.name}"].append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_packages_are_small():
    modules = defaultdict(int)
    for path in LIBRARY:
        modules[name_of(path.parent)] += path.stem != "__init__"
    assert {package: n for package, n in modules.items() if n > MAX_MODULES_IN_A_PACKAGE} == {}
