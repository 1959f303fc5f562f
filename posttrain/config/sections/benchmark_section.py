"""Settings of one benchmark."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from posttrain.config.sections.section import Section


class BenchmarkSection(Section):
    """A benchmark: a task of lm-evaluation-harness, or a YAML file that describes one."""

    task: str = Field(
        min_length=1,
        description="task or group of tasks of lm-evaluation-harness, such as `gsm8k` or `mmlu`, or the path of a YAML file with a "
        "task of your own, whose data may be local files",
    )
    limit: int | None = Field(
        None, ge=1, description="number of items, the first of each task; null: all; fewer items give wider intervals"
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="number of solved examples in each prompt; null: as the task says"
    )
    apply_chat_template: bool = Field(
        False, description="whether each model reads the items as chat messages through its chat template"
    )
    metric: str | None = Field(
        None,
        min_length=1,
        description="metric that is compared and that the gate looks at, such as `acc_norm` or, with a filter, "
        "`exact_match,flexible-extract`; null: the task's first one that is a mean over items",
    )

    @property
    def is_file(self) -> bool:
        """Whether the task is described by a YAML file."""
        return self.task.endswith((".yaml", ".yml"))

    @property
    def name(self) -> str:
        """The name in reports: that of the task, or of the file without its suffix."""
        return Path(self.task).stem if self.is_file else self.task
