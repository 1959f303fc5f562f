"""What a pipeline run leaves in MLflow: one parent run and a nested run a training stage.

    tracker = Tracker(default_tracking_uri(), "dpo_pipeline", pipeline_run="6f1c…", run_name="dpo-2026_11_21")
    with tracker.stage("train_dpo") as stage:
        stage.log_params({"dpo": {"beta": 0.1}})
        trainer.add_callback(metrics_callback(stage))

A stage gathers its records, and a thread of its own carries them to the server every two seconds: a slow server does
not slow the training, and a dead one does not end it. While the server is away the records are kept; what it has not
taken by the end is written to a file.

Every step writes its state into a tag of its run and of the parent run: `posttrain.step.train_dpo` is RUNNING, with
the process it runs in, then FINISHED, FAILED or KILLED. The state of a run follows from those of its steps. A step
whose process has died is found out when the next stage opens on the same host. What goes on in other hosts cannot be
seen from here: whoever knows it tells the tracker (`Tracker.ended`).
"""

from posttrain.tracking.connection import connect, reason, without_password
from posttrain.tracking.runs import PARENT_TAG, PIPELINE_RUN_TAG, STAGE_TAG
from posttrain.tracking.tracked_stage import (
    OUTAGE_TAG,
    UI_PORT,
    TrackedStage,
    Tracker,
    default_tracking_uri,
    metrics_callback,
    package_versions,
    published_metrics,
    send,
)

__all__ = [
    "OUTAGE_TAG",
    "PARENT_TAG",
    "PIPELINE_RUN_TAG",
    "STAGE_TAG",
    "UI_PORT",
    "TrackedStage",
    "Tracker",
    "connect",
    "default_tracking_uri",
    "metrics_callback",
    "package_versions",
    "published_metrics",
    "reason",
    "send",
    "without_password",
]
