"""SFT, then DPO from that very SFT checkpoint, then the verdict."""

from pathlib import Path
from typing import Any

from pipelines import ROOT
from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import CheckedPipeline


def sft_then_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """The steps of a run, in order; `finetuning_type` decides which there are."""
    if config.sweep:
        raise UserError("sweep: dpo_pipeline trains one point only: run sweep_pipeline, or drop the section")
    # The steps import torch, which takes longer than the check of the config that comes before.
    from steps.score_reference import score_reference
    from steps.train_dpo import train_dpo

    preferences, data_report, base, model, sft_checkpoint = up_to_sft(config)
    dpo, n_tokens = config.without_sources().dpo, config.evaluation.tokens_per_batch
    reference_logps = dpo_checkpoint = None
    if config.finetuning_type != "sft":
        reference_logps = score_reference(preferences, sft_checkpoint, base, model, dpo.lengths, n_tokens)
        dpo_checkpoint = train_dpo(reference_logps, sft_checkpoint, base, model, dpo, config.seed)
    judge_and_promote(config, preferences, data_report, base, model, sft_checkpoint, dpo_checkpoint, reference_logps)


def up_to_sft(config: RunConfig) -> tuple[Any, Any, Any, Any, Any]:
    """The steps that every pipeline begins with: preferences, their report, base model, its settings and SFT checkpoint."""
    import materializers  # noqa: F401 (registers them)
    from posttrain.orchestration.existing_checkpoint import existing_checkpoint
    from steps.check_tokens import check_tokens
    from steps.import_checkpoint import import_checkpoint
    from steps.load_instructions import load_instructions
    from steps.load_preferences import load_preferences
    from steps.resolve_base import resolve_base
    from steps.train_sft import train_sft

    preferences, data_report = load_preferences(config.data)
    base, model = resolve_base(config.model)
    check_tokens(preferences, base, model, config.dpo.lengths, config.data.checks)
    if config.dpo.sft_checkpoint:
        found = existing_checkpoint(config.dpo.sft_checkpoint)
        sft_checkpoint = import_checkpoint(str(found)) if isinstance(found, Path) else found
        return preferences, data_report, base, model, sft_checkpoint
    instructions = None
    if config.sft.dataset:
        instructions, _ = load_instructions(preferences, config.sft.dataset, config.data)
    sft = config.without_sources().sft
    sft_checkpoint = train_sft(preferences, instructions, base, model, sft, config.seed)
    return preferences, data_report, base, model, sft_checkpoint


def judge_and_promote(
    config: RunConfig,
    preferences: Any,
    data_report: Any,
    base: Any,
    model: Any,
    sft: Any,
    dpo: Any,
    reference_logps: Any,
) -> None:
    """The steps that every pipeline ends with: the newest model against those before it and the one in production."""
    from steps.conclude import conclude
    from steps.evaluate import evaluate
    from steps.find_champion import find_champion
    from steps.generate import generate
    from steps.load_pair_sets import load_pair_sets
    from steps.promote import promote
    from steps.report import report

    lengths, section = config.dpo.lengths, config.without_sources().evaluation
    sets = config.evaluation.sets
    pair_sets = load_pair_sets(preferences, sets, config.data) if sets else None
    champion = find_champion(dpo or sft, config.name)
    generations = generate(preferences, base, sft, dpo, model, lengths, section)
    evaluation = evaluate(
        preferences, base, sft, dpo, reference_logps, champion, pair_sets, model, lengths, section, generations
    )
    promotion = promote(evaluation, dpo or sft, champion, config.gate, config.name)
    conclude(report(data_report, base, sft, dpo, evaluation, generations, promotion))


dpo_pipeline = CheckedPipeline("dpo_pipeline", sft_then_dpo, default_config=ROOT / "configs" / "demo.yaml")
