"""The stages of a run on pairs that are tokenised on the spot, for tests of one stage."""

from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.chat.tokens import PairTokens
from posttrain.config import Lengths, ModelSection, SftSection
from posttrain.data.stored import Instructions, Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat
from posttrain.training.reference import ReferenceLogps, ReferencePolicy, score_reference
from posttrain.training.sft import train_sft
from posttrain.training.trainer import TrainingJob

LENGTHS = Lengths(max_length=96, max_prompt_length=64)


def pair_tokens(
    preferences: Preferences,
    base: Base,
    model: ModelSection,
    lengths: Lengths = LENGTHS,
    checkpoint: Checkpoint | None = None,
) -> PairTokens:
    """Tokens of preferences, by the tokenizer of the base or of a checkpoint."""
    return tokenise_data(load_chat(base, model, checkpoint), preferences, None, TokeniseSettings(lengths)).pairs


def sft_on(
    preferences: Preferences, sft: SftSection, job: TrainingJob, instructions: Instructions | None = None
) -> Checkpoint:
    """SFT on the chosen responses, or on instructions."""
    settings = TokeniseSettings(LENGTHS, sft.max_length)
    tokens = tokenise_data(load_chat(job.base, job.model), preferences, instructions, settings).sft
    assert tokens is not None
    return train_sft(tokens, sft, job)


def reference_on(
    preferences: Preferences,
    checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    lengths: Lengths = LENGTHS,
) -> ReferenceLogps:
    """Log-probabilities of preferences under a checkpoint."""
    tokens = pair_tokens(preferences, base, model, lengths, checkpoint)
    return score_reference(tokens, ReferencePolicy(checkpoint, base, model), 8192)
