"""Pairs from documents: chosen is an extract of a passage, rejected the answer of a model that wrote the instruction.

Source: Iusztin and Labonne 2024, LLM Engineer's Handbook, chapter 6 (preference datasets from documents).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pyarrow as pa
import requests

from posttrain.config import CollectSection, DocumentsSection
from posttrain.data.copies.near_duplicates import words
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError
from posttrain.evaluation.answers.chat_endpoint import ChatEndpoint, NoVerdict
from posttrain.feedback.collecting.collected_pairs import (
    COLLECTED_SCHEMA,
    CollectedPreferences,
    CollectionReport,
    pair_row,
)
from posttrain.feedback.collecting.collection import figures_of_pairs
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.feedback.collecting.passages import Passage, read_passages
from posttrain.progress import progress_bar

QUESTION = """Read the passage below. Write

1. an instruction that a user could give and that this passage answers. It must make sense without the passage.
2. an answer to the instruction, from your own knowledge and in your own words.
3. an extract: the sentences of the passage that answer the instruction, copied word for word.

Reply with one JSON object and nothing else: {{"instruction": "...", "answer": "...", "extract": "..."}}

Passage:
{passage}"""
NAMES = ("instruction", "answer", "extract")
DOCUMENT = "document"
AT = "asked at"
"""Key of the time in a reply. It is no name that the model is asked for."""


def collect_from_documents(section: CollectSection, held_out: set[bytes], work: PaidWork) -> CollectedPreferences:
    """Return pairs from the documents of `collect.documents`, with a report that counts every passage.

    The scores are 1 for the extract and 0 for the model's answer.

    Args:
        held_out: keys of prompts (`prompt_key`) that no instruction may have.
        work: where the model's replies are stored.

    Raises:
        UserError: a document cannot be read, too many requests failed, or no pair was found.
    """
    documents = section.documents
    assert documents is not None
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    passages = list(islice(read_passages(documents, counts), section.n_prompts))
    replies = _ask_all(passages, documents, work, failures)
    if passages and failures.total() / len(passages) > section.max_failed_share:
        raise UserError(
            f"collect.documents.writer: {failures.total()} of {len(passages)} requests failed ({_listed(failures)}): correct the "
            "endpoint and run again, which asks only what is missing, or raise collect.max_failed_share"
        )
    rows, without = _rows(passages, replies, documents, held_out)
    if not rows:
        raise UserError(
            f"collect.documents: none of {len(passages)} passages gave a pair ({_listed(without + counts)}): use longer documents, "
            "another writer, or looser filters"
        )
    report = CollectionReport(
        n_prompts=len(passages),
        n_prompts_with_pairs=len(rows),
        without_pairs=dict(without.most_common()),
        judge=f"the passage against {documents.writer.model}",
        n_failures=failures.total(),
        failures=dict(failures.most_common()),
        models={},
        prompts_dropped={},
        filters=dict(counts.most_common()),
        **figures_of_pairs(rows),
    )
    return CollectedPreferences(pa.Table.from_pylist(rows, COLLECTED_SCHEMA), report)


def _rows(
    passages: Sequence[Passage],
    replies: Sequence[dict[str, str] | None],
    section: DocumentsSection,
    held_out: set[bytes],
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the rows of all pairs, and the number of passages without one by reason."""
    rows: list[dict[str, Any]] = []
    without: Counter[str] = Counter()
    seen = set[bytes]()
    for passage, reply in zip(passages, replies, strict=True):
        if (why := refuse(passage, reply, section)) is None:
            assert reply is not None
            prompt = [{"role": "user", "content": reply["instruction"].strip()}]
            key = prompt_key(prompt)  # type: ignore[arg-type]
            why = "held_out" if key in held_out else "duplicate_instruction" if key in seen else None
            seen.add(key)
        if why or reply is None:
            without[str(why)] += 1
        else:
            rows.append(_row(passage, prompt, reply, section))
    return rows, without


def refuse(passage: Passage, reply: dict[str, str] | None, section: DocumentsSection) -> str | None:
    """Return why a reply makes no pair; None if it does."""
    if reply is None:
        return "request_failed"
    if set(NAMES) - {name for name in NAMES if isinstance(reply.get(name), str) and reply[name].strip()}:
        return "no_json"
    extract, answer = reply["extract"].strip(), reply["answer"].strip()
    if min(len(extract), len(answer)) < section.min_answer_chars:
        return "answer_too_short"
    if not (extract[0].isupper() or extract[0].isdigit()) or extract[-1] not in ".!?":
        return "no_whole_sentences"
    if " ".join(extract.split()) not in " ".join(passage.text.split()):
        return "not_in_passage"
    if overlap(answer, passage.text) > section.max_overlap:
        return "answer_copied"
    return None


def overlap(text: str, passage: str) -> float:
    """Return the share of the word trigrams of a text that occur in a passage; 0 if it has none."""
    own, given = (_trigrams(part) for part in (text, passage))
    return len(own & given) / len(own) if own else 0.0


def _trigrams(text: str) -> set[tuple[str, ...]]:
    found = words([text])
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}


def _ask_all(
    passages: Sequence[Passage], section: DocumentsSection, work: PaidWork, failures: Counter[str]
) -> list[dict[str, str] | None]:
    writer = ChatEndpoint(section.writer, "collect.documents.writer")

    def ask(passage: Passage) -> dict[str, str] | None:
        body = writer.body([{"role": "user", "content": QUESTION.format(passage=passage.text)}])
        key = ("documents", section.writer.base_url, body)
        if (stored := work.get(*key)) is not None:
            return _parsed(stored["reply"]) | {AT: stored["at"]}
        try:
            reply = writer.answer(body)
        except (NoVerdict, requests.RequestException) as error:
            failures[
                f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason given'}"
            ] += 1
            return None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        work.put({"reply": reply, "at": at}, *key)
        return _parsed(reply) | {AT: at}

    return _mapped(ask, passages, section.writer.concurrency)


def _mapped(ask: Callable[[Passage], Any], passages: Sequence[Passage], concurrency: int) -> list[Any]:
    with ThreadPoolExecutor(concurrency) as pool, progress_bar(len(passages), "Instructions", " passages") as bar:
        found = []
        for reply in pool.map(ask, passages):
            found.append(reply)
            bar.update()
        return found


def _parsed(reply: str) -> dict[str, str]:
    """Return the JSON object in a reply, which may be fenced; an empty one if there is none."""
    match = re.search(r"\{.*\}", reply, re.DOTALL)
    try:
        found = json.loads(match.group(0)) if match else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _row(passage: Passage, prompt: Any, reply: dict[str, str], section: DocumentsSection) -> Any:
    origin = {
        "chosen_model": DOCUMENT,
        "chosen_digest": hashlib.sha256(passage.text.encode()).hexdigest(),
        "rejected_model": section.writer.model,
        "judge": "none: the extract is chosen",
        "collected_at": reply[AT],
        "prompt_source": passage.where,
    }
    return pair_row({"prompt": prompt}, (reply["extract"].strip(), reply["answer"].strip()), (1.0, 0.0), origin)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common()) or "none"
