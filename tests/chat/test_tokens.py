"""Tokens of a run: made once, the same as each stage would make them, and stored with what they depend on."""

import pyarrow as pa
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from posttrain.chat.template import TEMPLATES, prepare_chat
from posttrain.chat.tokenise import tokenise_completions, tokenise_pairs
from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.chat.tokens import PairTokens, SftTokens, _digest
from posttrain.config import Lengths
from posttrain.data.stored import Instructions
from posttrain.errors import UserError
from posttrain.models.loading import load_chat

SHORT = Lengths(max_length=24, max_prompt_length=12)
SETTINGS = TokeniseSettings(SHORT, sft_max_length=16)


@pytest.fixture
def chat(tiny_base):
    return load_chat(*tiny_base)


def test_pairs_are_those_of_each_split_tokenised_alone(chat, preferences):
    tokens = tokenise_data(chat, preferences, None, SETTINGS).pairs
    for split, rows in preferences.splits().items():
        alone = tokenise_pairs(chat, rows, 24, 12)
        assert tokens.rows(split)[:] == alone.rows[:]
        assert tokens.cut[split] == alone.counts
    assert sum(tokens.cut["train"].values()) > 0


def test_sft_rows_are_the_chosen_responses_tokenised_alone(chat, preferences):
    """Cut to SFT's length, which is not DPO's."""
    sft = tokenise_data(chat, preferences, None, SETTINGS).sft
    for split in ("train", "validation"):
        alone = tokenise_completions(chat, preferences.splits()[split].rename_column("chosen", "completion"), 16)
        assert sft.rows(split)[:] == alone.rows[:]
        assert sft.cut[split] == alone.counts
    assert max(map(len, sft.rows("train")["input_ids"])) == 16
    assert len(sft.rows("train")) == len(preferences.train)


def test_instructions_take_the_place_of_the_training_pairs_in_sft(chat, preferences):
    rows = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": "printer"}], "completion": [{"role": "assistant", "content": text}]}
            for text in ("wait", "restart it")
        ]
    )
    sft = tokenise_data(chat, preferences, Instructions(rows), SETTINGS).sft
    assert sft.rows("train")[:] == tokenise_completions(chat, rows, 16).rows[:]
    assert len(sft.rows("validation")) == len(preferences.validation)


def test_each_text_is_tokenised_once(chat, preferences, monkeypatch):
    """Every prompt three times: alone, and as the beginning of either conversation."""
    encoded = []
    kind = type(chat.tokenizer)
    whole = kind.__call__

    def counting(self, text, **options):
        encoded.extend(text)
        return whole(self, text, **options)

    monkeypatch.setattr(kind, "__call__", counting)
    tokenise_data(chat, preferences, None, SETTINGS)
    assert len(encoded) == 3 * preferences.n_pairs


def test_the_report_counts_every_pair(chat, preferences, monkeypatch):
    monkeypatch.setattr("posttrain.chat.token_report.MAX_COUNTED", 5)
    tokens = tokenise_data(chat, preferences, None, SETTINGS)
    assert tokens.report.n_counted == tokens.report.n_pairs == preferences.n_pairs
    assert tokens.report.cut == {
        name: sum(counts[name] for counts in tokens.pairs.cut.values()) for name in tokens.report.cut
    }


def test_a_run_whose_pairs_must_fit_stops_at_one_that_does_not(chat, preferences):
    with pytest.raises(
        UserError,
        match=r"truncated is set to fail, and some of 56 pairs do not fit \(.*\), for example .*set truncated to keep",
    ):
        tokenise_data(chat, preferences, None, TokeniseSettings(SHORT, must_fit=True))
    fitting = Lengths(max_length=500, max_prompt_length=400)
    assert tokenise_data(chat, preferences, None, TokeniseSettings(fitting, must_fit=True)).sft is None


def test_dpo_lengths_are_no_part_of_the_tokens_of_sft(chat, preferences):
    """Else a change of dpo.max_length would train SFT again."""
    short = tokenise_data(chat, preferences, None, SETTINGS)
    long = tokenise_data(chat, preferences, None, TokeniseSettings(Lengths(max_length=96, max_prompt_length=64), 16))
    assert short.sft.digest == long.sft.digest
    assert short.pairs.digest != long.pairs.digest
    other = tokenise_data(chat, preferences, None, TokeniseSettings(SHORT, 20))
    assert other.sft.digest != short.sft.digest
    assert other.pairs.digest == short.pairs.digest


def test_what_is_saved_comes_back(chat, preferences, tmp_path):
    tokens = tokenise_data(chat, preferences, None, SETTINGS)
    for kind, saved in ((PairTokens, tokens.pairs), (SftTokens, tokens.sft)):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        saved.save(folder)
        loaded = kind.load(folder)
        assert loaded == saved
        assert loaded.digest == saved.digest
        assert {path.suffix for path in folder.iterdir()} == {".parquet", ".json"}


def test_digest_depends_on_the_tokens_and_not_on_how_they_are_stored():
    ids = pa.list_(pa.int32())

    def digest(*chunks: list[list[int]]) -> str:
        return _digest({"train": pa.table({"prompt_ids": pa.chunked_array(list(chunks), ids)})}, {})

    assert digest([[1, 2], [3]]) == digest([[1, 2]], [[3]])
    assert len({digest([[1, 2], [3]]), digest([[1], [2, 3]]), digest([[1, 2], [4]]), digest([[1, 2]])}) == 4


def test_digest_of_a_chat_is_the_same_after_saving(tiny_base, tmp_path):
    """A template with Windows line ends is read back with \\n, and renders the same."""
    base, section = tiny_base
    (tmp_path / "own.jinja").write_bytes(TEMPLATES["plain"].replace("{% endfor %}", "\r\n{% endfor %}\r\n").encode())
    chat = prepare_chat(load_chat(base, section).tokenizer)
    chat.tokenizer.chat_template = (tmp_path / "own.jinja").read_bytes().decode()
    chat.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = prepare_chat(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    assert loaded.tokenizer.chat_template != chat.tokenizer.chat_template
    assert loaded.digest == chat.digest


def test_digest_of_a_chat_depends_on_template_vocabulary_and_stop_token(tiny_base, chat):
    base, section = tiny_base
    assert load_chat(base, section).digest == chat.digest
    assert load_chat(base, section.model_copy(update={"chat_template": "chatml"})).digest != chat.digest
    more = load_chat(base, section)
    more.tokenizer.add_tokens(["another-word"])
    assert more.digest != chat.digest
