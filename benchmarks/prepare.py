"""A case's files, made once and the same on any machine: `python -m benchmarks.prepare CASE`, a Case as JSON.

`base/` model and tokenizer, `sft/` the checkpoint that DPO starts from, `raw/` the pairs as a user has them, and `text/` the
same pairs as the stock engines take them: each prompt rendered by the chat template. A pair is taken only if no engine would
cut it and if text that is tokenised in one piece, as TRL does, or in two, as LLaMA-Factory does, gives the same tokens.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.cases import SHARED_DATA, Case
from posttrain.chat.template import Chat, prepare_chat
from posttrain.config import DataSection, ModelSection, Source
from posttrain.data.loader import load_preferences
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import seal
from posttrain.models.loading import load_model

Pair = dict[str, Any]
HH_RLHF = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
WORDS = (
    "able about after again air all also always animal answer around ask away back because before begin below between book "
    "both boy call carry change children city close country cut day different do each early earth eat end enough even every "
    "example eye face family far father feet few find first follow food form found four"
).split()
N_TOKENS = {
    "long_answers": ((8, 40), (120, 360)),
    "long_prompts": ((200, 400), (4, 32)),
    "short": ((4, 24), (2, 24)),
    "load": ((20, 80), (20, 160)),
}
"""Tokens of a synthetic prompt, and of each response: about the fewest and the most."""
SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TINY = {**SMOLLM2_135M, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = {"smollm2_135m": SMOLLM2_135M, "tiny": {**TINY, "vocab_size": 512, "num_key_value_heads": 1}}


def prepare(case: Case, folder: Path) -> None:
    """Writes the case's files, whole or not at all."""
    if (folder / "case.json").exists():
        return
    scratch = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    candidates = dict(zip(("train", "test"), _candidates(case), strict=True))
    build_base(case, [text for pair in candidates["train"][:20_000] for text in _texts(pair)], scratch / "base")
    chat = prepare_chat(AutoTokenizer.from_pretrained(scratch / "base"))
    sizes = {"train": case.n_train, "test": case.n_test}
    facts = {}
    for split, n in sizes.items():
        taken = _average_first(_take(candidates[split], n, chat, case), case.batch_size)
        lengths = torch.tensor([pair.pop("n_tokens") for pair in taken]).float()
        facts[split] = {
            "n": n,
            "mean_tokens": dict(zip(("prompt", "chosen", "rejected"), lengths.mean(0).tolist(), strict=True)),
        }
        texts = [
            {"prompt": pair["rendered"][0], "chosen": pair["rendered"][1], "rejected": pair["rendered"][2]}
            for pair in taken
        ]
        _write(scratch / "text" / f"{split}.jsonl", texts)
        _write(
            scratch / "raw" / f"{split}.jsonl",
            [{k: pair[k] for k in ("prompt", "chosen", "rejected")} for pair in taken],
        )
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    start_checkpoint(case, chat, folder)
    (folder / "case.json").write_text(json.dumps({"case": case.__dict__, **facts}, indent=1), encoding="utf-8")


def _candidates(case: Case) -> tuple[list[Pair], list[Pair]]:
    if case.profile == "hh_rlhf":
        sources = [Source(path=str(SHARED_DATA / "hh-rlhf" / subset)) for subset in HH_RLHF]
        preferences, _ = load_preferences(DataSection(sources=sources, validation_size=0.0))
        splits = [preferences.train.to_list(), preferences.test.to_list()]
    else:
        # Two thirds of the rows are to spare, for those that do not fit. A word is three of stories260K's tokens.
        n_train, n_test, tokens_per_word = 3 * case.n_train, 3 * case.n_test, 1 if case.model in SHAPES else 3
        pairs = list(synthetic(case.profile, n_train + n_test, case.seed, tokens_per_word))
        splits = [pairs[:n_train], pairs[n_train:]]
    for pairs in splits:
        random.Random(case.seed).shuffle(pairs)
    return splits[0], splits[1]


