"""How much of the pairs fits, before anything is trained."""

from typing import Annotated

from posttrain.chat.token_report import TokenReport, report_tokens
from posttrain.config import Lengths, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.models.checkpoint import Base
from posttrain.models.loading import load_chat
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.reporting.data_page import token_page


@step
def check_tokens(
    preferences: Preferences, base: Base, model: ModelSection, lengths: Lengths, checks: dict[str, str]
) -> Annotated[TokenReport, "token_report"]:
    """Lengths in tokens, and what is cut off; ends the run if `truncated: fail` says that nothing may be."""
    with tracked(nested=False) as run:
        report = report_tokens(
            load_chat(base, model), preferences, lengths.max_length, lengths.max_prompt_length, checks
        )
        run.log_dict(report.model_dump(), "token_report.json")
        run.log_text(token_page(report), "token_report.html")
    return report
