"""Tokenise the data once, before anything is trained."""

from typing import Annotated

from posttrain.chat import tokenise_data as library
from posttrain.chat.token_report import TokenReport
from posttrain.chat.tokenise_data import TokeniseSettings
from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.config import Lengths, ModelSection
from posttrain.config.check_policies import policy_of
from posttrain.data.stored import Instructions, Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.reporting.pages.data_page import token_page


@step
def tokenise(
    preferences: Preferences,
    instructions: Instructions | None,
    base: Base,
    sft_checkpoint: Checkpoint | None,  # brings its own tokenizer and template
    model: ModelSection,
    lengths: Lengths,
    sft_max_length: int | None,
    loss_on: str,
    checks: dict[str, str],
    max_drop_share: float,
) -> tuple[
    Annotated[PairTokens, "tokens"],
    Annotated[SftTokens | None, "sft_tokens"],
    Annotated[TokenReport, "token_report"],
]:
    """Return the tokens of the pairs and of the SFT rows, and a report on what is cut off.

    Pairs and SFT rows are two artifacts, so that SFT stays cached when only DPO's lengths change.
    """
    with tracked(nested=False) as run:
        chat = load_chat(base, model, sft_checkpoint)
        must_fit = policy_of("truncated", checks) == "fail"
        settings = TokeniseSettings(lengths, sft_max_length, must_fit, loss_on == "all", checks, max_drop_share)
        tokens = library.tokenise_data(chat, preferences, instructions, settings)
        run.log_dict(tokens.report.model_dump(), "token_report.json")
        run.log_text(token_page(tokens.report), "token_report.html")
    return tokens.pairs, tokens.sft, tokens.report
