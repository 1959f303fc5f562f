"""A checkpoint as others use it: weights for plain transformers, tokenizer, stop tokens, model card, checksums.

It goes to a folder, to S3, or to the Hub, whole or not at all: a reader of the destination sees the new one when every byte of
it has arrived, and until then the old one.
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
from huggingface_hub.utils._validators import validate_repo_id
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from posttrain.chat.template import Chat
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import base_source, resolve_base
from posttrain.models.checkpoint import Checkpoint, file_digest
from posttrain.models.loading import load_chat, load_model
from posttrain.reporting.run_report import RunReport
from posttrain.storage import s3 as storage

CHECKSUMS = "SHA256SUMS"
LINEAGE = "lineage.json"
POINTER = "latest.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ExportedModel:
    """What an export writes."""

    checkpoint: Checkpoint
    section: ModelSection
    """Names the base."""
    card: ModelCard
    report: RunReport | None = None
    """Of the run that made the model; the export then includes its lineage."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported."""

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
        UserError: the destination cannot be written or holds something else, or the checkpoint has no adapter to keep.
    """
    if options.adapter and model.checkpoint.manifest.kind == "full":
        raise UserError(f"{model.checkpoint.path}: holds whole weights, no adapter to keep: leave --adapter out")
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
        _stops(chat, GenerationConfig()).save_pretrained(folder)
    else:
        # In fp32 and never in 4 bit, whatever it was trained over: a merge is one rounding.
        method = "full" if checkpoint.manifest.kind == "full" else "lora"
        exact = section.model_copy(update={"method": method, "precision": "fp32"})
        model = load_model(base, exact, checkpoint)
        if method == "lora":
            model = model.merge_and_unload(safe_merge=True)
        assert isinstance(model, PreTrainedModel)
        model.to(DTYPES[options.dtype] if options.dtype != "auto" else _own_dtype(checkpoint, section))
        model.generation_config = _stops(chat, model.generation_config)
        model.save_pretrained(folder)
    exported.card.save(folder / "README.md")
    if exported.report is not None:
        lineage = exported.report.lineage.model_dump_json(indent=2, exclude={"config"})
        (folder / LINEAGE).write_text(lineage, encoding="utf-8")
    sums = "".join(f"{file_digest(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
    (folder / CHECKSUMS).write_text(sums, encoding="utf-8")


def _stops(chat: Chat, generation: GenerationConfig) -> GenerationConfig:
    """The settings of generation with every token that may end a response: without them a model talks on for ever."""
    generation.eos_token_id = chat.stop_ids
    generation.pad_token_id = chat.tokenizer.pad_token_id
    return generation


def _own_dtype(checkpoint: Checkpoint, section: ModelSection) -> torch.dtype:
    """What the base is published in, and fp32 where it does not say."""
    source, options = base_source(checkpoint.manifest.base, section)
    dtype = AutoConfig.from_pretrained(source, **options).dtype
    return dtype if dtype in DTYPES.values() else torch.float32


def check_is_ours(folder: Path) -> None:
    """Nothing, if a folder is free, or holds an export and nothing else.

    Raises:
        UserError: there is something in it that no export has written.
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
                f"{folder}: holds {file.name}, which no export has written and a new one would delete: name another folder"
            )


def replace_folder(new: Path, target: Path) -> None:
    """Puts a folder in the place of another of the same file system; the old one comes back if that fails."""
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
    """Uploads an export as a version of its own, named by its content, and only then points `latest.json` to it."""
    version = file_digest(folder / CHECKSUMS)[:16]
    root = dest.rstrip("/")
    uri = f"{root}/versions/{version}"
    for file in sorted(folder.iterdir()):
        storage.upload_file(file, f"{uri}/{file.name}")
    files = sorted(file.name for file in folder.iterdir())
    storage.put_text(json.dumps({"version": version, "uri": uri, "files": files}, indent=2), f"{root}/{POINTER}")
    return uri


def to_hub(folder: Path, dest: str, *, private: bool) -> str:
    """Uploads an export as one commit, to a repository that is made where there is none."""
    name = dest.removeprefix("hf://")
    if not dest.startswith("hf://") or name.count("/") != 1:
        raise UserError(f"{dest}: name a folder, s3://bucket/folder or hf://organisation/name")
    try:
        validate_repo_id(name)
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.name, str(file)) for file in sorted(folder.iterdir())
        ]
        # Weights and settings of an earlier export would still be loaded beside the new ones.
        operations += [
            CommitOperationDelete(name)
            for name in set(api.list_repo_files(name)) - {file.name for file in folder.iterdir()}
            if name.endswith((".safetensors", ".json"))
        ]
        commit = api.create_commit(name, operations, commit_message=f"Export {file_digest(folder / CHECKSUMS)[:16]}")
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{dest}: the Hub does not take it ({reason}): check the name, the network and HF_TOKEN"
        ) from error
    return str(commit.commit_url)
