"""Judges: each pair is judged in both orders, over the protocol of real endpoints, and failures are counted."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3 import HTTPResponse

from posttrain.config import JudgeSection, check_config
from posttrain.errors import UserError
from posttrain.evaluation.answers.chat_endpoint import CappedRetry, NoVerdict
from posttrain.evaluation.answers.judge import Contest, Endpoint, judge_contests

PROMPT = [{"role": "user", "content": "Which {one}?"}]  # braces: no template of ours may trip over them


def contest(sft: str, dpo: str) -> Contest:
    return Contest(f"{sft}/{dpo}", PROMPT, sft, dpo)


# Found by their names in this module, as a user's own judge is.
def longest(prompt, first, second):
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def always_first(prompt, first, second):
    return "first"


def broken(prompt, first, second):
    if "x" in first + second:
        raise ValueError("cannot read this")
    return "perhaps"


def judged(name, contests, **options):
    return judge_contests(contests, JudgeSection(function=f"{__name__}:{name}", **options), 0.95)


def test_function_can_be_the_judge():
    """Two wins, a tie, a loss: 2.5 of 4."""
    found = judged("longest", [contest("a", "bb"), contest("a", "bbb"), contest("aa", "bb"), contest("aa", "b")])
    assert list(found.verdicts.values()) == ["newer", "newer", "tie", "older"]
    assert found.win_rate.share.value == 2.5 / 4
    assert (found.n_disagreed, found.n_failed, found.failures) == (0, 0, {})


def test_position_bias_of_a_judge_gives_ties():
    found = judged("always_first", [contest("a", "b"), contest("c", "d")])
    assert set(found.verdicts.values()) == {"tie"}
    assert found.n_disagreed == 2
    assert found.win_rate.share.value == 0.5


def test_identical_answers_are_a_tie_without_asking():
    assert judged("broken", [contest("x", "x")]).verdicts == {"x/x": "tie"}


def test_failures_are_counted_by_reason_and_excluded():
    found = judged("broken", [contest("x", "b"), contest("a", "b")])
    assert set(found.verdicts.values()) == {"failed"}
    assert found.n_failed == 2
    assert found.win_rate is None
    assert found.failures == {
        "ValueError: cannot read this": 2,
        "returned 'perhaps' instead of first, second or tie": 2,
    }


def test_no_judge_is_the_default():
    assert judge_contests([contest("a", "b")], JudgeSection(), 0.95) is None


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"function": "no_such_module:f"}, "cannot be imported"),
        ({"function": f"{__name__}:no_such_function"}, "cannot be imported"),
        ({"base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    ],
)
def test_missing_judge_gives_a_one_line_error(judge, message):
    with pytest.raises(UserError, match=message) as error:
        judge_contests([contest("a", "b")], JudgeSection(**judge), 0.95)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "judge", [{"base_url": "http://x/v1"}, {"model": "m"}, {"function": "a:b", "base_url": "http://x", "model": "m"}]
)
def test_incomplete_judge_settings_are_refused(judge):
    with pytest.raises(UserError, match=r"evaluation\.judge: "):
        check_config({"evaluation": {"judge": judge}})


class JudgeStandIn(BaseHTTPRequestHandler):
    """A judge that prefers the answer with the fix. It is busy at first and gives no verdict for some prompts."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, self.headers["Authorization"], body))
            busy = len(self.server.asked) <= self.server.n_busy
        if busy:
            self.send_response(429)
            self.end_headers()
            return
        question = body["messages"][-1]["content"]
        first, second = (
            question.split(f"[The Start of Assistant {name}'s Answer]\n")[1].split("\n[The End")[0] for name in "AB"
        )
        if "unknown" in (first, second):
            verdict = "I cannot say."
        else:
            verdict = "[[A]] or [[B]]? " + ("[[A]]" if "fix" in first else "[[B]]" if "fix" in second else "[[C]]")
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeStandIn)
    server.asked, server.n_busy, server.lock = [], 0, threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MY_KEY", "secret-key")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


def at(server, **options) -> JudgeSection:
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    return JudgeSection(base_url=url, model="judge-1", api_key_env="MY_KEY", **options)


