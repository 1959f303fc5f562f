"""Take the pictures of the documentation anew from the last run: the page of the run and its charts in MLflow.

Run `make screenshots` after `make run`. It needs Chromium: `chromium`, `chromium-browser` or `google-chrome` in PATH, or the
variable CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient
from PIL import Image

from posttrain.orchestration.finished_runs import find_run, read_run_report
from posttrain.reporting.pages.run_page import report_page

DOCS = Path(__file__).parent
DATABASE = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{DOCS.parent}/.mlflow/mlflow.db")
WIDTH = 1500
WAIT_S = 120
N_VISITS = 5
"""MLflow draws its charts late, and not in time for each picture: the largest file is the one with all charts."""
SETTLING_MS = 30_000
"""How long a page may work, in its own time, before the picture is taken."""


def main() -> None:
    """Write `report.png`, `mlflow-runs.png` and `mlflow-dpo.png` beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(report_page(read_run_report()[0]), encoding="utf-8")
        sides = []
        for name, scheme in (("light", 1), ("dark", 0)):
            side = Path(folder) / f"{name}.png"
            take(
                page.as_uri(),
                side,
                Path(folder) / "profile",
                900,
                1800,
                f"--blink-settings=preferredColorScheme={scheme}",
            )
            sides.append(Image.open(side))
        both = Image.new("RGB", (sum(image.width for image in sides), sides[0].height))
        for i, image in enumerate(sides):
            both.paste(image, (i * image.width, 0))
        both.save(DOCS / "report.png", optimize=True)
        with mlflow_ui() as address:
            runs, dpo = charts(find_run(None).name)
            for name, place in (("mlflow-runs", runs), ("mlflow-dpo", dpo)):
                visits = [Path(folder) / f"{name}-{i}.png" for i in range(N_VISITS)]
                for visit in visits:
                    take(f"{address}/{place}", visit, Path(folder) / "profile", WIDTH, 1050)
                shutil.copy(max(visits, key=lambda visit: visit.stat().st_size), DOCS / f"{name}.png")


def take(url: str, picture: Path, profile: Path, width: int, height: int, *options: str) -> None:
    """Take a picture of a page in a window of a size."""
    subprocess.run(
        [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--virtual-time-budget={SETTLING_MS}", *options,
            f"--screenshot={picture}", url,
        ],
        check=True, timeout=WAIT_S, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{picture.name}: {picture.stat().st_size // 1024} KB")


def chromium() -> str:
    """Return the browser's command."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    return found or sys.exit("No Chromium found: install it, or set CHROMIUM to its command")


def charts(run: str) -> tuple[str, str]:
    """Return where MLflow shows the runs of the experiment, and the curves of the run's DPO training."""
    client = MlflowClient(DATABASE)
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id]):
            if found.info.run_name == f"train_dpo of {run}":
                runs = f"#/experiments/{experiment.experiment_id}/runs"
                return (
                    f"{runs}?workflowType=machine_learning&compareRunsMode=CHART&orderByKey=tags.%60posttrain.started%60",
                    f"{runs}/{found.info.run_id}/model-metrics?workflowType=machine_learning",
                )
    return sys.exit(f"{DATABASE} has no DPO training of {run}: start a run here with `make run`")


@contextmanager
def mlflow_ui() -> Iterator[str]:
    """Serve the database of the runs; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", DATABASE, "--port", str(port)]
    server = subprocess.Popen(
        command,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(WAIT_S):
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except URLError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
