"""SFT, then DPO, then an evaluation of whether DPO helped. The library does not need ZenML and can be used in a notebook."""

import functools
import os
import sys

__version__ = "0.2.0"

TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ZENML_ANALYTICS_OPT_IN": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


ALLOCATOR = "expandable_segments:True"
"""Lets PyTorch grow its blocks of GPU memory. Rows of many lengths otherwise leave gaps that no later tensor fits into."""


def configure(*, is_project: bool = True) -> None:
    """Turn off the telemetry of all dependencies and set PyTorch's allocator, except where the user has set the variable.

    The command line, pipelines and steps call this themselves. Elsewhere, as in a notebook, call it before other imports:
    MLflow and ZenML read their variables when they are imported.

    Args:
        is_project: check that the project in the current folder was made with this version.
    """
    if is_project:
        _check_project(os.getcwd())
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before PyTorch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)
    if "huggingface_hub" in sys.modules:  # it read the variables when it was imported
        from huggingface_hub import constants

        names = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
        is_off = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)
        constants.HF_HUB_DISABLE_TELEMETRY = is_off


@functools.cache
def _check_project(folder: str) -> None:
    """End in one line if a project was made with another version: its modules may import what no longer exists."""
    from pathlib import Path

    from posttrain.project_version import other_version

    if why := other_version(Path(folder), __version__):
        import click

        raise click.ClickException(why)
