"""Load the preference pairs, check them and split them."""

from typing import Annotated

from posttrain.config import DataSection
from posttrain.data import loader as library
from posttrain.data.report import DataReport
from posttrain.data.stored import Preferences
from posttrain.orchestration.caching.cache_key import code_digest
from posttrain.orchestration.running_step.run_figures import log_datasets
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.stacks.overlap import leave_to_earlier_run
from posttrain.reporting.pages.data_page import data_page
from posttrain.tracking import package_versions


@step(enable_cache=False)
def load_preferences(
    data: DataSection,
) -> tuple[
    Annotated[Preferences, "preferences"],
    Annotated[DataReport, "data_report"],
]:
    """Return the usable pairs, and a report that accounts for every row. Never cached: the source may have changed."""
    leave_to_earlier_run()
    with tracked(nested=False) as run:
        preferences, report = library.load_preferences(data)
        run.log_params({"data": {"digest": preferences.digest}, "code": {"digest": code_digest()}})
        run.log_params({"versions": package_versions()})
        log_datasets(run, preferences, report)
        run.log_dict(report.model_dump(), "data_report.json")
        run.log_text(data_page(report), "data_report.html")
    return preferences, report  # two names: ZenML counts the outputs in the source code
