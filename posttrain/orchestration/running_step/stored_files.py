"""The digests of an artifact's files: written beside them, and compared whenever the artifact is loaded.

A damaged or missing artifact is removed from ZenML's cache, which trusts its database and does not look into the store. So the
next run that needs the artifact makes it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zenml.artifact_stores import BaseArtifactStore
from zenml.client import Client
from zenml.models import ArtifactVersionResponse, StepRunResponse
from zenml.utils.time_utils import utc_now

from posttrain.errors import UserError

DIGESTS, SAME_AS = "sha256.json", "same_as"
PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class StoredFiles:
    """The files of an artifact."""

    place: str
    """URI of the folder they are in: that of the artifact, or of an earlier artifact with the same content."""
    digests: dict[str, str]
    """sha256 of each file, by its path in the folder; empty if an earlier release stored the artifact."""


class DamagedArtifact(UserError):
    """The files of an artifact are not those that were stored. The step that made it is not taken from the cache again."""

    def __init__(self, uri: str, what: str) -> None:
        self.uri = uri
        self.what = what
        name, remedy = _expire(uri)
        super().__init__(f"{name}: {what}{remedy}")


def write_digests(uri: str, files: StoredFiles, store: BaseArtifactStore) -> None:
    """Store where an artifact's files are, and their digests. Call it when all files are written."""
    about = files.digests if files.place == uri else {**files.digests, SAME_AS: files.place}
    with store.open(f"{uri}/{DIGESTS}", "w") as file:
        file.write(json.dumps(about, indent=1, sort_keys=True))


def read_digests(uri: str, store: BaseArtifactStore) -> StoredFiles:
    """Return what `write_digests` stored.

    Raises:
        DamagedArtifact: the artifact is missing, or the list of its digests is damaged.
    """
    try:
        with store.open(f"{uri}/{DIGESTS}", "r") as file:
            digests = json.loads(file.read())
    except FileNotFoundError as error:
        if not _names(uri, store):
            raise DamagedArtifact(uri, f"its folder {uri} is missing or empty") from error
        return StoredFiles(uri, {})
    except ValueError as error:  # no UTF-8, or no JSON
        raise DamagedArtifact(uri, f"{DIGESTS} is damaged") from error
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise DamagedArtifact(uri, f"{DIGESTS} is damaged")
    return StoredFiles(digests.pop(SAME_AS, uri), digests)


def place_of(uri: str, store: BaseArtifactStore) -> str:
    """Return the folder that an artifact's files are in: its own, or that of an earlier artifact with the same content.

    Unlike `read_digests` it leaves the cache alone if the artifact is damaged.

    Raises:
        OSError: it is missing.
    """
    with store.open(f"{uri}/{DIGESTS}", "r") as file:
        return str(json.loads(file.read()).get(SAME_AS, uri))


def are_stored(files: StoredFiles, store: BaseArtifactStore) -> bool:
    """Return whether a place has these files, intact. All of them are read."""
    return all(_digest(f"{files.place}/{name}", store) == digest for name, digest in files.digests.items())


def _digest(uri: str, store: BaseArtifactStore) -> str | None:
    digest = hashlib.sha256()
    try:
        with store.open(uri, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def compare(uri: str, stored: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare the digests that were stored with those of the files that were found.

    Raises:
        DamagedArtifact: names the first file that is missing or differs.
    """
    for name, digest in sorted(stored.items()):
        if name not in found:
            raise DamagedArtifact(uri, f"{name} is missing")
        if found[name] != digest:
            raise DamagedArtifact(uri, f"{name} is damaged, because its sha256 differs from the stored one")


def check_cached(steps: Iterable[StepRunResponse]) -> None:
    """Look for the files of all artifacts that steps took from the cache, without reading them.

    Raises:
        DamagedArtifact: names the first that is missing.
    """
    for step in steps:
        if step.original_step_run_id:
            for artifacts in step.outputs.values():
                for artifact in artifacts:
                    check_present(artifact)


def check_present(artifact: ArtifactVersionResponse) -> None:
    """Look for the files of an artifact, without reading them.

    Raises:
        DamagedArtifact: names the first that is missing.
    """
    store = Client().active_stack.artifact_store
    stored = read_digests(artifact.uri, store)
    folders = {name.rpartition("/")[0] for name in stored.digests}
    present = {f"{folder}/{name}" for folder in folders for name in _names(f"{stored.place}/{folder}", store)}
    there = {name: digest for name, digest in stored.digests.items() if _path(name) in present}
    compare(artifact.uri, stored.digests, there)


def _path(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file}"


def _names(uri: str, store: BaseArtifactStore) -> list[str]:
    try:
        return [str(name) for name in store.listdir(uri)]
    except FileNotFoundError:
        return []


def _expire(uri: str) -> tuple[str, str]:
    """Return the name of an artifact and what happens to it, after its step run was excluded from the cache."""
    client = Client()
    found = client.list_artifact_versions(uri=uri, hydrate=True).items
    if not found:
        return uri, ": delete the folder"
    (artifact, *_) = found
    name = f"artifact {artifact.name} version {artifact.version}"
    remove = f". To remove it: `zenml artifact version delete {artifact.id} --yes`"
    if not artifact.producer_step_run_id:
        return name, remove
    try:
        step = client.update_step_run(artifact.producer_step_run_id, cache_expires_at=utc_now())
    except RuntimeError:  # what ZenML's server answers for a run whose stack was deleted
        return name, remove
    run = client.get_pipeline_run(step.pipeline_run_id).name
    return (
        f"{name}, made by step {step.name} of run {run}",
        f". A new run of the same config makes it again. To remove it with its run: `zenml pipeline runs delete {run} --yes`",
    )
