"""One SFT checkpoint, DPO from it at every point of a grid, and the evaluation of the best point."""

from pipelines import ROOT
from pipelines.dpo import judge_and_promote, up_to_sft
from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import CheckedPipeline


def one_sft_then_many_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """Run the steps of a sweep in order. Results that all points share are computed once, by the steps of dpo_pipeline."""
    if config.sweep is None:
        raise UserError(
            "sweep: missing, so there is nothing to compare: add for example `sweep: {grid: {beta: [0.05, 0.1, 0.5]}}`, or run "
            "dpo_pipeline"
        )
    from steps.choose_point import choose_point
    from steps.score_reference import score_reference
    from steps.train_point import train_point

    n_tokens = config.evaluation.tokens_per_batch
    made = up_to_sft(config)
    grid = config.without_sources().sweep_points()
    passes = [*dict.fromkeys(dpo.passes for _, dpo in grid)]
    reference_logps = score_reference(
        made.tokens,
        made.reference,
        made.base,
        made.model,
        n_tokens,
        config.evaluation.processes,
        passes,
        config.seed,
    )
    checkpoints, points = [], []
    for values, dpo in grid:
        checkpoint, point = train_point(
            values, reference_logps, made.sft_checkpoint, made.base, made.model, dpo, n_tokens, config.seed
        )
        checkpoints.append(checkpoint)
        points.append(point)
    dpo_checkpoint, _ = choose_point(points, checkpoints, config.sweep, config.without_sources().evaluation)
    judge_and_promote(config, made, dpo_checkpoint, reference_logps)


sweep_pipeline = CheckedPipeline(
    "sweep_pipeline", one_sft_then_many_dpo, default_config=ROOT / "configs" / "sweep.yaml"
)
