"""The blind test in Argilla, where a team already annotates: the pairs go there, and the submitted responses come back as votes."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Generations
from posttrain.feedback.ab import digest, shown_pairs
from posttrain.feedback.ballots import LONGEST_COMMENT, QUESTIONS, Ballot, Vote

GUIDELINES = "Read the prompt, then both answers. Choose the answer that you would prefer to receive."
LABELS = {"left": "the first", "tie": "no difference", "right": "the second"}
ADDRESS, KEY = "ARGILLA_API_URL", "ARGILLA_API_KEY"


def export_to_argilla(generations: Generations, name: str, n_raters: int) -> int:
    """Create a dataset with the pairs of a blind test, and return their number. It names neither model.

    Args:
        n_raters: number of people who have to answer each prompt.

    Raises:
        UserError: Argilla is not installed or cannot be reached, or has such a dataset already.
    """
    pairs, answers = shown_pairs(generations), digest(generations)
    with _argilla() as rg:
        client = _client(rg)
        if client.datasets(name) is not None:
            raise UserError(f"Argilla already has a dataset {name!r}: choose another name")
        questions = {"choice": "Which answer is better?"} | QUESTIONS
        settings = rg.Settings(
            guidelines=GUIDELINES,
            fields=[rg.TextField(name=field) for field in ("prompt", "first", "second")],
            questions=[
                *(
                    rg.LabelQuestion(name=question, title=title, labels=LABELS, required=question == "choice")
                    for question, title in questions.items()
                ),
                rg.TextQuestion(name="comment", title="Comment", required=False),
            ],
            distribution=rg.TaskDistribution(min_submitted=n_raters),
        )
        dataset = rg.Dataset(name=name, settings=settings, client=client).create()
        dataset.records.log(
            [
                rg.Record(
                    id=pair.id,
                    fields={"prompt": pair.prompt, "first": pair.left, "second": pair.right},
                    metadata={"answers": answers},
                )
                for pair in pairs
            ]
        )
    return len(pairs)


def ballots_from_argilla(name: str) -> list[Ballot]:
    """Return the submitted responses of a dataset, by person. Drafts and discarded responses do not count.

    Raises:
        UserError: Argilla is not installed or cannot be reached, or has no such dataset or no responses in it.
    """
    found: defaultdict[tuple[str, str], dict[str, Vote]] = defaultdict(dict)
    with _argilla() as rg:
        dataset = _client(rg).datasets(name)
        if dataset is None:
            raise UserError(f"Argilla has no dataset {name!r}: name the one of posttrain ab export --argilla")
        for record in dataset.records(with_responses=True, with_suggestions=False):
            for rater, values in _submitted(record).items():
                if "choice" in values:
                    values["comment"] = values.get("comment", "")[:LONGEST_COMMENT]
                    found[record.metadata["answers"], rater][record.id] = Vote.model_validate(values)
    if not found:
        raise UserError(f"nobody has submitted a response to the Argilla dataset {name!r} yet")
    return [Ballot(answers=answers, rater=rater, choices=votes) for (answers, rater), votes in found.items()]


def _submitted(record: Any) -> dict[str, dict[str, str]]:
    """Return what each person submitted, by person and question."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for response in record.responses:
        if response.status == "submitted" and response.value is not None:
            found[str(response.user_id)][response.question_name] = response.value
    return found


@contextmanager
def _argilla() -> Iterator[Any]:
    """Give Argilla's SDK, and turn its errors into ones that say what to do."""
    if importlib.util.find_spec("argilla") is None:
        raise UserError("Argilla's SDK is not installed: run pip install 'posttrain[argilla]'")
    import argilla
    from argilla.client import ArgillaError
    from httpx import HTTPError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the default workspace, and names that are not taken yet
            yield argilla
    except (ArgillaError, HTTPError) as error:
        raise UserError(
            f"Argilla at {os.environ.get(ADDRESS)} refused or cannot be reached ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}): check {ADDRESS} and {KEY}"
        ) from error


def _client(rg: Any) -> Any:
    missing = [name for name in (ADDRESS, KEY) if not os.environ.get(name)]
    if missing:
        raise UserError(f"set {' and '.join(missing)} to the address of Argilla and your key there")
    return rg.Argilla(api_url=os.environ[ADDRESS], api_key=os.environ[KEY])
