"""Pairs from documents: passages, what the model is asked, and what becomes of every passage."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from posttrain.config import CollectSection
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError
from posttrain.feedback.collecting.document_pairs import collect_from_documents, overlap
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.feedback.collecting.passages import cut, read_passages

BEES = "Bees dance to tell each other where flowers are. The angle of the dance shows the direction."
EXTRACT = "The angle of the dance shows the direction."
OWN = "They wiggle about and hum to their sisters in the hive."
GOOD = {"instruction": "How do bees show a direction?", "answer": OWN, "extract": EXTRACT}


@pytest.fixture
def writer(monkeypatch):
    """A chat endpoint on loopback that gives the replies in `replies`, one for each word in the passage, and counts questions."""
    asked: list[str] = []
    replies: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            asked.append(question)
            passage = question.rpartition("Passage:")[2]
            reply = next((text for word, text in replies.items() if word in passage), None)
            body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200 if reply is not None else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", replies, asked
    server.shutdown()
    server.server_close()


def section(folder, url="http://127.0.0.1:9/v1", **values) -> CollectSection:
    documents = {
        "paths": [str(folder)],
        "min_passage_chars": 20,
        "max_passage_chars": 200,
        "min_answer_chars": 20,
        "writer": {"base_url": url, "model": "m", "n_retries": 0},
        **values,
    }
    return CollectSection.model_validate({"documents": documents, "max_failed_share": 0.5})


def work(folder) -> PaidWork:
    return PaidWork(lambda: LocalFileSystem(auto_mkdir=True), str(folder))


def test_passages_by_hand():
    assert cut("one two\n\nthree", 20) == ["one two\n\nthree"]
    assert cut("one two\n\nthree", 13) == ["one two", "three"]  # joined they have 14 characters
    assert cut("First one. Second one. Third.", 22) == ["First one. Second one.", "Third."]
    assert cut("abcdefgh", 3) == ["abc", "def", "gh"]
    assert cut(" \n\n ", 5) == []


def test_all_kinds_of_documents_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("A plain text that is long enough.", encoding="utf-8")
    (tmp_path / "b.md").write_text("# Title\n\nMarkdown that is long enough.", encoding="utf-8")
    page = "<html><head><title>N</title></head><body><nav>M</nav><h1>Head &amp; tail</h1><p>A page that is long.</p></body></html>"
    (tmp_path / "c.html").write_text(page, encoding="utf-8")
    pq.write_table(pa.table({"text": ["A row that is long enough.", "short", None]}), tmp_path / "d.parquet")
    (tmp_path / "e.bin").write_bytes(b"\x00")
    counts: Counter[str] = Counter()
    found = list(read_passages(section(tmp_path).documents, counts))
    assert found == [
        ("a.txt#1", "A plain text that is long enough."),
        ("b.md#1", "# Title\n\nMarkdown that is long enough."),
        ("c.html#1", "Head & tail\n\nA page that is long."),
        ("d.parquet#1", "A row that is long enough."),
    ]
    assert counts == {"passage_too_short": 1}


def test_passages_of_other_languages_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text(BEES, encoding="utf-8")
    (tmp_path / "b.txt").write_text("Die Bienen tanzen, um einander den Weg zu den Blumen zu zeigen.", encoding="utf-8")
    counts: Counter[str] = Counter()
    found = list(read_passages(section(tmp_path, languages=["en"]).documents, counts))
    assert [passage.where for passage in found] == ["a.txt#1"]
    assert counts == {"other_language": 1}


def test_overlap_by_hand():
    """Trigrams of the text: abc, bcd, cde. Two of them are in the passage."""
    assert overlap("a b c d e", "x a b c d") == pytest.approx(2 / 3)
    assert overlap("a b", "a b") == 0.0


def test_every_passage_has_a_pair_or_a_reason(tmp_path, writer):
    url, replies, asked = writer
    documents = tmp_path / "documents"
    documents.mkdir()
    changes = {
        "alpha": GOOD,
        "beta": {**GOOD, "instruction": "Again?", "extract": "This sentence is in no passage at all."},
        "gamma": {**GOOD, "answer": "short"},
        "delta": {**GOOD, "extract": EXTRACT.lower()},
        "epsilon": {**GOOD, "answer": BEES},
        "zeta": GOOD,  # the same instruction
        "eta1": {**GOOD, "instruction": "A test prompt?"},
        "theta": {"instruction": "no more"},
    }
    for word, reply in changes.items():
        (documents / f"{word}.txt").write_text(f"{word}. {BEES}", encoding="utf-8")
        replies[f"{word}."] = f"Here:\n```json\n{json.dumps(reply)}\n```"
    (documents / "iota.txt").write_text(f"iota. {BEES}", encoding="utf-8")  # the endpoint answers with an error
    held_out = {prompt_key([{"role": "user", "content": "a test  prompt?"}])}
    found = collect_from_documents(section(documents, url), held_out, work(tmp_path / "work"))
    assert found.report.without_pairs == {
        "not_in_passage": 1,
        "answer_too_short": 1,
        "no_whole_sentences": 1,
        "answer_copied": 1,
        "duplicate_instruction": 1,
        "held_out": 1,
        "no_json": 1,
        "request_failed": 1,
    }
    assert (found.report.n_prompts, found.report.n_pairs, found.report.n_failures) == (9, 1, 1)
    (row,) = found.table.to_pylist()
    assert [row[name][0]["content"] for name in ("prompt", "chosen", "rejected")] == [GOOD["instruction"], EXTRACT, OWN]
    assert (row["provenance"]["chosen_model"], row["provenance"]["rejected_model"]) == ("document", "m")
    n_asked = len(asked)
    again = collect_from_documents(section(documents, url), held_out, work(tmp_path / "work"))
    assert again.digest == found.digest
    assert len(asked) == n_asked + 1  # the one that failed


def test_too_many_failures_stop_the_run(tmp_path, writer):
    url, _, _ = writer
    (tmp_path / "a.txt").write_text(BEES, encoding="utf-8")
    with pytest.raises(UserError, match="1 of 1 requests failed"):
        collect_from_documents(section(tmp_path, url), set(), work(tmp_path / "work"))


def test_missing_documents_and_writers_are_one_clear_message(tmp_path):
    with pytest.raises(UserError, match="no document found"):
        list(read_passages(section(tmp_path / "nothing").documents, Counter()))
    with pytest.raises(ValidationError, match="writer is missing"):
        section(tmp_path, writer={})
