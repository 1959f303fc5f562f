"""The base model: which one the settings name, and where its files are."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from posttrain.config import ModelSection
from posttrain.data.demo import base_model as demo_base
from posttrain.data.demo import pairs as demo
from posttrain.errors import UserError
from posttrain.models.checkpoint import Base, file_digest
from posttrain.models.memory import local_base
from posttrain.storage.cache import cache_dir

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}
"""How a folder is loaded: transformers would ask on the terminal whether to run the code in it."""


def resolve_base(section: ModelSection) -> Base:
    """The base model that the config names, pinned: a commit for a Hub id, a digest of its files for a folder.

    Raises:
        UserError: neither a folder with a model nor a Hub id that can be reached or is cached.
    """
    folder = _local_base(section)
    if folder is not None:
        names = sorted(
            file.name
            for file in folder.iterdir()
            if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
        )
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UserError(
                f"model.base: {section.base} holds no config.json with *.safetensors beside it: name a transformers model "
                "folder (convert other weights with save_pretrained)"
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


def _local_base(section: ModelSection) -> Path | None:
    """The folder of a base that is on this machine, None for a Hub id."""
    return demo_folder() if section.base == "demo" else local_base(section.base)


def demo_folder() -> Path:
    """The folder of the demo's base model, built on first use, whole or not at all."""
    sources = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (demo, demo_base))
    folder = cache_dir() / f"demo-base-{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            built = demo_base.build_base(Path(scratch) / "base")
            with contextlib.suppress(OSError):  # another process was first: both made the same bytes
                built.rename(folder)
    return folder


def _commit_on_hub(section: ModelSection) -> str:
    """The commit that a Hub id and revision stand for: asked of the Hub, else read from the local cache."""
    try:
        return str(HfApi().model_info(section.base, revision=section.revision, timeout=20).sha)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = try_to_load_from_cache(section.base, "config.json", revision=section.revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {section.base} at revision {section.revision or 'main'} is not in the local cache and the Hub does "
            f"not give it ({reason}): check the name, the network, and HF_TOKEN for a gated model"
        ) from error


def base_source(base: Base, section: ModelSection) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` needs to find the base's files."""
    folder = _local_base(section)
    if folder is not None:
        return str(folder), dict(LOCAL_ONLY)
    # The code's revision too: a model may name code of another repository, which has no such commit.
    pinned = {"code_revision": base.revision} if section.trust_remote_code else {}
    return base.id, {"revision": base.revision, "trust_remote_code": section.trust_remote_code, **pinned}


@contextlib.contextmanager
def without_its_code(source: str) -> Iterator[None]:
    """Turns what transformers says of a model that cannot be loaded without running its own code into an answer."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{source}: can only be loaded by running code that ships with it, which is refused: choose a model that transformers "
            "knows, or, for one on the Hub whose code you have read, set model.trust_remote_code and pin model.revision"
        ) from error
