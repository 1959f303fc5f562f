"""One ZenML client and one MLflow store for all tests, in a scratch folder; the real data, where it is."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports ZenML, so that no test touches the user's own configuration.
SCRATCH = tempfile.TemporaryDirectory(prefix="posttrain-tests-")
os.environ.update(
    ZENML_CONFIG_PATH=f"{SCRATCH.name}/zenml",
    ZENML_LOCAL_STORES_PATH=f"{SCRATCH.name}/stores",
    ZENML_ANALYTICS_OPT_IN="false",
    ZENML_LOGGING_VERBOSITY="WARN",
    MLFLOW_TRACKING_URI=f"sqlite:///{SCRATCH.name}/mlflow.db",
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _the_user_keeps_their_stack() -> Iterator[None]:
    """ZenML writes the active stack into the repository; the user's choice is put back."""
    config = ROOT / ".zen" / "config.yaml"
    before = config.read_bytes() if config.exists() else None
    yield
    if before is not None:
        config.write_bytes(before)
    else:
        config.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets and a tiny Llama: `$SHARED_DATA`, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SHARED_DATA to its folder")
    return folder
