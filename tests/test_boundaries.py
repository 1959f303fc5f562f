"""The library stands alone: no ZenML in it, two modules for MLflow and one for boto3."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "posttrain"
IMPORTERS = {"zenml": set(), "mlflow": {"tracking/runs.py", "tracking/mlflow_registry.py"}, "boto3": {"storage/s3.py"}}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(("package", "importers"), IMPORTERS.items())
def test_who_imports_what(package, importers):
    assert {str(path.relative_to(LIBRARY)) for path in LIBRARY.rglob("*.py") if package in imported(path)} == importers


def test_the_library_imports_no_zenml():
    """Not even through something else: every module is imported in a fresh process."""
    modules = [
        ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in LIBRARY.rglob("*.py")
    ]
    code = f"import sys, importlib\nfor m in {sorted(modules)}: importlib.import_module(m)\nsys.exit('zenml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=LIBRARY.parent, timeout=300).returncode == 0
