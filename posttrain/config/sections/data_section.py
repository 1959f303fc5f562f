"""Settings of the data: sources, splits and checks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.check_policies import REASONS, allowed_policies
from posttrain.config.explain import nearest
from posttrain.config.layouts import COLUMNS, INSTRUCTION_FORMATS, InstructionFormat, PreferenceFormat
from posttrain.config.sections.section import Fraction, Section

ARTIFACT = "artifact:"
"""Beginning of the path of a source that is an artifact of an earlier run."""


class Source(Section):
    """A dataset to read. A plain string is short for its `path`."""

    path: str = Field(
        min_length=1,
        description="`demo`, a file, glob or folder (JSONL, JSON, CSV or TSV, also as .gz or .zst, Parquet or Arrow), the same on "
        "`s3://bucket/…`, a Hub dataset id, or hh-rlhf, oasst1, shp, "
        "ultrafeedback; `path:50000` reads at most 50000 rows; `artifact:collected_preferences` reads the newest pairs that "
        "collect_pipeline made, `artifact:collected_preferences:3` those of version 3",
    )
    format: Literal["auto", PreferenceFormat, InstructionFormat] = Field(
        "auto", description="layout of the rows; `auto` detects it from the columns and the first rows"
    )
    columns: dict[str, str] = Field(
        {}, description="mapping from our column names to the file's, e.g. `{prompt: question}`"
    )
    labels: dict[str, Literal["first", "second", "tie"]] = Field(
        {},
        description="meaning of the values of the label column, e.g. `{0: first, 1: second}`; `positive`, `negative` and `zero` "
        "stand for numbers; by default the values of the whole source decide, or the run stops",
    )
    encoding: str | None = Field(
        None, description="encoding of text files, e.g. cp1252; null: UTF-8, or UTF-16 if a file begins like it"
    )
    revision: str | None = Field(None, description="Hub only: branch, tag or commit; the resolved commit is recorded")
    data_dir: str | None = Field(None, description="Hub only: folder inside the dataset repository")
    subset: str | None = Field(None, description="Hub only: configuration (subset) of the dataset")
    train_split: str = Field("train", description="name of the training split")
    test_split: str | None = Field(
        "test",
        description="name of the source's own test split, used if the source has one; null: do not read it",
    )
    limit: int | None = Field(None, ge=1, description="maximum number of rows to read from each split")
    weight: float | None = Field(
        None,
        gt=0,
        description="sampling weight: the source's share of the training pairs, relative to the other weights; null: use all pairs",
    )
    languages: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="languages to keep, as written in the column `lang` or `language`; null: all"
    )
    min_score_ratio: float | None = Field(
        None,
        ge=1,
        description="minimum ratio of the better answer's score to the worse one's; 2 is usual for SHP",
    )
    min_score_difference: float | None = Field(
        None, gt=0, description="minimum difference between the scores of the two answers"
    )
    max_pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description="maximum number of pairs per prompt; if one row yields several, those with the largest score difference are "
        "kept",
    )

    @model_validator(mode="before")
    @classmethod
    def validate_source(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def validate_labels(cls, labels: Any) -> Any:
        return {str(label).lower(): answer for label, answer in labels.items()} if isinstance(labels, dict) else labels

    @field_validator("encoding")
    @classmethod
    def validate_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError as error:
            raise ValueError(f"{encoding!r} is not an encoding of Python, such as utf-8, cp1252 or utf-16") from error
        return encoding

    @field_validator("columns")
    @classmethod
    def validate_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for ours in columns:
            if ours not in COLUMNS:
                raise ValueError(f"{ours!r} is not a column of any layout ({nearest(ours, COLUMNS)})")
        theirs = list(columns.values())
        if twice := sorted({name for name in theirs if theirs.count(name) > 1}):
            raise ValueError(f"maps two of our columns to {twice[0]!r}: map each column of the file only once")
        return columns

    @model_validator(mode="after")
    def validate_limit(self) -> Source:
        if self.limit is not None and self._path_and_limit:
            raise ValueError(f"path {self.path} ends in a number of rows and limit is {self.limit}: remove one of them")
        return self

    @property
    def location(self) -> str:
        """The path without the number of rows at its end."""
        match = self._path_and_limit
        return match.group(1) if match else self.path

    @property
    def row_limit(self) -> int | None:
        """The maximum number of rows to read from each split."""
        match = self._path_and_limit
        return int(match.group(2)) if match else self.limit

    @property
    def _path_and_limit(self) -> re.Match[str] | None:
        """The match of a path with a number of rows at its end. After the name of an artifact the number is its version."""
        return None if self.path.startswith(ARTIFACT) else _PATH_AND_LIMIT.fullmatch(self.path)


_PATH_AND_LIMIT = re.compile(r"(.+):([1-9]\d*)")


def check_weights(sources: list[Source]) -> None:
    """Check that every source has a weight, or none.

    Raises:
        ValueError: only some of them have one.
    """
    without = [source.path for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise ValueError(
            f"{', '.join(without)} has no weight, but other sources have one: set a weight for every source or for none"
        )


class DataSection(Section):
    """Sources of the preference pairs, their splits and checks."""

    sources: list[Source] = Field([Source(path="demo")], min_length=1, description="datasets to read, in this order")
    test_size: Fraction = Field(
        0.05,
        description="share of prompts held out for the final evaluation; ignored for a source with its own test split",
    )
    validation_size: Fraction = Field(0.05, description="share of prompts held out for validation during training")
    replay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of old pairs among the training pairs: all pairs of the last source are new and kept, and of "
        "those of the other sources so many are kept, chosen by hash, that they are this share; null: all",
    )
    seed: int = Field(
        0, ge=0, description="seed of the split into training, validation and test; changing it changes the test set"
    )
    max_chars: int = Field(
        50_000,
        ge=1,
        description="maximum number of characters in a prompt or a response; longer rows are dropped and counted",
    )
    max_drop_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="maximum share of dropped rows; above it the run stops, because the source or format is probably wrong",
    )
    checks: dict[str, Literal["keep", "drop", "fix", "fail", "fold", "escape", "unwrap"]] = Field(
        {},
        description="policy for rows that fail a check, e.g. `{near_duplicate: keep}`; `posttrain settings --checks` lists the "
        "checks",
    )
    near_threshold: float = Field(
        0.8,
        ge=0.7,
        le=1,
        description="minimum Jaccard similarity of the word trigrams of two texts to call them near copies; lower finds more",
    )
    min_agreement: float = Field(
        0.75,
        ge=0,
        le=1,
        description="minimum share of annotators who agree with the label; rows below it are `disputed`",
    )
    max_length_bias: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="maximum share of pairs whose chosen response is the longer one; `length_bias` is reported if the lower "
        "bound of the share's confidence interval exceeds this",
    )
    exclude: str | None = Field(
        None,
        min_length=1,
        description="file of rows to keep out of preferences, `sft.dataset` and `evaluation.sets`: an id or a prompt per line, "
        "or a data file with a column `id` or `prompt`",
    )
    contamination: list[Source] = Field(
        [],
        description="evaluation sets whose prompts must not occur in the training data, e.g. `{path: gsm8k, train_split: test}`",
    )

    @field_validator("checks")
    @classmethod
    def validate_checks(cls, checks: dict[str, str]) -> dict[str, str]:
        for check, policy in checks.items():
            if check not in REASONS:
                raise ValueError(f"{check}: unknown check ({nearest(check, REASONS)})")
            if policy not in (allowed := allowed_policies(check)):
                raise ValueError(f"{check}: policy {policy} is not allowed: must be {', '.join(allowed)}")
        return checks

    @field_validator("sources")
    @classmethod
    def validate_formats(cls, sources: list[Source]) -> list[Source]:
        for source in sources:
            if source.format in INSTRUCTION_FORMATS:
                raise ValueError(
                    f"format {source.format} contains instructions, not pairs: move the source to sft.dataset"
                )
        return sources

    @field_validator("sources")
    @classmethod
    def validate_weights(cls, sources: list[Source]) -> list[Source]:
        check_weights(sources)
        return sources

    @model_validator(mode="after")
    def validate_replay(self) -> DataSection:
        if self.replay is not None and len(self.sources) < 2:
            raise ValueError(
                "replay needs old pairs, and there is only one source: list the old sources before the new one"
            )
        if self.replay is not None and any(source.weight is not None for source in self.sources):
            raise ValueError(
                "replay and the weights of sources both decide how many pairs are used: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def validate_split_sizes(self) -> DataSection:
        if self.test_size + self.validation_size >= 0.9:
            raise ValueError(
                "test_size and validation_size leave less than a tenth of the prompts for training: lower one of them"
            )
        return self
