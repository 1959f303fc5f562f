"""SFT, then DPO from that very SFT checkpoint, then the verdict."""

from pipelines import ROOT
from pipelines._checked import CheckedPipeline
from posttrain.config import RunConfig


def sft_then_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """The steps of a run, in order; `finetuning_type` decides which there are."""
    # The steps import torch, which takes longer than the check of the config that comes before.
    import materializers  # noqa: F401 (registers them)
    from pipelines._artifacts import existing_checkpoint
    from posttrain.reference import Lengths
    from steps.evaluate import evaluate
    from steps.find_champion import find_champion
    from steps.generate import generate
    from steps.load_instructions import load_instructions
    from steps.load_pair_sets import load_pair_sets
    from steps.load_preferences import load_preferences
    from steps.promote import promote
    from steps.report import report
    from steps.resolve_base import resolve_base
    from steps.score_reference import score_reference
    from steps.train_dpo import train_dpo
    from steps.train_sft import train_sft

    model, sft, dpo = config.model, config.sft, config.dpo
    lengths = Lengths(max_length=dpo.max_length, max_prompt_length=dpo.max_prompt_length)
    preferences, data_report = load_preferences(config.data)
    base = resolve_base(model)
    if dpo.sft_checkpoint:
        sft_checkpoint = existing_checkpoint(dpo.sft_checkpoint)
    else:
        instructions = None
        if sft.dataset:
            instructions, _ = load_instructions(preferences, sft.dataset, config.data)
        sft_checkpoint = train_sft(preferences, instructions, base, model, sft, config.seed)
    reference_logps = dpo_checkpoint = pair_sets = None
    if config.finetuning_type != "sft":
        reference_logps = score_reference(
            preferences, sft_checkpoint, base, model, lengths, config.evaluation.tokens_per_batch
        )
        dpo_checkpoint = train_dpo(preferences, reference_logps, sft_checkpoint, base, model, dpo, config.seed)
    candidate = dpo_checkpoint or sft_checkpoint
    if config.evaluation.sets:
        pair_sets = load_pair_sets(preferences, config.evaluation.sets, config.data)
    champion = find_champion(candidate, config.name)
    generations = generate(preferences, base, sft_checkpoint, dpo_checkpoint, model, lengths, config.evaluation)
    evaluation = evaluate(
        preferences, base, sft_checkpoint, dpo_checkpoint, reference_logps, champion, pair_sets, model, lengths,
        config.evaluation, generations, dpo.beta if dpo_checkpoint else None,
    )  # fmt: skip
    promotion = promote(evaluation, candidate, champion, config.gate, config.name)
    report(data_report, base, sft_checkpoint, dpo_checkpoint, evaluation, generations, promotion)


dpo_pipeline = CheckedPipeline("dpo_pipeline", sft_then_dpo, default_config=ROOT / "configs" / "demo.yaml")
