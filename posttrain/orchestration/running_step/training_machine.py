"""Whether a step runs on the machine that trains."""

from __future__ import annotations

from zenml import get_step_context

TRAINING = ("train_sft", "train_dpo")


def trains_here() -> bool:
    """Return whether the run's training steps ask for the same machine as the step that calls this.

    On a cluster they usually ask for a GPU, or have a step operator, which the other steps have not.
    """
    context = get_step_context()
    snapshot = context.pipeline_run.snapshot
    if snapshot is None:
        return False
    machines = {
        name: (step.config.step_operator, step.config.settings)
        for name, step in snapshot.step_configurations.items()
        if name in (*TRAINING, context.step_name)
    }
    own = machines.get(context.step_name)
    return all(machine == own for machine in machines.values())
