"""Checkpoint: a directory with weights, tokenizer and a manifest of their origin and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from posttrain.errors import UserError

MANIFEST = "manifest.json"
HISTORY = "history.json"
NOT_PART_OF_THE_MODEL = {"stage", "parent", "beta", "batches", "metrics", "files", "digest"}
"""Fields of the manifest that say where a model comes from, and do not change what it answers."""
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})


class Base(BaseModel):
    """The model that training starts from: its name, the resolved revision, and a digest of its content."""

    model_config = ConfigDict(frozen=True)

    id: str
    revision: str | None
    digest: str
    template_digest: str | None = None
    """Digest of the chat template's file if the settings name one. A model with an edited template is a different model."""


class Manifest(BaseModel):
    """Description of a checkpoint. Written last, so a directory without a manifest is incomplete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["sft", "dpo", "verifier"]
    kind: Literal["full", "adapter", "base"]
    """`full`: complete weights. `adapter`: LoRA weights that apply to `base`. `base`: no weights, the model is `base` itself."""
    base: Base
    parent: str | None
    """Digest of the checkpoint that training started from; None for the base model."""
    template: str
    template_kwargs: dict[str, Any] = {}
    """Values of the template's variables, which the saved template contains."""
    template_date: date | None = None
    """Date that the saved template prints, if it has a clock."""
    stop_ids: list[int]
    beta: float | None = None
    """Beta of the DPO loss; None for SFT."""
    max_length: int | None = None
    """Of a verifier: prompt and answer are cut to this number of tokens before they are scored."""
    max_prompt_length: int | None = None
    """Of a verifier: prompts are cut to this number of tokens."""
    pad_id: int | None = None
    """Of a verifier: the pad token. A score is read at the last token that is not this one."""
    batches: str = ""
    """Layout of the training batches: `flat`, or `padded` with the reason."""
    metrics: dict[str, float]
    files: dict[str, str]
    """sha256 of every file except the manifest, by name."""
    digest: str
    """Identifies the model: sha256 over its files except the training history, its base, template and stop tokens."""

    def identity(self) -> str:
        """Return the digest that belongs to the other fields.

        A new field with a default value leaves the digests of earlier checkpoints unchanged.
        """
        about = self.model_dump(mode="json", exclude=NOT_PART_OF_THE_MODEL | {"base"}, exclude_defaults=True)
        base = {"digest": self.base.digest, "template": self.base.template_digest}  # its name may be a path
        files = {name: digest for name, digest in self.files.items() if name != HISTORY}
        return hashlib.sha256(json.dumps([about, base, files], sort_keys=True).encode()).hexdigest()

    def is_intact(self) -> bool:
        """Return whether the digest belongs to the other fields. Earlier releases computed it from the files alone."""
        files = "".join(f"{name} {digest}\n" for name, digest in self.files.items() if name != HISTORY)
        return self.digest in (self.identity(), hashlib.sha256(files.encode()).hexdigest())


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a trained model."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """sha256 of the model. Equal digests mean equal weights, tokenizer, template, stop tokens and base."""
        return self.manifest.digest

    @property
    def history(self) -> list[dict[str, float]]:
        """The trainer's log, one dict per logging step, in order."""
        path = self.path / HISTORY
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Load the checkpoint in a directory and compare every file with its digest.

        Raises:
            UserError: there is no checkpoint; or a file is missing, changed, added, a link, or of a type that can run code.
        """
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # no text, or no manifest
            raise UserError(f"{path}: not a checkpoint of this project ({MANIFEST} is missing or invalid)") from error
        found = {file.name for file in path.iterdir()} - {MANIFEST}
        for name in sorted(found ^ set(manifest.files)):
            what = "is missing" if name in manifest.files else "is not part of the checkpoint"
            raise UserError(f"{path / name}: {what}: fetch or train the checkpoint again")
        check_names(manifest.files)
        for file in path.iterdir():
            if file.is_symlink() or not file.is_file():
                raise UserError(
                    f"{file}: is a link or a folder, which a checkpoint may not contain: fetch the checkpoint again"
                )
        for name, expected in manifest.files.items():
            if file_digest(path / name) != expected:
                raise UserError(
                    f"{path / name}: was changed or damaged after it was written: fetch or train the checkpoint again"
                )
        if not manifest.is_intact():
            raise UserError(
                f"{path / MANIFEST}: was changed or damaged after it was written: fetch or train the checkpoint again"
            )
        return cls(path, manifest)


def seal(path: Path, history: list[dict[str, float]], **about: object) -> Checkpoint:
    """Write history and manifest into a directory with weights and tokenizer, and return the finished checkpoint.

    Args:
        history: the trainer's log.
        about: the remaining fields of `Manifest`: stage, kind, base, parent, template, stop_ids, metrics.
    """
    (path / HISTORY).write_text(json.dumps(history, indent=1), encoding="utf-8")
    files = {file.name: file_digest(file) for file in sorted(path.iterdir())}
    check_names(files)
    unsigned = Manifest.model_validate({**about, "files": files, "digest": ""})
    manifest = unsigned.model_copy(update={"digest": unsigned.identity()})
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Checkpoint(path, manifest)


def check_names(names: Iterable[str]) -> None:
    """Refuse names outside the checkpoint's folder and types of files that can run code when loaded.

    Raises:
        UserError: names the first such file.
    """
    for name in names:
        if Path(name).name != name or Path(name).suffix not in ALLOWED_SUFFIXES:
            raise UserError(
                f"{name}: may not be in a checkpoint, only files of type {', '.join(sorted(ALLOWED_SUFFIXES))} may"
            )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
