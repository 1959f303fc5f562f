"""Checkpoint: a directory of weights and tokenizer, what it applies to, where it came from, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.errors import UserError

MANIFEST = "manifest.json"
HISTORY = "history.json"
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})


class Base(BaseModel):
    """The model that training starts from: its name, the revision the name stood for, and a digest of its content."""

    model_config = ConfigDict(frozen=True)

    id: str
    revision: str | None
    digest: str
    template_digest: str | None = None
    """Of the chat template's file, where the config names one: an edited template is another model."""


class Manifest(BaseModel):
    """What a checkpoint is. Written last, so a directory without one is no checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["sft", "dpo"]
    kind: Literal["full", "adapter"]
    """`full`: complete weights. `adapter`: LoRA weights, to be applied to `base`."""
    base: Base
    parent: str | None
    """Digest of the checkpoint that training started from; None where it was the base."""
    template: str
    stop_ids: list[int]
    beta: float | None = None
    """Of DPO's loss; None for SFT."""
    batches: str = ""
    """How they were made in training: `flat`, or `padded` and why."""
    metrics: dict[str, float]
    files: dict[str, str]
    """sha256 of every file beside the manifest, by name."""
    digest: str
    """sha256 over the names and digests of all files but the training history: the identity of the model."""


@dataclass(frozen=True)
class Checkpoint:
    """A directory that holds a trained model."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """sha256 of the model: same digest, same weights, tokenizer and template."""
        return self.manifest.digest

    @property
    def history(self) -> list[dict[str, float]]:
        """What the trainer logged, one dict a logging step, in order."""
        path = self.path / HISTORY
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """The checkpoint in a directory, once every file has been compared with its digest.

        Raises:
            UserError: no checkpoint, a file missing, changed, added or a link, or of a kind that could run code.
        """
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise UserError(f"{path}: not a checkpoint of this project ({MANIFEST} is missing or broken)") from error
        found = {file.name for file in path.iterdir()} - {MANIFEST}
        for name in sorted(found ^ set(manifest.files)):
            what = "is missing" if name in manifest.files else "is not part of the checkpoint"
            raise UserError(f"{path / name}: {what}: fetch or train the checkpoint again")
        check_names(manifest.files)
        for file in path.iterdir():
            if file.is_symlink() or not file.is_file():
                raise UserError(f"{file}: is a link or a folder, which may lead anywhere: fetch the checkpoint again")
        for name, expected in manifest.files.items():
            if file_digest(path / name) != expected:
                raise UserError(f"{path / name}: was changed or torn since it was written: fetch or train it again")
        return cls(path, manifest)


def seal(path: Path, history: list[dict[str, float]], **about: object) -> Checkpoint:
    """The finished checkpoint: writes the training history and the manifest of a directory with weights and tokenizer.

    Args:
        about: the fields of `Manifest` that training knows: stage, kind, base, parent, template, stop_ids, metrics.
    """
    (path / HISTORY).write_text(json.dumps(history, indent=1), encoding="utf-8")
    files = {file.name: file_digest(file) for file in sorted(path.iterdir())}
    check_names(files)
    identity = "".join(f"{name} {digest}\n" for name, digest in files.items() if name != HISTORY)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    manifest = Manifest.model_validate({**about, "files": files, "digest": digest})
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Checkpoint(path, manifest)


def check_names(names: Iterable[str]) -> None:
    """Refuses names that leave the checkpoint's folder and files that could run code when loaded.

    Raises:
        UserError: with the first such name.
    """
    for name in names:
        if Path(name).name != name or Path(name).suffix not in ALLOWED_SUFFIXES:
            raise UserError(
                f"{name}: may not be in a checkpoint, which holds only {', '.join(sorted(ALLOWED_SUFFIXES))}"
            )


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
