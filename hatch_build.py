"""The build hook of hatchling that adds the files of a project to the wheel."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProjectFilesHook(BuildHookInterface):  # type: ignore[type-arg]
    """Copy the files that pyproject.toml lists as `project` to posttrain/project/ in the wheel.

    An editable installation gets no copies: it reads the repository's files.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel that is being built."""
        if version != "editable":
            build_data["force_include"].update({name: f"posttrain/project/{name}" for name in self.config["project"]})
