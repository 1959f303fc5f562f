"""Exports of registered models for an endpoint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from posttrain.errors import UserError
from posttrain.models.checkpoint import MANIFEST
from posttrain.orchestration.model_versions.versions import find_artifact, find_version
from posttrain.reporting.model_card import model_card
from posttrain.serving.endpoint import ServedModel
from posttrain.serving.export import ExportedModel, export


class ServedVersions:
    """Exports a model for an endpoint, and later the one that is in production by then."""

    def __init__(self, name: str | None, scratch: Path) -> None:
        """Create an object without looking at any model.

        Args:
            name: a version as for `find_version`; None for the model in production.
            scratch: folder for the exports.
        """
        self._name, self._scratch = name, scratch
        self._current: str | None = None
        self._n_exports = 0

    def export(self) -> ServedModel:
        """Return the model, exported. The folder of an export is served as it is.

        Raises:
            UserError: there is no such model.
        """
        if self._name is not None and (folder := Path(self._name).expanduser()).is_dir() and not _is_checkpoint(folder):
            return _exported(folder.resolve())
        if self._name is None or not Path(self._name).expanduser().is_dir():
            self._current = str(find_artifact(self._name)[0].id)
        version = find_version(self._name)
        # The version's number is left out, so that clients need no change when another version follows.
        target = self._scratch / str(self._n_exports) / re.sub(r"-\d+$", "", version.name)
        card = model_card(version.name, version.checkpoint.manifest, version.report, adapter=False)
        export(ExportedModel(version.checkpoint, version.model, card, version.report), str(target))
        for old in self._scratch.iterdir():
            if old.name not in (str(self._n_exports), str(self._n_exports - 1)):  # the last one may still answer
                shutil.rmtree(old)
        self._n_exports += 1
        return ServedModel(target, version.name)

    def changed(self) -> ServedModel | None:
        """Return the model that this name means now, exported; None if it means the same as before."""
        return None if str(find_artifact(self._name)[0].id) == self._current else self.export()


def _is_checkpoint(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _exported(folder: Path) -> ServedModel:
    if (folder / "config.json").is_file():
        return ServedModel(folder, folder.name)
    what = (
        "contains an adapter without its base"
        if (folder / "adapter_config.json").is_file()
        else "contains no exported model"
    )
    raise UserError(f"{folder}: {what}: name the folder that `posttrain export VERSION FOLDER` wrote, or a version")
