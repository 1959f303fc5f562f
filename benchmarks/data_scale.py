"""Rows a second and memory of loading, checking and splitting generated pairs.

    python benchmarks/data_scale.py 1000000

Prints one JSON object. The file is written to a scratch folder first; its writing is not counted.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

N_WORDS = {"prompt": (10, 120), "chosen": (10, 100), "rejected": (10, 100)}
"""Bounds of the length of each part: on average as long as the pairs of HH-RLHF."""


def write_pairs(file: Path, n_rows: int) -> None:
    """A JSONL file of pairs: in a hundred rows one repeats, one nearly repeats, one contradicts, one is blank."""
    rng = random.Random(0)
    vocabulary = [
        f"{a}{b}{c}" for a in ("ba", "ke", "li", "mo", "nu") for b in "bdfgklmnprst" for c in ("a", "er", "ing", "o")
    ]
    vocabulary += [f"{first}{second}" for first in vocabulary for second in vocabulary[::8]]
    earlier = dict.fromkeys(N_WORDS, "")
    with file.open("w", encoding="utf-8") as lines:
        for n in range(n_rows):
            row = {name: " ".join(rng.choices(vocabulary, k=rng.randint(*bounds))) for name, bounds in N_WORDS.items()}
            match n % 100:
                case 10:
                    row = earlier
                case 20:
                    row = {**earlier, "prompt": earlier["prompt"] + " please"}
                case 30:
                    row = {**earlier, "chosen": earlier["rejected"], "rejected": earlier["chosen"]}
                case 40:
                    row["rejected"] = " "
            lines.write(json.dumps(row) + "\n")
            earlier = row


def measure(file: Path) -> dict[str, float]:
    """Loads a file of pairs; the peak is of the whole process, its imports included."""
    from posttrain.config import DataSection, Source
    from posttrain.data.loader import load_preferences

    before_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    _, report = load_preferences(DataSection(sources=[Source(path=str(file))]))
    seconds = time.monotonic() - start_s
    return {
        "n_rows": report.n_read,
        "n_kept": report.n_kept,
        **{f"n_{reason}": n for reason, n in report.dropped.items()},
        "file_gib": file.stat().st_size / 2**30,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - start_cpu_s,
        "rows_per_s": report.n_read / seconds,
        "imports_gib": before_gib,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Writes, loads, prints."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_pairs(file, int(sys.argv[1]))
        print(json.dumps(measure(file), indent=2))


if __name__ == "__main__":
    main()
