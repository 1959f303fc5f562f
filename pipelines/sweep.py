"""One SFT checkpoint, DPO from it at every point of a grid, and the verdict on the point that did best."""

from pipelines import ROOT
from pipelines._checked import CheckedPipeline
from pipelines.dpo import up_to_sft
from posttrain.config import RunConfig
from posttrain.errors import UserError


def one_sft_then_many_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """The steps of a sweep, in order; what the points share is computed once, by the same steps as in dpo_pipeline."""
    if config.sweep is None:
        raise UserError(
            "sweep: missing, so there is nothing to compare: add e.g. `sweep: {grid: {beta: [0.05, 0.1, 0.5]}}`, or run "
            "dpo_pipeline"
        )
    from posttrain.reference import Lengths
    from steps.choose_point import choose_point
    from steps.evaluate import evaluate
    from steps.promote import promote
    from steps.score_reference import score_reference
    from steps.train_point import train_point

    model, n_tokens = config.model, config.evaluation.tokens_per_batch
    lengths = Lengths(max_length=config.dpo.max_length, max_prompt_length=config.dpo.max_prompt_length)
    preferences, base, sft_checkpoint = up_to_sft(config)
    reference_logps = score_reference(preferences, sft_checkpoint, base, model, lengths, n_tokens)
    checkpoints, points = [], []
    for values, dpo in config.sweep_points():
        checkpoint, point = train_point(
            values, reference_logps, sft_checkpoint, base, model, dpo, n_tokens, config.seed
        )
        checkpoints.append(checkpoint)
        points.append(point)
    dpo_checkpoint, _ = choose_point(points, checkpoints, config.sweep, config.evaluation)
    evaluation = evaluate(
        preferences, base, sft_checkpoint, dpo_checkpoint, reference_logps, model, lengths, config.evaluation
    )
    promote(evaluation, config.gate, config.name)


sweep_pipeline = CheckedPipeline(
    "sweep_pipeline", one_sft_then_many_dpo, default_config=ROOT / "configs" / "sweep.yaml"
)