def test_endpoint_is_asked_in_both_orders(endpoint, tmp_path):
    contests = [contest("no", "the fix"), contest("fix", "no"), contest("a", "b"), contest("unknown", "b")]
    found = judge_contests(contests, at(endpoint), 0.95)
    assert list(found.verdicts.values()) == ["newer", "older", "tie", "failed"]
    assert found.failures == {"NoVerdict: the answer does not end with [[A]], [[B]] or [[C]]": 2}
    assert found.judge == f"judge-1 at http://127.0.0.1:{endpoint.server_port}/v1/"
    assert len(endpoint.asked) == 8
    path, key, body = endpoint.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret-key")
    assert (body["model"], body["temperature"]) == ("judge-1", 0.0)
    assert "Which {one}?" in body["messages"][1]["content"]
    assert not any("secret-key" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_judge_answers_are_cached(endpoint):
    contests = [contest("no", "the fix"), contest("a", "b")]
    first = judge_contests(contests, at(endpoint), 0.95)
    assert judge_contests(contests, at(endpoint), 0.95) == first
    assert len(endpoint.asked) == 4
    judge_contests(contests, at(endpoint, criteria="brevity"), 0.95)  # another question
    assert len(endpoint.asked) == 8


def test_busy_endpoint_is_retried(endpoint):
    endpoint.n_busy = 1
    found = judge_contests([contest("no", "the fix")], at(endpoint, concurrency=1), 0.95)
    assert found.verdicts == {"no/the fix": "newer"}
    assert len(endpoint.asked) == 3


def test_unreachable_endpoint_is_counted_and_not_fatal(endpoint):
    endpoint.n_busy = 99
    found = judge_contests([contest("no", "the fix")], at(endpoint, n_retries=1), 0.95)
    assert found.n_failed == 1
    assert next(iter(found.failures)).startswith("HTTPError: 429")


ANSWERS = {
    "quoted": ("[[A]] would be wrong. [[B]]", "second"),
    "bold": ("So: **[[A]]**.\n", "first"),
    "only quoted": ("[[A]] is what others say, and I cannot decide", None),
    "nothing": (None, None),
    "a list": ([{"text": "[[A]]"}], None),
}


@pytest.mark.parametrize(("content", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_the_verdict_stands_at_the_end_and_nothing_else_is_cached(monkeypatch, tmp_path, content, expected):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    with answering(json.dumps({"choices": [{"message": {"content": content}}]}).encode()) as url:
        judge = Endpoint(JudgeSection(base_url=url, model="m"))
        if expected is None:
            with pytest.raises(NoVerdict):
                judge(PROMPT, "a", "b")
        else:
            assert judge(PROMPT, "a", "b") == expected
    assert len(list(tmp_path.glob("judge/*"))) == (expected is not None)


def test_a_torn_cache_file_is_a_miss(endpoint, tmp_path):
    judge = Endpoint(at(endpoint))
    assert judge(PROMPT, "the fix", "b") == "first"
    (cached,) = tmp_path.glob("judge/*.json")
    for damage in (b'"[[B', b"null", b'"None"', b"\xff"):
        cached.write_bytes(damage)
        assert judge(PROMPT, "the fix", "b") == "first"
        assert "[[A]]" in json.loads(cached.read_text())
    assert len(endpoint.asked) == 5


def test_a_repeated_key_is_not_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "hidden-key")
    with answering(json.dumps({"choices": [{"message": {"content": "You sent hidden-key. [[C]]"}}]}).encode()) as url:
        assert Endpoint(JudgeSection(base_url=url, model="m", api_key_env="MY_KEY"))(PROMPT, "a", "b") == "tie"
    (cached,) = tmp_path.glob("judge/*.json")
    assert "hidden-key" not in cached.read_text()


def test_a_redirect_is_not_followed(monkeypatch, tmp_path, endpoint):
    section = at(endpoint)
    with (
        answering(b"", status=307, headers={"Location": str(section.base_url)}) as url,
        pytest.raises(NoVerdict, match="redirects"),
    ):
        Endpoint(section.model_copy(update={"base_url": url}))(PROMPT, "a", "b")
    assert not endpoint.asked


def test_long_waits_are_capped(monkeypatch):
    response = HTTPResponse(headers={"Retry-After": "86400"}, status=429)
    assert CappedRetry().get_retry_after(response) == 60
    assert CappedRetry().get_retry_after(HTTPResponse(headers={"Retry-After": "3"}, status=429)) == 3
    assert CappedRetry().get_retry_after(HTTPResponse(status=429)) is None


def test_after_the_deadline_no_question_is_asked(endpoint):
    judge = Endpoint(at(endpoint, deadline_s=1e-9))
    with pytest.raises(NoVerdict, match=r"evaluation\.judge\.deadline_s passed"):
        judge(PROMPT, "a", "b")
    assert not endpoint.asked


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 2**21}, "more than 1048576 bytes"), ({"pause_s": 0.4}, "took longer")]
)
def test_an_endless_answer_is_given_up(monkeypatch, tmp_path, options, message):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    body = b"x" * options.get("size", 4)
    with answering(body, pause_s=options.get("pause_s", 0)) as url, pytest.raises(NoVerdict, match=message):
        Endpoint(JudgeSection(base_url=url, model="m", timeout_s=1.0))(PROMPT, "a", "b")


@contextmanager
def answering(body, status=200, headers=None, pause_s=0.0):
    """An endpoint with one answer, sent byte by byte if it pauses."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the judge may have gone
                for piece in [body[i : i + 1] for i in range(len(body))] if pause_s else [body]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(pause_s)

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
