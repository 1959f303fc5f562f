"""Runs the commands of `configs/stacks/*.sh`, just as they stand there, against the tests' ZenML store."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from zenml_cli import cli

from support.paths import ROOT

SECRET = "a-secret-of-the-tests"
ENVIRONMENT = {
    "S3_PATH": "s3://tests/posttrain",
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_TRACKING_USERNAME": "a-user",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "REGISTRY": "127.0.0.1:9/tests",
    "KUBERNETES_CONTEXT": "a-context",
    "SAGEMAKER_EXECUTION_ROLE": "arn:aws:iam::123456789012:role/run",
    "SAGEMAKER_SCHEDULER_ROLE": "arn:aws:iam::123456789012:role/schedule",
}


@contextmanager
def registered(name: str, folder: Path, **environment: str) -> Iterator[None]:
    """Runs a file with a shell that notes what it would have told `zenml`, then tells it; afterwards all of it is deleted.

    Args:
        folder: an empty one.
        environment: in place of what `ENVIRONMENT` has; an empty value stands for a variable that is not set.
    """
    told = folder / "told.jsonl"
    note = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(told)!r}, 'a'))"
    stand_in = folder / "zenml"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "{note}" "$@"\n')
    stand_in.chmod(0o755)
    variables = {key: value for key, value in {**ENVIRONMENT, **environment}.items() if value}
    subprocess.run(
        ["sh", str(ROOT / "configs" / "stacks" / f"{name}.sh")],
        env={**variables, "PATH": f"{folder}:/usr/bin:/bin"},
        check=True,
    )
    commands = [json.loads(line) for line in told.read_text().splitlines()]
    try:
        for command in commands:
            _zenml(*command)
        yield
    finally:
        for kind, _, made, *_ in reversed(commands):
            _zenml(kind, "delete", *(["--yes"] if kind in ("stack", "secret") else []), made)


def _zenml(*command: str) -> None:
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
