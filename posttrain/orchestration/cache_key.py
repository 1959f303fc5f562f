"""What the code is that a step runs."""

import functools
import hashlib
from pathlib import Path

from posttrain.tracking import package_versions

ROOT = Path(__file__).parents[2]


@functools.cache
def code_digest() -> str:
    """sha256 over the code that steps run and the versions of what it is built on: a part of every step's cache key.

    ZenML looks at the step's own function alone, so without this an edit of the library would be served stale. torch for a
    CPU and for a GPU is one version: the image's digest is that of the machine which started the run.
    """
    versions = {package: version.partition("+")[0] for package, version in package_versions().items()}
    digest = hashlib.sha256(repr(versions).encode())
    for package in ("posttrain", "steps", "materializers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
