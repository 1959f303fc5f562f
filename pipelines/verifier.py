"""A verifier from the SFT model or another one, and its verdict on held-out questions."""

from pipelines import ROOT
from pipelines.dpo import up_to_sft
from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import CheckedPipeline


def train_and_judge_verifier(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """Run the steps in order. Those up to SFT are the same as in dpo_pipeline, and are taken from its cache."""
    if config.verifier is None:
        raise UserError(
            "verifier: missing, so there is nothing to train: add for example `verifier: {start: sft}`, or run dpo_pipeline"
        )
    from steps.conclude_verifier import conclude_verifier
    from steps.evaluate_verifier import evaluate_verifier
    from steps.find_champion import find_champion
    from steps.promote_verifier import promote_verifier
    from steps.report_verifier import report_verifier
    from steps.sample_answers import sample_answers
    from steps.train_verifier import train_verifier

    section, evaluation = config.verifier.for_training, config.without_sources().evaluation
    made = up_to_sft(config)
    verifier = train_verifier(
        made.preferences, made.tokens, made.sft_checkpoint, made.base, made.model, section, config.seed
    )
    sampled = sample_answers(
        made.preferences,
        made.tokens,
        made.sft_checkpoint,
        made.base,
        made.model,
        evaluation,
        config.verifier.best_of,
        config.verifier.best_of_temperature,
    )
    champion = find_champion(verifier, config.name)
    result = evaluate_verifier(
        made.preferences, made.tokens, sampled, verifier, champion, made.base, made.model, evaluation
    )
    promotion = promote_verifier(result, verifier, champion, config.gate, config.name)
    conclude_verifier(report_verifier(made.data_report, made.base, made.sft_checkpoint, verifier, result, promotion))


verifier_pipeline = CheckedPipeline(
    "verifier_pipeline", train_and_judge_verifier, default_config=ROOT / "configs" / "verifier_demo.yaml"
)
