"""The model that DPO or a verifier starts from (`dpo.start`, `verifier.start`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from zenml.client import Client
from zenml.models import ArtifactVersionResponse

from posttrain.config import ModelSection, RunConfig
from posttrain.errors import UserError
from posttrain.models.checkpoint import MANIFEST, Checkpoint
from posttrain.models.memory import is_hub_id
from posttrain.orchestration.model_versions.versions import CHECKPOINT, find_artifact

REMEDY = (
    "name a Hub model (`organisation/name`, `organisation/name@revision`), a folder with a model or a checkpoint, a model "
    "version (`demo:production`, `demo:3`) or a checkpoint version (`sft_checkpoint:3` or `3`); list versions with "
    "`zenml model version list` and `zenml artifact version list`"
)


@dataclass(frozen=True)
class DpoStart:
    """What such a setting names: a checkpoint of this project, or any other model, which is then the base of the run."""

    base: str
    """The model itself, or the base of the checkpoint."""
    revision: str | None
    checkpoint: Path | ArtifactVersionResponse | None = None
    """A folder or an artifact version; None for another model."""
    kind: str | None = None
    """Of the checkpoint: `full`, `adapter` or `base`."""

    def load(self) -> Checkpoint | None:
        """Return the checkpoint; None for another model."""
        if isinstance(self.checkpoint, Path):
            return Checkpoint.load(self.checkpoint)
        if self.checkpoint is None:
            return None
        loaded = self.checkpoint.load()
        assert isinstance(loaded, Checkpoint)
        return loaded

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"the model {self.base}"
        shown = str(self.checkpoint)
        if isinstance(self.checkpoint, ArtifactVersionResponse):
            shown = f"{self.checkpoint.artifact.name}:{self.checkpoint.version}"
        kinds = {"full": "all weights", "adapter": "an adapter", "base": "the base itself"}
        return f"the checkpoint {shown} ({kinds.get(str(self.kind), self.kind)} of {self.base})"


def start_of(config: RunConfig) -> tuple[ModelSection, DpoStart | None]:
    """Return the model settings of a run, with the base of what training starts from, and that start if the config names one.

    Raises:
        UserError: there is no such model, or the settings do not fit it.
    """
    if config.start is None:
        return config.model, None
    setting, name = config.start
    start, model = find_start(name, setting), config.model
    if model.base not in ("demo", start.base) and not _same_folder(model.base, start.base):
        raise UserError(
            f"model.base: {model.base} is not the base of {setting}, {start}: set model.base to {start.base}, or remove the setting"
        )
    if start.kind == "adapter" and model.method == "full" and not config.verifier:  # which makes it part of the weights
        raise UserError(
            f"model.method: full cannot continue from {setting}, {start}: set it to lora, or start from an export of that model"
        )
    # A revision of the config is one of its base, which names the same model.
    return model.model_copy(update={"base": start.base, "revision": start.revision or model.revision}), start


def reference_of(config: RunConfig, start: DpoStart | None) -> ArtifactVersionResponse | None:
    """Return the SFT checkpoint that `dpo.reference: sft` means; None if the reference is what DPO starts from.

    It is found by the digests of the parents: DPO may have gone on from DPO several times.

    Raises:
        UserError: the start is no checkpoint of a run, or one of its parents was deleted.
    """
    if start is None or config.dpo.reference == "start":
        return None
    found = start.checkpoint
    if not isinstance(found, ArtifactVersionResponse):
        raise UserError(
            f"dpo.reference: sft needs a dpo.start that a run of this project trained, and {start} is none: name a model version "
            "(`demo:production`), or set dpo.reference to start"
        )
    while found.artifact.name != "sft_checkpoint":
        parent = found.run_metadata.get("parent")
        earlier = (
            parent
            and Client()
            .list_artifact_versions(
                data_type=CHECKPOINT, run_metadata=f"digest:{parent}", sort_by="asc:created", size=1, hydrate=True
            )
            .items
        )
        if not earlier:
            raise UserError(
                f"dpo.reference: sft: the checkpoint that {found.artifact.name}:{found.version} was trained from is not in this "
                "store: set dpo.reference to start"
            )
        found = earlier[0]
    return found


def find_start(name: str, setting: str = "dpo.start") -> DpoStart:
    """Return the model that a config names.

    Args:
        name: a Hub id, a folder, the id of an artifact version, or a name and its version (`demo:production`,
            `sft_checkpoint:3`, or just `3` for an SFT checkpoint).
        setting: that names it, for messages.

    Raises:
        UserError: there is no such model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder, setting)
    if name == "demo":
        return DpoStart(name, None)
    model, _, revision = name.partition("@")
    if not _is_id(name) and is_hub_id(model):
        return DpoStart(model, revision or None)
    try:
        found, _ = find_artifact(f"sft_checkpoint:{name}" if name.isdecimal() else name)
    except UserError as error:
        raise UserError(f"{setting}: {name!r} is not a model: {REMEDY}") from error
    about = found.run_metadata
    return DpoStart(str(about["base"]), str(about.get("revision") or "") or None, found, str(about["kind"]))


def _is_id(name: str) -> bool:
    """Return whether a name is the number or the id of an artifact version, which would be valid names on the Hub."""
    try:
        return name.isdecimal() or bool(UUID(name))
    except ValueError:
        return False


def _in_folder(folder: Path, setting: str) -> DpoStart:
    """Return the checkpoint or the transformers model in a folder."""
    if (folder / MANIFEST).is_file():
        manifest = Checkpoint.load(folder).manifest
        return DpoStart(manifest.base.id, manifest.base.revision, folder.resolve(), manifest.kind)
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors")):
        about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = about.get("base_model_name_or_path")
        raise UserError(
            f"{setting}: {folder} is a PEFT adapter (of {base}) that this project did not train: merge it into its base with "
            "PEFT's merge_and_unload, and name the folder of the merged model"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{setting}: {folder} contains neither a checkpoint ({MANIFEST}) nor a model (config.json): {REMEDY}"
        )
    return DpoStart(str(folder), None)


def _same_folder(one: str, other: str) -> bool:
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_dir() and second.is_dir() and first.samefile(second)
