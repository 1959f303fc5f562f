"""Two runs of the same config at the same time, each in a process of its own."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from support.paths import ROOT
from zenml.client import Client
from zenml.enums import ExecutionStatus, ModelStages

from posttrain.models.checkpoint import Checkpoint

RUN = """
import sys
from posttrain.evaluation.gate import decision as promotion
from posttrain.evaluation.gate.decision import Promotion
promotion.decide = lambda figures, *_: Promotion(promoted=True, opponent=figures.opponent, reasons=["well done"])
from pipelines.dpo import dpo_pipeline
dpo_pipeline.with_options(config_path=sys.argv[1])()
"""


@pytest.mark.soak
def test_two_concurrent_runs_leave_one_champion_and_complete_artifacts(tmp_path: Path, tiny_folder: Path) -> None:
    name = f"twins-{uuid.uuid4().hex[:8]}"
    config = {
        "name": name,
        "model": {"base": str(tiny_folder)},
        "data": {"sources": [{"path": "demo", "limit": 200}], "test_size": 0.2},
        "finetuning_type": "sft",  # what is promoted is all the same
        "sft": {"max_steps": 2, "batch_size": 2, "max_length": 64},
        "evaluation": {"generations": {"n": 0}},
        "tracking": {"experiment": name},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"parameters": {"config": config}}))
    client = Client()
    assert client.active_stack  # ZenML cannot make its own database twice at once
    command = [sys.executable, "-c", RUN, str(tmp_path / "run.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    twins: list[subprocess.Popen[str]] = []
    while len(twins) < 2:
        twin = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        twins.append(twin)
        # The second begins once the first is going: two that start at once in one folder tear ZenML's .zen/config.yaml.
        while not any(run.name.startswith(name) for run in client.list_pipeline_runs(sort_by="desc:created").items):
            assert twin.poll() is None, twin.communicate()[0]
            time.sleep(0.1)
    for twin in twins:
        told, _ = twin.communicate(timeout=500)
        assert twin.returncode == 0, told

    runs = [
        run for run in client.list_pipeline_runs(size=20, sort_by="desc:created").items if run.name.startswith(name)
    ]
    assert [run.status for run in runs] == [ExecutionStatus.COMPLETED] * 2
    (champion,) = client.list_model_versions(model=name, hydrate=True).items  # the same result is one version
    assert champion.stage == ModelStages.PRODUCTION
    digests = set()
    for run in runs:
        for step in client.get_pipeline_run(run.id).steps.values():
            for outputs in step.outputs.values():
                found = [output.load() for output in outputs]  # compared with every digest
                digests |= {checkpoint.digest for checkpoint in found if isinstance(checkpoint, Checkpoint)}
    assert len(digests) == 1, "both have trained the same"
    mlflow = MlflowClient()
    tracked = mlflow.search_runs([mlflow.get_experiment_by_name(name).experiment_id])
    parents = [run for run in tracked if "mlflow.parentRunId" not in run.data.tags]
    assert {run.info.run_name for run in parents} == {run.name for run in runs}
    assert {run.info.status for run in tracked} == {"FINISHED"}
    (version,) = mlflow.search_model_versions(f"name = '{name}'")
    assert str(mlflow.get_model_version_by_alias(name, "champion").version) == str(version.version)
