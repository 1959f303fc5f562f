"""The page of a blind test on a port: votes are stored as they come, from several people, with the token of the link."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.run_reports import make_report

from posttrain.errors import UserError
from posttrain.feedback.ab import digest
from posttrain.feedback.ballots import Vote
from posttrain.feedback.vote_files import read_ballots
from posttrain.feedback.vote_score import ab_score
from posttrain.feedback.vote_store import VoteStore

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from starlette.testclient import TestClient

from posttrain.feedback.vote_server import LARGEST_BODY_BYTES, vote_app

RATER = "0123456789abcdef"


@pytest.fixture(scope="module")
def generations():
    return make_report().generations


@pytest.fixture
def store(tmp_path):
    return VoteStore(tmp_path / "votes.db")


@pytest.fixture
def client(generations, store):
    token = store.prepare()
    with TestClient(vote_app(generations, store, token)) as found:
        found.params = {"token": token}
        yield found


def sent(generations, id="pair-0", rater=RATER, **vote):
    return json.dumps({"answers": digest(generations), "rater": rater, "id": id, "vote": {"choice": "left", **vote}})


def test_the_link_needs_its_token(generations, store, client):
    assert "Prompt 30" in client.get("/").text
    assert client.get("/").headers["referrer-policy"] == "no-referrer"
    for token in ("", "wrong"):
        assert client.get("/", params={"token": token}).status_code == 403
        assert client.post("/votes", params={"token": token}, content=sent(generations)).status_code == 403
    assert store.ballots() == []


def test_a_later_vote_replaces_an_earlier_one(generations, store, client):
    assert client.post("/votes", content=sent(generations)).status_code == 200
    assert client.post("/votes", content=sent(generations, choice="tie", comment="équal")).status_code == 200
    (found,) = store.ballots()
    assert found.rater == RATER
    assert found.choices == {"pair-0": Vote(choice="tie", comment="équal")}
    assert ab_score(generations, read_ballots([store.path])).overall.n_ties == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"id": "pair-99"}, 409),
        ({"answers": "others"}, 409),
        ({"rater": "../me"}, 400),
        ({"vote": {"choice": "both"}}, 400),
        ({"vote": {"choice": "left", "comment": "x" * 2001}}, 400),
        ({"more": 1}, 400),
        ({"rater": "0" * LARGEST_BODY_BYTES}, 413),
    ],
)
def test_what_is_no_vote_is_refused(change, status, generations, store, client):
    assert client.post("/votes", content=json.dumps(json.loads(sent(generations)) | change)).status_code == status
    assert store.ballots() == []


def test_many_people_vote_at_once(generations, store):
    store.prepare()
    raters = [f"{i:08x}" for i in range(8)]

    def votes(rater):
        for i in range(5):
            store.put(digest(generations), rater, f"pair-{i}", Vote(choice="left"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(votes, raters))
    found = ab_score(generations, read_ballots([store.path]))
    assert (found.n_raters, found.n_votes) == (8, 40)


def test_the_token_stays_and_another_file_is_no_database(store, tmp_path):
    assert store.prepare() == store.prepare()
    (tmp_path / "notes.txt").write_text("no database, but text that is long enough to be read as one")
    with pytest.raises(UserError, match="is no database of votes"):
        VoteStore(tmp_path / "notes.txt").prepare()
