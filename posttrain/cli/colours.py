"""Keep colour codes out of files."""

import os
import sys


def disable_colours_in_files() -> None:
    """Make ZenML log without colour codes if stdout is not a terminal or NO_COLOR is set; call it before ZenML is imported.

    ZenML writes its log to stdout, and in colour even where that is a file. rich, which prints the reports, needs no help.
    """
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        os.environ.setdefault("ZENML_LOGGING_COLORS_DISABLED", "true")
