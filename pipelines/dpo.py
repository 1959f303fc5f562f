"""SFT, then DPO from that very SFT checkpoint, then the verdict."""

from typing import Any

from pipelines import ROOT
from pipelines._checked import CheckedPipeline
from posttrain.config import RunConfig
from posttrain.errors import UserError


def sft_then_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """The steps of a run, in order; `finetuning_type` decides which there are."""
    if config.sweep:
        raise UserError("sweep: dpo_pipeline trains one point only: run sweep_pipeline, or drop the section")
    # The steps import torch, which takes longer than the check of the config that comes before.
    from posttrain.reference import Lengths
    from steps.evaluate import evaluate
    from steps.find_champion import find_champion
    from steps.load_pair_sets import load_pair_sets
    from steps.promote import promote
    from steps.score_reference import score_reference
    from steps.train_dpo import train_dpo

    model, dpo = config.model, config.dpo
    lengths = Lengths(max_length=dpo.max_length, max_prompt_length=dpo.max_prompt_length)
    preferences, base, sft_checkpoint = up_to_sft(config)
    reference_logps = dpo_checkpoint = pair_sets = None
    if config.finetuning_type != "sft":
        reference_logps = score_reference(
            preferences, sft_checkpoint, base, model, lengths, config.evaluation.tokens_per_batch
        )
        dpo_checkpoint = train_dpo(reference_logps, sft_checkpoint, base, model, dpo, config.seed)
    candidate = dpo_checkpoint or sft_checkpoint
    if config.evaluation.sets:
        pair_sets = load_pair_sets(preferences, config.evaluation.sets, config.data)
    champion = find_champion(candidate, config.name)
    evaluation = evaluate(
        preferences, base, sft_checkpoint, dpo_checkpoint, reference_logps, champion, pair_sets, model, lengths,
        config.evaluation, dpo.beta if dpo_checkpoint else None,
    )  # fmt: skip
    promote(evaluation, candidate, champion, config.gate, config.name)


def up_to_sft(config: RunConfig) -> tuple[Any, Any, Any]:
    """The steps that every pipeline begins with: preferences, base model and SFT checkpoint."""
    import materializers  # noqa: F401 (registers them)
    from pipelines._artifacts import existing_checkpoint
    from posttrain.reference import Lengths
    from steps.check_tokens import check_tokens
    from steps.load_instructions import load_instructions
    from steps.load_preferences import load_preferences
    from steps.resolve_base import resolve_base
    from steps.train_sft import train_sft

    preferences, _ = load_preferences(config.data)
    base = resolve_base(config.model)
    lengths = Lengths(max_length=config.dpo.max_length, max_prompt_length=config.dpo.max_prompt_length)
    check_tokens(preferences, base, config.model, lengths, config.data.checks)
    if config.dpo.sft_checkpoint:
        return preferences, base, existing_checkpoint(config.dpo.sft_checkpoint)
    instructions = None
    if config.sft.dataset:
        instructions, _ = load_instructions(preferences, config.sft.dataset, config.data)
    return preferences, base, train_sft(preferences, instructions, base, config.model, config.sft, config.seed)


dpo_pipeline = CheckedPipeline("dpo_pipeline", sft_then_dpo, default_config=ROOT / "configs" / "demo.yaml")
