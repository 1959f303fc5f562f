"""One engine in a process of its own: `python -m benchmarks.worker JOB`, started and told what to do by the driver."""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.gate import Gate

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    gate = Gate(job["gated"])
    if levers := job["engine"]["levers"]:
        importlib.import_module("benchmarks.levers").pull(levers)
    facts = importlib.import_module(f"benchmarks.engines.{job['engine']['module']}").run(job, gate)
    gate.finish(**facts)
