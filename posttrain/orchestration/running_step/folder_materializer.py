"""The base class of materializers that store folders: files are copied in pieces, so they need not fit in memory.

The sha256 of every file is stored too, and compared whenever the artifact is loaded.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from zenml.artifact_stores import BaseArtifactStore, LocalArtifactStore
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from posttrain.errors import UserError
from posttrain.models.checkpoint import file_digest
from posttrain.orchestration.running_step.stored_files import (
    DamagedArtifact,
    StoredFiles,
    are_stored,
    compare,
    read_digests,
    write_digests,
)

PIECE_BYTES = 8 * 2**20
FILES = "files"


class FolderMaterializer(BaseMaterializer):
    """Stores data that can write itself into a folder (`save`) and read itself from one (`load`)."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def files_uri(self) -> str:
        """The folder of the files in the artifact store, apart from visualizations."""
        return f"{self.uri}/{FILES}"

    def save(self, data: Any) -> None:
        """Store the files that the data writes, then their digests. Files that an earlier artifact has are not stored again."""
        with tempfile.TemporaryDirectory() as folder:
            data.save(Path(folder))
            digests = {f"{FILES}/{path.name}": file_digest(path) for path in Path(folder).iterdir()}
            for place in self.places_of_equal(data):
                if are_stored(found := StoredFiles(place, digests), self.artifact_store):
                    write_digests(self.uri, found, self.artifact_store)
                    return
            self.store_folder(Path(folder), digests)

    def store_folder(self, folder: Path, digests: dict[str, str]) -> None:
        """Store the files of a folder, then their digests."""
        upload(folder, self.files_uri, self.artifact_store)
        write_digests(self.uri, StoredFiles(self.uri, digests), self.artifact_store)

    def places_of_equal(self, data: Any) -> list[str]:
        """Return the folders of earlier artifacts that may have the same files."""
        return []

    def load(self, data_type: type[Any]) -> Any:
        """Return the data, read from files that stay on this machine until the step ends.

        Raises:
            DamagedArtifact: a file is missing or damaged.
        """
        stored = read_digests(self.uri, self.artifact_store)
        checked = {name: digest for name, digest in stored.digests.items() if self.is_checked(name)}
        try:
            folder = self.local_folder(f"{stored.place}/{FILES}")
            paths = {name: folder / name.removeprefix(f"{FILES}/") for name in checked}
            compare(self.uri, checked, {name: file_digest(path) for name, path in paths.items() if path.is_file()})
            return data_type.load(folder)
        except FileNotFoundError as error:
            raise DamagedArtifact(self.uri, f"{error.filename} is missing") from error

    def is_checked(self, name: str) -> bool:
        """Return whether to compare the digest of a file here; False if the data's own `load` does it."""
        return True

    def local_folder(self, uri: str) -> Path:
        """Return a folder with the files: the store's own if it is local, else a copy that is deleted when the step ends."""
        if isinstance(self.artifact_store, LocalArtifactStore):
            return Path(uri)
        with self.get_temporary_directory(delete_at_exit=False) as folder:
            download(uri, Path(folder), self.artifact_store)
            return Path(folder)

    def save_page(self, html: str) -> dict[str, VisualizationType]:
        """Store an HTML page for the dashboard."""
        uri = f"{self.uri}/preview.html"
        with self.artifact_store.open(uri, "w") as file:
            file.write(html)
        return {uri: VisualizationType.HTML}


def upload(folder: Path, uri: str, store: BaseArtifactStore) -> None:
    """Copy the files of a folder into an artifact store."""
    store.makedirs(uri)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as source, store.open(f"{uri}/{path.name}", "wb") as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)


def download(uri: str, folder: Path, store: BaseArtifactStore) -> None:
    """Copy the files of an artifact into a folder.

    Raises:
        UserError: a name in the store leads outside the folder.
    """
    for name in map(str, store.listdir(uri)):
        if name == ".." or Path(name).name != name:
            raise UserError(
                f"{uri}: contains {name!r}, which is not a plain file name: someone has changed the artifact, delete it"
            )
        with store.open(f"{uri}/{name}", "rb") as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)
