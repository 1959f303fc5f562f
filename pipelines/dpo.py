"""SFT, then DPO from that exact SFT checkpoint or from `dpo.start`, then the evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import ROOT
from posttrain.config import RunConfig
from posttrain.config.check_policies import TOKEN_CHECKS
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import CheckedPipeline


@dataclass(frozen=True)
class RunArtifacts:
    """Artifacts of a run that several steps read. A step's output is Any while a pipeline is being built."""

    preferences: Any
    data_report: Any
    base: Any
    model: Any
    tokens: Any
    sft_tokens: Any
    sft_checkpoint: Any
    reference: Any
    """Checkpoint that DPO is held to."""
    benchmarks: Any
    """Items of the benchmarks; None if there are none."""


def sft_then_dpo(config: RunConfig = RunConfig()) -> None:  # noqa: B008 (frozen)
    """The steps of a run in order. `finetuning_type` decides which of them are needed."""
    for name in ("sweep", "verifier"):
        if getattr(config, name):
            what = "trains a single point" if name == "sweep" else "trains no verifier"
            raise UserError(f"{name}: dpo_pipeline {what}: run {name}_pipeline, or remove the section")
    # The steps import torch, which takes longer than the check of the config that comes before.
    from steps.score_reference import score_reference
    from steps.train_dpo import train_dpo

    dpo, scoring = config.without_sources().dpo, config.evaluation
    made = up_to_sft(config)
    reference_logps = dpo_checkpoint = None
    if config.finetuning_type != "sft":
        reference_logps = score_reference(
            made.tokens,
            made.reference,
            made.base,
            made.model,
            scoring.tokens_per_batch,
            scoring.processes,
            [dpo.passes],
            config.seed,
        )
        dpo_checkpoint = train_dpo(reference_logps, made.sft_checkpoint, made.base, made.model, dpo, config.seed)
    judge_and_promote(config, made, dpo_checkpoint, reference_logps)


def up_to_sft(config: RunConfig) -> RunArtifacts:
    """The steps that every pipeline begins with, up to the SFT checkpoint."""
    import materializers  # noqa: F401 (registers them)
    from posttrain.orchestration.dpo_start import reference_of, start_of
    from posttrain.training.preflight import needs_of
    from steps.import_checkpoint import import_checkpoint
    from steps.load_benchmarks import load_benchmarks
    from steps.load_instructions import load_instructions
    from steps.load_preferences import load_preferences
    from steps.preflight import preflight
    from steps.resolve_base import resolve_base
    from steps.tokenise import tokenise
    from steps.train_sft import train_sft

    sft = config.sft
    section, start = start_of(config)
    benchmarks = load_benchmarks(config.evaluation.benchmarks) if config.evaluation.benchmarks else None
    base, model, tokenizer = resolve_base(section)
    base = preflight(base, model, needs_of(config, reads_base=start is None or start.kind != "full"))
    preferences, data_report = load_preferences(config.data, after="preflight")  # a broken base is found first
    sft_checkpoint = instructions = None
    if start:
        sft_checkpoint = start.checkpoint
        if not sft_checkpoint or isinstance(sft_checkpoint, Path):
            sft_checkpoint = import_checkpoint(sft_checkpoint and str(sft_checkpoint), base, tokenizer)
    elif sft.datasets:
        instructions, _ = load_instructions(preferences, sft.datasets, config.data)
    sft_max_length = sft.max_length if sft_checkpoint is None else None
    checks = {name: policy for name, policy in config.data.checks.items() if name in TOKEN_CHECKS}
    tokens, sft_tokens, _ = tokenise(
        preferences,
        instructions,
        base,
        sft_checkpoint,
        tokenizer,
        config.lengths,
        sft_max_length,
        sft.loss_on,
        checks,
        config.data.max_drop_share,
    )
    if sft_checkpoint is None:
        sft_checkpoint = train_sft(sft_tokens, base, model, config.without_sources().sft, config.seed)
    reference = reference_of(config, start) or sft_checkpoint
    return RunArtifacts(
        preferences, data_report, base, model, tokens, sft_tokens, sft_checkpoint, reference, benchmarks
    )


def judge_and_promote(config: RunConfig, made: RunArtifacts, dpo: Any, reference_logps: Any) -> None:
    """The steps that every pipeline ends with: compare the newest model with the earlier ones and the champion."""
    from steps.conclude import conclude
    from steps.evaluate import evaluate
    from steps.find_champion import find_champion
    from steps.find_verifier import find_verifier
    from steps.generate import generate
    from steps.load_pair_sets import load_pair_sets
    from steps.promote import promote
    from steps.report import report

    section, sets = config.without_sources().evaluation, config.evaluation.sets
    if config.dpo.reference == "sft":
        reference_logps = None  # of another model than DPO started from, which the evaluation compares with
    preferences, tokens, base, model, sft = made.preferences, made.tokens, made.base, made.model, made.sft_checkpoint
    pair_sets = load_pair_sets(preferences, sets, config.data) if sets else None
    champion, rejection = find_champion(dpo or sft, config.name)
    judge = find_verifier(section.judge.verifier) if section.judge.verifier else None
    generations = generate(preferences, tokens, base, sft, dpo, champion, model, section, judge)
    evaluation = evaluate(
        preferences,
        tokens,
        base,
        sft,
        dpo,
        reference_logps,
        made.sft_tokens,
        champion,
        pair_sets,
        model,
        section,
        generations,
    )
    benchmarks = take_benchmarks(config, made, dpo, champion) if made.benchmarks else None
    promotion = promote(evaluation, generations, dpo or sft, champion, rejection, benchmarks, config.gate, config.name)
    conclude(report(made.data_report, base, sft, dpo, evaluation, generations, benchmarks, promotion))


def take_benchmarks(config: RunConfig, made: RunArtifacts, dpo: Any, champion: Any) -> Any:
    """The steps of the benchmarks: one for each model, so that a model that stays the same is not scored again."""
    from steps.benchmark_champion import benchmark_champion
    from steps.benchmark_model import benchmark_model
    from steps.compare_benchmarks import compare_benchmarks

    items, base, model, n_tokens = made.benchmarks, made.base, made.model, config.evaluation.tokens_per_batch

    def take(stage: str, checkpoint: Any) -> Any:
        return benchmark_model(items, base, checkpoint, model, n_tokens, id=f"benchmark_{stage}")

    scores = {"base": take("base", None), "sft": take("sft", made.sft_checkpoint)}
    scores["dpo"] = take("dpo", dpo) if dpo else None
    scores["champion"] = benchmark_champion(items, base, champion, model, n_tokens)
    return compare_benchmarks(items, **scores, evaluation=config.without_sources().evaluation)


dpo_pipeline = CheckedPipeline("dpo_pipeline", sft_then_dpo, default_config=ROOT / "configs" / "demo.yaml")
