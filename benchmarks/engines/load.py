"""Reading and checking many pairs: no training, only `load_preferences`."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate
from benchmarks.prepare import synthetic
from posttrain.config import DataSection, Source
from posttrain.data.loader import load_preferences


def run(job: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Loads the file, which is written first where it is not there."""
    options = job["engine"]["options"]
    file = Path(options["file"])
    if not file.exists():
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            for pair in synthetic("load", options["n"], 0):
                print(json.dumps(pair), file=out)
        part.rename(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = time.monotonic()
    preferences, _ = load_preferences(DataSection(sources=[Source(path=str(file))]))
    return {
        "load_s": time.monotonic() - began,
        "rss_before_gib": before,
        "text_gib": file.stat().st_size / 2**30,
        "n_train": len(preferences.train),
        "n_test": len(preferences.test),
    }
