"""Keep colour codes out of files."""

import os
import sys

COLOURS_DISABLED = "ZENML_LOGGING_COLORS_DISABLED"


def disable_colours_in_files() -> None:
    """Make ZenML log without colour codes if stderr is not a terminal or NO_COLOR is set.

    ZenML writes its log to stderr, and in colour even where that is a file. The `zenml` command has set up its log before it
    loads a pipeline, so it is set up again. rich, which prints the reports, needs no help.
    """
    if COLOURS_DISABLED in os.environ or (sys.stderr.isatty() and not os.environ.get("NO_COLOR")):
        return
    os.environ[COLOURS_DISABLED] = "true"
    if "zenml.logger" in sys.modules:
        from zenml.logger import init_logging

        init_logging()
