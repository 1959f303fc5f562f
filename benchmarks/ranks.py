"""What several processes gain: their utilisation in training, and the time to score with two of them.

python -m benchmarks.ranks utilisation    lengths of HH-RLHF, in words and punctuation marks, eight processes
python -m benchmarks.ranks scoring        a random model of 20 million weights, one thread for each process
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cases import SHARED_DATA
from posttrain.config import DpoSection, ModelSection
from posttrain.forward.ranks import LoadedBy, on_ranks
from posttrain.models.checkpoint import Base
from posttrain.training.order import epoch_order
from posttrain.training.step_batches import StepBatches

N_PROCESSES = 8
ROWS_PER_STEP = (8, 16, 32, 64, 128)
MAX_TOKENS = 512
"""Of the prompt and of each response."""
N_SCORED, VOCABULARY, TURN = 600, 8192, "\n\nAssistant:"


def lengths() -> np.ndarray:
    """Return the tokens of prompt, chosen and rejected response of each training pair, (pairs, 3)."""
    found = []
    for path in sorted((SHARED_DATA / "hh-rlhf").glob("*/train.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                chosen, rejected = (json.loads(line)[name] for name in ("chosen", "rejected"))
                texts = [chosen.rpartition(TURN)[0], *(text.rpartition(TURN)[2] for text in (chosen, rejected))]
                found.append([len(re.findall(r"\w+|[^\w\s]", text)) for text in texts])
    return np.clip(found, 1, MAX_TOKENS)


def utilisation() -> None:
    """Print the utilisation of the processes with rows dealt as they come and balanced by tokens."""
    n_tokens = lengths().sum(axis=1)
    print(f"{len(n_tokens):,} pairs of HH-RLHF, {N_PROCESSES} processes\nrows per step | as they come | balanced")
    for rows in ROWS_PER_STEP:
        order = n_tokens[epoch_order(len(n_tokens), 0)][: len(n_tokens) // rows * rows]
        dealt = order.reshape(-1, N_PROCESSES, rows // N_PROCESSES).sum(axis=2)
        as_they_come = dealt.sum() / (N_PROCESSES * dealt.max(axis=1).sum())
        section = DpoSection(batch_size=rows // N_PROCESSES, processes=N_PROCESSES)
        print(f"{rows:13} | {as_they_come:12.3f} | {StepBatches(n_tokens, section, 0).utilisation():8.3f}")


def scoring() -> None:
    """Print the time to load the model and score pairs with one process and with two, and whether the results are equal."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    columns = lengths()[:N_SCORED].T
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    texts = [[generator.integers(VOCABULARY, size=n).tolist() for n in column] for column in columns]
    rows = Dataset.from_dict(dict(zip(names, texts, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(Path(folder))
        base, section = Base(id=folder, revision=None, digest="random"), ModelSection(base=folder, precision="fp32")
        seconds, found = {}, {}
        for n in (1, 2):
            start = time.perf_counter()
            with on_ranks(LoadedBy(base, section, None, n)) as ranks:
                found[n] = ranks.score(rows, 4096, f"{n} processes")
            seconds[n] = time.perf_counter() - start
    equal = np.array_equal(found[1].chosen_logps, found[2].chosen_logps)
    print(
        f"{N_SCORED} pairs: {seconds[1]:.1f} s with one process, {seconds[2]:.1f} s with two ({seconds[2] / seconds[1]:.2f});"
    )
    print("equal to the last bit" if equal else "NOT EQUAL")


if __name__ == "__main__":
    {"utilisation": utilisation, "scoring": scoring}[sys.argv[1]]()
