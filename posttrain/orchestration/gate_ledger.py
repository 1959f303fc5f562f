"""The ledger of looks at test sets: one version of the ZenML model `NAME-looks` for each comparison of two models.

A look is written by creating a version, which ZenML does atomically, with all that is known about it in the same write. Its
name consists of the test prompts and the two models, so a repeated comparison is not a new look. Of two runs at once, the one
whose version was created later counts the other.
"""

import contextlib
import hashlib

from zenml.client import Client
from zenml.exceptions import EntityExistsError

from posttrain.config import GateSection
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.looks import Look

LARGEST_PAGE = 10_000


def take_look(name: str, figures: Figures, gate: GateSection) -> Look:
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
    with contextlib.suppress(EntityExistsError):
        client.create_model(
            ledger,
            description=f"Looks of the gate at the test prompts of {name}. Deleting one makes the gate promote more easily.",
        )
    with contextlib.suppress(EntityExistsError):
        client.create_model_version(ledger, own_name, description=str(gate.planned_looks))
    looks = client.list_model_versions(
        model=ledger, name=f"startswith:{prompts[:12]}-", sort_by="asc:number", size=LARGEST_PAGE, hydrate=True
    ).items
    own = next(look for look in looks if look.name == own_name)
    earlier = [look for look in looks if look.number < own.number]
    return Look(number=len(earlier) + 1, used=sum(1 / int(look.description or 1) for look in earlier))
