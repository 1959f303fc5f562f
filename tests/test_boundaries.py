"""The library works without ZenML. Which package may import which is checked by import-linter in `make lint`."""

import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.slow
def test_the_library_imports_zenml_in_orchestration_only():
    """Not even through another library: all other modules are imported in a fresh process."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "posttrain").rglob("*.py")
        if "orchestration" not in path.parts
    ]
    code = f"import sys, importlib\nfor m in {sorted(modules)}: importlib.import_module(m)\nsys.exit('zenml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300).returncode == 0
