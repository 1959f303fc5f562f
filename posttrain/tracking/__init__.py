"""MLflow tracking: one parent run per pipeline run, with a nested run for each training stage.

    tracker = Tracker(default_tracking_uri(), "dpo_pipeline", pipeline_run="6f1c…", run_name="dpo-2026_11_21")
    with tracker.stage("train_dpo") as stage:
        stage.log_params({"dpo": {"beta": 0.1}})
        trainer.add_callback(metrics_callback(stage))

A stage collects records, and a background thread sends them to the server every two seconds. So a slow server does not slow
the training, and an outage does not end it. Records are kept during an outage; those not sent by the end are written to a file.

Each step writes its state into a tag of its run and of the parent run: `posttrain.step.train_dpo` is RUNNING with the process,
then FINISHED, FAILED or KILLED. The status of a run follows from the states of its steps. A step whose process died is detected
when the next stage opens on the same host. For steps on other hosts, `Tracker.ended` must return their state.
"""

from posttrain.tracking.connection import checked_uri, connect, reason
from posttrain.tracking.dataset_origin import DatasetOrigin
from posttrain.tracking.runs import PARENT_TAG, PIPELINE_RUN_TAG, STAGE_TAG, delete_runs
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
    "DatasetOrigin",
    "TrackedStage",
    "Tracker",
    "checked_uri",
    "connect",
    "default_tracking_uri",
    "delete_runs",
    "metrics_callback",
    "package_versions",
    "published_metrics",
    "reason",
    "send",
]
