"""The base model: resolving the name in the settings, and finding its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from posttrain.config import ModelSection
from posttrain.data.demo import base_model as demo_base
from posttrain.data.demo import pairs as demo
from posttrain.errors import UserError
from posttrain.models.base_files import files_of
from posttrain.models.checkpoint import Base, file_digest
from posttrain.models.memory import local_base
from posttrain.storage.cache import cache_dir

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}
"""Options for loading a folder. Without them transformers asks on the terminal whether to run code from it."""


def resolve_base(section: ModelSection) -> Base:
    """Return the base model of the settings, pinned to a commit (Hub id) or to a digest of its files (folder).

    Raises:
        UserError: the name is neither a folder with a model nor a Hub id that is reachable or cached.
    """
    folder = _local_base(section)
    if folder is not None:
        names = files_of(folder, section.base)
        _refuse_adapter(section.base, names, folder)
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UserError(
                f"model.base: {section.base} does not contain config.json and *.safetensors: name the folder of a transformers "
                "model (convert other weights with save_pretrained)"
            )
        lines = "".join(f"{name} {file_digest(folder / name)}\n" for name in names)
        digest, commit = hashlib.sha256(lines.encode()).hexdigest(), None
    else:
        commit = _commit_on_hub(section)
        digest = f"hub:{section.base}@{commit}"
    name = section.base if folder is None or section.base == "demo" else str(folder.resolve())
    template = Path(section.chat_template or "")
    template_digest = file_digest(template) if template.suffix == ".jinja" and template.is_file() else None
    return Base(id=name, revision=commit, digest=digest, template_digest=template_digest)


def _refuse_adapter(base: str, names: Collection[str], folder: Path | None = None) -> None:
    """Refuse a folder or repository with an adapter, which transformers would load without a word."""
    if "adapter_config.json" not in names:
        return
    of = ""
    if folder is not None:
        with contextlib.suppress(ValueError, AttributeError):
            of = (
                json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
                or ""
            )
    if any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names):
        raise UserError(
            f"model.base: {base} has an adapter (adapter_config.json) beside the model's own weights, and which is meant is not "
            "clear: move the adapter to another folder, or merge it into the weights "
            "(`PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(NEW)`)"
        )
    raise UserError(
        f"model.base: {base} is an adapter{f' of {of}' if of else ''}, not a model: merge it into its base and name the result "
        "(`PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(NEW)`), or, if this project trained it, "
        "name the base here and the adapter's checkpoint in dpo.start"
    )


def _local_base(section: ModelSection) -> Path | None:
    """Return the folder of a local base model; None for a Hub id."""
    return demo_folder() if section.base == "demo" else local_base(section.base)


def demo_folder() -> Path:
    """Return the folder of the demo's base model, which is built on first use."""
    sources = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (demo, demo_base))
    folder = cache_dir() / f"demo-base-{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            built = demo_base.build_base(Path(scratch) / "base")
            with contextlib.suppress(OSError):  # another process was faster; both built the same bytes
                built.rename(folder)
    return folder


def _commit_on_hub(section: ModelSection) -> str:
    """Return the commit of a Hub id and revision, from the Hub or else from the local cache."""
    try:
        found = HfApi().model_info(section.base, revision=section.revision, timeout=20)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = try_to_load_from_cache(section.base, "config.json", revision=section.revision)
        if isinstance(cached, str):
            folder = Path(cached).parent
            _refuse_adapter(section.base, [file.name for file in folder.iterdir()], folder)
            return folder.name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {section.base} at revision {section.revision or 'main'} is not in the local cache, and the Hub did "
            f"not return it ({reason}): check the name, the network, and HF_TOKEN for a gated model"
        ) from error
    _refuse_adapter(section.base, [file.rfilename for file in found.siblings or ()])
    return str(found.sha)


def base_source(base: Base, section: ModelSection) -> tuple[str, dict[str, Any]]:
    """Return the name and the keyword arguments with which `from_pretrained` finds the base model."""
    folder = _local_base(section)
    if folder is not None:
        return str(folder), dict(LOCAL_ONLY)
    # Pin the code as well. It may come from another repository, in which this commit does not exist.
    pinned = {"code_revision": base.revision} if section.trust_remote_code else {}
    return base.id, {"revision": base.revision, "trust_remote_code": section.trust_remote_code, **pinned}


@contextlib.contextmanager
def without_its_code(source: str) -> Iterator[None]:
    """Turn the error of transformers about a model that needs its own code into a `UserError`."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{source}: loading needs code that ships with the model, which is not allowed: choose a model that transformers "
            "supports, or, for a Hub model whose code you have read, set model.trust_remote_code and pin model.revision"
        ) from error
