"""Train a verifier on the preference pairs."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens
from posttrain.config import ModelSection, VerifierSection
from posttrain.data.stored import Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.running_step.step_training import training_stage
from posttrain.training import verifier as library
from posttrain.training.verifier import VerifierData, prompt_keys


@step
def train_verifier(
    preferences: Preferences,
    tokens: PairTokens,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    verifier: VerifierSection,
    seed: int,
) -> Annotated[Checkpoint, "verifier_checkpoint"]:
    """Return a verifier that starts from the layers of the SFT checkpoint, which may be the base itself."""
    seen = prompt_keys([*preferences.train["prompt"], *preferences.validation["prompt"]])
    with tracked(nested=True) as run:
        job = training_stage(run, base, model, verifier, seed, tokens.digest, sft_checkpoint.digest)
        checkpoint = library.train_verifier(VerifierData(tokens, seen), sft_checkpoint, verifier, job)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