def synthetic(profile: str, n: int, seed: int, tokens_per_word: int = 1) -> Iterator[Pair]:
    """Pairs of seeded words, so many that the bounds hold for tokens."""
    generator = random.Random(f"{profile} {seed}")

    def words(bounds: tuple[int, int]) -> str:
        return " ".join(generator.choices(WORDS, k=-(-generator.randint(*bounds) // tokens_per_word)))

    prompt, response = N_TOKENS[profile]
    for _ in range(n):
        yield {
            "prompt": [{"role": "user", "content": words(prompt)}],
            "chosen": [{"role": "assistant", "content": words(response)}],
            "rejected": [{"role": "assistant", "content": words(response)}],
        }


def _texts(pair: Pair) -> list[str]:
    return [turn["content"] for key in ("prompt", "chosen", "rejected") for turn in pair[key]]


def _take(candidates: list[Pair], n: int, chat: Chat, case: Case) -> list[Pair]:
    """The first `n` pairs that every engine tokenises alike and none would cut."""
    taken = []
    for pair in candidates:
        prompt = str(chat.tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True))
        stop = chat.tokenizer.eos_token
        responses = [
            str(chat.tokenizer.apply_chat_template([*pair["prompt"], *pair[key]], tokenize=False))[len(prompt) :]
            for key in ("chosen", "rejected")
        ]
        texts = [prompt, *(text[: text.rindex(stop) + len(stop)] for text in responses)]
        parts = chat.tokenizer(texts)["input_ids"]
        whole = chat.tokenizer([prompt + text for text in texts[1:]])["input_ids"]
        fits = all(len(ids) <= case.max_length for ids in whole)
        # TRL begins the completion where the two whole sequences part from the prompt, and wants some of it left.
        if fits and whole == [parts[0] + part for part in parts[1:]]:
            taken.append({**pair, "rendered": texts, "n_tokens": [len(ids) for ids in parts]})
        if len(taken) == n:
            return taken
    raise SystemExit(f"{case.name}: only {len(taken)} pairs fit into {case.max_length} tokens, {n} are needed")


def _average_first(pairs: list[Pair], batch_size: int) -> list[Pair]:
    """The pairs with the most ordinary batch in front: it is the one whose tokens are counted."""
    batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    n_tokens = [torch.tensor([pair["n_tokens"] for pair in batch]).float() for batch in batches]
    # Of a batch: what is padded to the longest sequence, what is not, and what is no prompt.
    sizes = torch.stack(
        [torch.stack([(n[:, :1] + n[:, 1:]).max() * len(n), n.sum(), n[:, 1:].sum()]) for n in n_tokens]
    )
    first = int((sizes / sizes.mean(0) - 1).abs().sum(1).argmin())
    return [pair for batch in (batches[first], *batches[:first], *batches[first + 1 :]) for pair in batch]


def build_base(case: Case, texts: list[str], folder: Path) -> None:
    """The model and its tokenizer, as a folder that transformers 4 and 5 both load."""
    if case.model in SHAPES:
        shape = SHAPES[case.model]
        tokenizer = train_tokenizer(texts, int(shape["vocab_size"]))
        torch.manual_seed(case.seed)
        model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=2))
    else:
        source = SHARED_DATA / "model" / "stories260K"
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
        # It puts a beginning before every text: the engines call it on other pieces of the same text.
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules["post_processor"] = None
        rules["pre_tokenizer"]["prepend_scheme"] = "never"
        tokenizer = _fast(Tokenizer.from_str(json.dumps(rules)), "<unk>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 does not know the name that 5 writes
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the profile's own text, so that a word has as many tokens as under a real tokenizer.

    So little text does not fill the vocabulary: the ids above are never met, but the LM head computes them all the same.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<s>", "</s>", "<pad>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _fast(tokenizer, "<pad>")


def _fast(tokenizer: Tokenizer, pad: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token=pad)


def start_checkpoint(case: Case, chat: Chat, folder: Path) -> None:
    """Where DPO starts: for lora an adapter whose second matrix is 0, for full training the base itself.

    A file, so that every engine starts from the same numbers, the adapter's random first matrix included.
    """
    section = ModelSection.model_validate({"base": str(folder / "base"), "method": case.method, "precision": "fp32"})
    base = resolve_base(section)
    torch.manual_seed(case.seed)
    load_model(base, section, trainable=True).save_pretrained(folder / "sft")
    (folder / "sft" / "README.md").unlink(missing_ok=True)
    chat.tokenizer.save_pretrained(folder / "sft")
    seal(
        folder / "sft",
        [],
        stage="sft",
        kind="adapter" if case.method == "lora" else "full",
        base=base,
        parent=None,
        template=chat.template,
        stop_ids=chat.stop_ids,
        metrics={},
    )


def _write(file: Path, rows: list[Pair]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_json(file, force_ascii=False)


if __name__ == "__main__":
    prepare(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]))
