"""The ledger of looks at test sets: one version of the ZenML model `NAME-looks` for each comparison of two models.

A look is written by creating a version, which ZenML does atomically, with all that is known about it in the same write. Its
name consists of the test prompts and the two models, so a repeated comparison is not a new look. Of two runs at once, the one
whose version was created later counts the other. A test set that grows keeps its looks: an earlier look counts as the share of
today's test prompts that it has seen.
"""

import contextlib
import hashlib

from zenml.client import Client
from zenml.exceptions import EntityExistsError
from zenml.models import ModelVersionResponse

from posttrain.config import GateSection
from posttrain.evaluation.clusters import share_seen
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.looks import Look
from posttrain.evaluation.verification.verifier_figures import VerifierFigures

LARGEST_PAGE = 10_000


def take_look(name: str, figures: Figures | VerifierFigures, gate: GateSection) -> Look:
    """Write a look at the test prompts into the ledger of a model, if it is a new one, and return it.

    Args:
        name: of the model in ZenML's registry.
        figures: with the digests of the test prompts and of the two models that are compared.
    """
    client, ledger = Client(), f"{name}-looks"
    digests = figures.digests
    prompts, opponent = digests["test_prompts"], digests[figures.opponent]
    models = hashlib.sha256(f"{digests[figures.newest]} {opponent}".encode()).hexdigest()
    own_name = f"{prompts[:12]}-{models[:16]}"
    sketch = digests["test_prompts_sketch"]
    with contextlib.suppress(EntityExistsError):
        client.create_model(
            ledger,
            description=f"Looks of the gate at the test prompts of {name}. Deleting one makes the gate promote more easily.",
        )
    with contextlib.suppress(EntityExistsError):
        client.create_model_version(ledger, own_name, description=f"{gate.planned_looks} {sketch}")
    looks = client.list_model_versions(model=ledger, sort_by="asc:number", size=LARGEST_PAGE, hydrate=True).items
    own = next(look for look in looks if look.name == own_name)
    seen = [_seen(look, prompts, sketch) for look in looks if look.number < own.number]
    return Look(number=sum(share > 0 for share, _ in seen) + 1, used=sum(share / planned for share, planned in seen))


def _seen(look: ModelVersionResponse, prompts: str, sketch: str) -> tuple[float, int]:
    """Return which share of the prompts an earlier look has seen, and how many looks were planned then."""
    planned, _, earlier = (look.description or "1").partition(" ")
    same = str(look.name).startswith(prompts[:12])
    return 1.0 if same else share_seen(sketch, earlier) if earlier else 0.0, int(planned)


def spent_looks(name: str, figures: Figures) -> Look:
    """Return the number of looks in the ledger of a model that have seen some of these test prompts, and the share they used.

    Args:
        name: of the model in ZenML's registry.
        figures: with the digests of the test prompts.
    """
    prompts, sketch = figures.digests["test_prompts"], figures.digests.get("test_prompts_sketch", "")
    looks = Client().list_model_versions(model=f"{name}-looks", size=LARGEST_PAGE, hydrate=True).items
    seen = [_seen(look, prompts, sketch) for look in looks]
    return Look(number=sum(share > 0 for share, _ in seen), used=sum(share / planned for share, planned in seen))
