"""What the materializers of folders share: files go to the artifact store and back in pieces, never whole in memory."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from zenml.artifact_stores import BaseArtifactStore, LocalArtifactStore
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from posttrain.errors import UserError

PIECE_BYTES = 8 * 2**20


class FolderMaterializer(BaseMaterializer):
    """Stores what can write itself into a folder (`save`) and read itself from one (`load`)."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def files_uri(self) -> str:
        """Where the files are; beside them the artifact may have visualizations."""
        return f"{self.uri}/files"

    def save(self, data: Any) -> None:
        """Stores the files that the data writes."""
        with tempfile.TemporaryDirectory() as folder:
            data.save(Path(folder))
            upload(Path(folder), self.files_uri, self.artifact_store)

    def load(self, data_type: type[Any]) -> Any:
        """The data, read from files that stay on this machine until the step has ended."""
        return data_type.load(self.local_folder())

    def local_folder(self) -> Path:
        """The stored files: the very ones if the store is on this machine, else a copy that goes when the step ends."""
        if isinstance(self.artifact_store, LocalArtifactStore):
            return Path(self.files_uri)
        with self.get_temporary_directory(delete_at_exit=False) as folder:
            download(self.files_uri, Path(folder), self.artifact_store)
            return Path(folder)

    def save_page(self, html: str) -> dict[str, VisualizationType]:
        """Stores a page for the dashboard."""
        uri = f"{self.uri}/preview.html"
        with self.artifact_store.open(uri, "w") as file:
            file.write(html)
        return {uri: VisualizationType.HTML}


def upload(folder: Path, uri: str, store: BaseArtifactStore) -> None:
    """Copies the files of a folder into an artifact store."""
    store.makedirs(uri)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as source, store.open(f"{uri}/{path.name}", "wb") as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)


def download(uri: str, folder: Path, store: BaseArtifactStore) -> None:
    """Copies the files of an artifact into a folder.

    Raises:
        UserError: the store names a file that would lie elsewhere.
    """
    for name in map(str, store.listdir(uri)):
        if name == ".." or Path(name).name != name:
            raise UserError(f"{uri}: holds {name!r}, which is no name of a file in it: it was tampered with, delete it")
        with store.open(f"{uri}/{name}", "rb") as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)
