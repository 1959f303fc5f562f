"""New preference pairs from answers of trained models."""

from pipelines import ROOT
from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import CheckedPipeline
from posttrain.orchestration.collecting_runs.found_pairs import print_collection


def load_and_collect(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """Load the preferences, whose held-out prompts are never used, and collect pairs."""
    if config.collect is None:
        raise UserError(
            "collect: missing, so it is not known what to collect: add for example `collect: {judge: {score_function: "
            "my_module:my_function}}`"
        )
    import materializers  # noqa: F401 (registers them)
    from steps.collect import collect
    from steps.load_preferences import load_preferences

    preferences, _ = load_preferences(config.data)
    collect(preferences, config.collect, config.data, config.dpo.lengths, config.name)


collect_pipeline = CheckedPipeline(
    "collect_pipeline",
    load_and_collect,
    default_config=ROOT / "configs" / "loop_demo.yaml",
    print_outcome=print_collection,
)
