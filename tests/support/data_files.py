"""Small data files that a run reads."""

import json
from pathlib import Path

THINGS = ("printer", "router", "lamp", "kettle", "radio", "clock")


def write_pairs(path: Path, n: int = 60) -> Path:
    """Preference pairs in the explicit layout, each prompt its own."""
    rows = [
        {
            "prompt": f"My {THINGS[i % 6]} number {i} is broken.",
            "chosen": f"Restart it {i} times.",
            "rejected": f"No. {i}",
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_instructions(path: Path) -> Path:
    """Instructions in the Alpaca layout."""
    rows = [{"instruction": f"Name thing {i}.", "input": "", "output": THINGS[i % 6]} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
