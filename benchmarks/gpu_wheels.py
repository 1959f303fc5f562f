"""Fetch the wheels that `benchmarks/gpu.py` needs on a GPU machine without network: `python -m benchmarks.gpu_wheels`.

The machine has PyTorch with CUDA, NumPy, pandas, pyarrow, SciPy, accelerate, huggingface_hub and tokenizers. Everything else
comes from here, in the versions of constraints.txt. bitsandbytes is packed again with the library of one CUDA version: with
all of them it has 60 MB.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = (
    "transformers", "trl", "peft", "datasets", "dill", "multiprocess", "pydantic", "pydantic-core", "annotated-types",
    "typing-inspection", "rensa", "bitsandbytes",
)  # fmt: skip
"""Packages whose versions constraints.txt names."""
OWN = ("liger-kernel==0.8.5",)
"""Packages that only these measurements need."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: list[str]) -> None:
    """Download the wheels into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dest", type=Path, default=ROOT / ".gpu-wheels")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (default: 3.12)")
    parser.add_argument("--cuda", default="130", help="CUDA of its PyTorch, without the dot (default: 130)")
    options = parser.parse_args(arguments)
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    wanted = [f"{name}=={pins[name]}" for name in PINNED] + list(OWN)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
    ]
    where = ["--dest", str(options.dest), "--python-version", options.python]
    subprocess.run([*command, *where, *platforms, *wanted], check=True)
    for wheel in options.dest.glob("bitsandbytes-*.whl"):
        keep_one_library(wheel, options.cuda)
    total = sum(wheel.stat().st_size for wheel in options.dest.glob("*.whl")) / 2**20
    print(f"{options.dest}: {len(wanted)} wheels, {total:.0f} MiB")


def keep_one_library(wheel: Path, cuda: str) -> None:
    """Remove the libraries of all other CUDA versions from the wheel of bitsandbytes."""

    def keeps(name: str) -> bool:
        return name.endswith(f"cuda{cuda}.so") or not re.search(r"libbitsandbytes_\w+\.(so|dll|dylib)$", name)

    packed = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if not keeps(entry.filename):
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if keeps(line.split(",")[0])).encode()
            new.writestr(entry, content)
    packed.rename(wheel)


if __name__ == "__main__":
    main(sys.argv[1:])
