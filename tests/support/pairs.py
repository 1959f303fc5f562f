"""Pairs that train in a second."""

import torch
from datasets import Dataset

WORDS = "the printer is slow please restart it now and wait a while for the light to turn green again".split()


def make_pairs(n: int, seed: int) -> Dataset:
    """Pairs of ragged lengths, some responses of a single word, in the canonical layout."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=generator))

    rows = [
        {
            "id": f"{seed}-{i}",
            "source": "tiny",
            "prompt": [{"role": "user", "content": words(1, 20)}],
            "chosen": [{"role": "assistant", "content": words(1, 12) + " yes"}],
            "rejected": [{"role": "assistant", "content": words(1, 12) + " no"}],
            "true_margin": None,
        }
        for i in range(n)
    ]
    return Dataset.from_list(rows)
