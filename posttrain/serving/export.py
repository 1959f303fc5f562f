"""Exports a checkpoint for use with other software: weights for transformers, tokenizer, stop tokens, model card, checksums.

The destination is a folder, S3 or the Hub. Exports are atomic: readers see the old export until the new one is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from posttrain.chat.template import Chat
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import base_source, resolve_base
from posttrain.models.checkpoint import Checkpoint, file_digest
from posttrain.models.loading import load_chat, load_model
from posttrain.models.verifier_model import load_verifier
from posttrain.reporting.run_report import RunReport
from posttrain.serving.portable_files import make_portable
from posttrain.storage import s3 as storage

CHECKSUMS = "SHA256SUMS"
LINEAGE = "lineage.json"
POINTER = "latest.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ExportedModel:
    """The model to export, with its documentation."""

    checkpoint: Checkpoint
    section: ModelSection
    """Names the base."""
    card: ModelCard
    report: RunReport | None = None
    """Of the run that made the model; the export then includes its lineage."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    adapter: bool = False
    """Keep an adapter as it is. Otherwise it is merged in fp32 and rounded once at the end."""
    dtype: Dtype = "auto"
    """Of the weights; auto: the base's own."""
    private: bool = True
    """Visibility of a repository that is created on the Hub."""


def export(model: ExportedModel, dest: str, options: ExportOptions = ExportOptions()) -> str:
    """Write a model to a destination, and return where it is: a folder, `s3://…/versions/…`, or the commit on the Hub.

    Args:
        dest: a folder, `s3://bucket/folder`, or `hf://organisation/name`.

    Raises:
        UserError: the destination cannot be written or contains other files, or the checkpoint has no adapter to keep.
    """
    if options.adapter and model.checkpoint.manifest.kind != "adapter":
        raise UserError(f"{model.checkpoint.path}: contains full weights, not an adapter: omit --adapter")
    if "://" in dest:
        with tempfile.TemporaryDirectory(prefix="posttrain-export-") as scratch:
            folder = Path(scratch)
            write_model(model, folder, options)
            return to_s3(folder, dest) if dest.startswith("s3://") else to_hub(folder, dest, private=options.private)
    target = Path(dest).expanduser().absolute()
    check_is_ours(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        write_model(model, folder, options)
        replace_folder(folder, target)
    return str(target)


def write_model(exported: ExportedModel, folder: Path, options: ExportOptions) -> None:
    """Fill an empty folder. The checksums are written last."""
    checkpoint, section = exported.checkpoint, exported.section
    base = checkpoint.manifest.base if checkpoint.manifest.kind == "full" else resolve_base(section)
    chat = load_chat(base, section.model_copy(update={"chat_template": None}), checkpoint)
    chat.tokenizer.save_pretrained(folder)
    if options.adapter:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(checkpoint.path / name, folder / name)
        if checkpoint.manifest.stage != "verifier":
            _stops(chat, GenerationConfig()).save_pretrained(folder)
    else:
        # In fp32 and never in 4 bit, whatever it was trained over: a merge is one rounding.
        method = "lora" if checkpoint.manifest.kind == "adapter" else "full"
        exact = section.model_copy(update={"method": method, "precision": "fp32"})
        is_verifier = checkpoint.manifest.stage == "verifier"
        model = (load_verifier if is_verifier else load_model)(base, exact, checkpoint)
        if method == "lora":
            model = model.merge_and_unload(safe_merge=True)
        assert isinstance(model, PreTrainedModel)
        model.to(DTYPES[options.dtype] if options.dtype != "auto" else _own_dtype(checkpoint, section))
        if not is_verifier:
            model.generation_config = _stops(chat, model.generation_config)
        model.save_pretrained(folder)
    exported.card.save(folder / "README.md")
    if exported.report is not None:
        lineage = exported.report.lineage.model_dump_json(indent=2, exclude={"config"})
        (folder / LINEAGE).write_text(lineage, encoding="utf-8")
    make_portable(folder)
    sums = "".join(f"{file_digest(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
    (folder / CHECKSUMS).write_text(sums, encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written with 0600, which a server under another user cannot read


def _stops(chat: Chat, generation: GenerationConfig) -> GenerationConfig:
    """Return the generation config with all stop tokens, without which generation would not stop."""
    generation.eos_token_id = chat.stop_ids
    generation.pad_token_id = chat.tokenizer.pad_token_id
    return generation


def _own_dtype(checkpoint: Checkpoint, section: ModelSection) -> torch.dtype:
    """Return the dtype that the base is published in, or fp32 if its config does not say."""
    source, options = base_source(checkpoint.manifest.base, section)
    dtype = AutoConfig.from_pretrained(source, **options).dtype
    return dtype if dtype in DTYPES.values() else torch.float32


def check_is_ours(folder: Path) -> None:
    """Check that a folder does not exist, is empty or has only the files of an earlier export.

    Raises:
        UserError: the folder has other files, which an export would delete.
    """
    if folder.is_file():
        raise UserError(f"{folder}: is a file: name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    sums = folder / CHECKSUMS
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for file in sorted(folder.iterdir()):
        if file != sums and (not file.is_file() or file_digest(file) != expected.get(file.name)):
            raise UserError(
                f"{folder}: contains {file.name}, which is not part of an export and would be deleted: name another folder"
            )


def replace_folder(new: Path, target: Path) -> None:
    """Replace a folder by another one on the same file system. If this fails, the old folder is restored."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_name("old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def to_s3(folder: Path, dest: str) -> str:
    """Upload an export as a version named by its content, then point `latest.json` to it, and return the version's URI."""
    version = file_digest(folder / CHECKSUMS)[:16]
    root = dest.rstrip("/")
    uri = f"{root}/versions/{version}"
    for file in sorted(folder.iterdir()):
        storage.upload_file(file, f"{uri}/{file.name}")
    files = sorted(file.name for file in folder.iterdir())
    storage.put_text(json.dumps({"version": version, "uri": uri, "files": files}, indent=2), f"{root}/{POINTER}")
    return uri


def to_hub(folder: Path, dest: str, *, private: bool) -> str:
    """Upload an export as one commit and return its URL. The repository is created if it does not exist."""
    name = dest.removeprefix("hf://")
    if not dest.startswith("hf://") or name.count("/") != 1:
        raise UserError(
            f"{dest}: is not a valid destination: name a folder, s3://bucket/folder or hf://organisation/name"
        )
    try:
        validate_repo_id(name)
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.name, str(file)) for file in sorted(folder.iterdir())
        ]
        # Old weights and configs would be loaded together with the new ones.
        operations += [
            CommitOperationDelete(name)
            for name in set(api.list_repo_files(name)) - {file.name for file in folder.iterdir()}
            if name.endswith((".safetensors", ".json"))
        ]
        commit = api.create_commit(name, operations, commit_message=f"Export {file_digest(folder / CHECKSUMS)[:16]}")
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{dest}: the upload to the Hub failed ({reason}): check the name, the network and HF_TOKEN"
        ) from error
    return str(commit.commit_url)
