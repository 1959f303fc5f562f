"""The log of a run in a file has no colour codes, also where ZenML's command has set up its log before."""

import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
from zenml.logger import get_logger, init_logging
init_logging()
from posttrain.orchestration.log_colours import disable_colours_in_files
{call}
get_logger("zenml.test").warning("Step `load` has started.")
"""


@pytest.mark.parametrize(("call", "coloured"), [("", True), ("disable_colours_in_files()", False)])
def test_no_colour_codes_reach_a_file(call, coloured, monkeypatch):
    monkeypatch.delenv("ZENML_LOGGING_COLORS_DISABLED", raising=False)
    script = [sys.executable, "-c", SCRIPT.format(call=call)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "has started" in done.stdout + done.stderr
    assert ("\x1b[" in done.stdout + done.stderr) == coloured
