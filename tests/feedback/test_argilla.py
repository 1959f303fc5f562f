"""The blind test in Argilla, through its SDK against a stand-in of its HTTP API."""

from uuid import uuid4

import pytest
from support.argilla_server import KEY, ArgillaServer
from support.run_reports import make_report

from posttrain.errors import UserError
from posttrain.feedback.ab import dpo_is_left
from posttrain.feedback.vote_score import ab_score

pytest.importorskip("argilla", reason="the extra `argilla` is not installed")

from posttrain.feedback.argilla_votes import ballots_from_argilla, export_to_argilla


@pytest.fixture
def server(monkeypatch):
    found = ArgillaServer()
    monkeypatch.setenv("ARGILLA_API_URL", found.url)
    monkeypatch.setenv("ARGILLA_API_KEY", KEY)
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def generations():
    return make_report().generations


def test_pairs_go_there_and_votes_come_back(server, generations):
    """Two people: one for DPO twice, the other once for SFT. A draft and a discarded response do not count."""
    assert export_to_argilla(generations, "blind", n_raters=2) == 30
    records = server.records("blind")
    assert "dpo" not in str(records).lower().replace("pair-", "")
    assert {question["name"]: question["required"] for question in server.parts[next(iter(server.datasets)), "questions"]} == {
        "choice": True, "helpful": False, "harmless": False, "instructions": False, "comment": False
    }  # fmt: skip
    one, two = str(uuid4()), str(uuid4())

    def choice(record, for_dpo):
        return "left" if dpo_is_left(record["external_id"]) == for_dpo else "right"

    for record in records[:2]:
        server.respond(record, one, choice=choice(record, True), comment="short")
    server.respond(records[0], two, choice=choice(records[0], False), harmless="tie")
    server.respond(records[3], two, status="draft", choice="left")
    server.respond(records[4], two, status="discarded")
    found = ab_score(generations, ballots_from_argilla("blind"))
    assert (found.n_raters, found.n_votes) == (2, 3)
    assert found.overall.share.value == (0.5 + 1) / 2
    assert found.questions["harmless"].n_ties == 1


def test_mistakes_say_what_to_do(server, generations, monkeypatch):
    with pytest.raises(UserError, match="Argilla has no dataset 'blind'"):
        ballots_from_argilla("blind")
    export_to_argilla(generations, "blind", n_raters=1)
    with pytest.raises(UserError, match="already has a dataset 'blind'"):
        export_to_argilla(generations, "blind", n_raters=1)
    with pytest.raises(UserError, match="nobody has submitted a response"):
        ballots_from_argilla("blind")
    monkeypatch.setenv("ARGILLA_API_KEY", "wrong")
    with pytest.raises(UserError, match="check ARGILLA_API_URL and ARGILLA_API_KEY"):
        ballots_from_argilla("blind")
    monkeypatch.delenv("ARGILLA_API_KEY")
    with pytest.raises(UserError, match="set ARGILLA_API_KEY to"):
        ballots_from_argilla("blind")
