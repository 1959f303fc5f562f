"""Where rows come from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.check_policies import REASONS, allowed_policies
from posttrain.config.explain import nearest
from posttrain.config.layouts import COLUMNS, INSTRUCTION_FORMATS, InstructionFormat, PreferenceFormat
from posttrain.config.section import Fraction, Section


class Source(Section):
    """One place that rows come from; a text stands for its `path` alone."""

    path: str = Field(
        min_length=1,
        description="`demo`, a file, a glob or a folder (JSONL, JSON, CSV, each also .gz or .zst, or Parquet), "
        "`s3://bucket/…` of these, a Hub dataset id, or hh-rlhf, oasst1, shp, ultrafeedback; `path:50000` reads that many rows",
    )
    format: Literal["auto", PreferenceFormat, InstructionFormat] = Field(
        "auto", description="layout of a row; `auto` recognises it from the columns and the first rows"
    )
    columns: dict[str, str] = Field(
        {}, description="our name: the file's name, e.g. `{prompt: question}`, where the columns are called otherwise"
    )
    revision: str | None = Field(None, description="Hub only: branch, tag or commit; what it resolved to is recorded")
    data_dir: str | None = Field(None, description="Hub only: folder inside the dataset repository")
    subset: str | None = Field(None, description="Hub only: name of the dataset's configuration")
    train_split: str = Field("train", description="name of the split that is trained on")
    test_split: str | None = Field(
        "test",
        description="name of the source's own test split, used where the source has one; null: those rows are not read",
    )
    limit: int | None = Field(None, ge=1, description="read at most this many rows of each split")
    weight: float | None = Field(
        None, gt=0, description="share of the training pairs, relative to the other sources' weights; null: all of them"
    )
    languages: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="keep rows in these only, as the column `lang` or `language` calls them; null: all"
    )
    min_score_ratio: float | None = Field(
        None,
        ge=1,
        description="drop pairs whose better answer is not scored this many times the worse; SHP: 2 is usual",
    )
    min_score_difference: float | None = Field(
        None, gt=0, description="drop pairs whose answers' scores are nearer to each other than this"
    )
    max_pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description="of one prompt keep at most this many pairs, those furthest apart first where a row has several",
    )

    @model_validator(mode="before")
    @classmethod
    def a_text_is_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("columns")
    @classmethod
    def columns_are_known_and_mapped_once(cls, columns: dict[str, str]) -> dict[str, str]:
        for ours in columns:
            if ours not in COLUMNS:
                raise ValueError(f"no layout has a column {ours!r} ({nearest(ours, COLUMNS)})")
        theirs = list(columns.values())
        if twice := sorted({name for name in theirs if theirs.count(name) > 1}):
            raise ValueError(f"takes the column {twice[0]!r} for two of ours: a column can be only one of them")
        return columns

    @model_validator(mode="after")
    def there_is_one_limit(self) -> Source:
        if self.limit is not None and _PATH_AND_LIMIT.fullmatch(self.path):
            raise ValueError(f"path {self.path} ends in a number of rows, and limit is {self.limit}: drop one of them")
        return self

    @property
    def location(self) -> str:
        """The path without a number of rows."""
        match = _PATH_AND_LIMIT.fullmatch(self.path)
        return match.group(1) if match else self.path

    @property
    def row_limit(self) -> int | None:
        """The most rows to read of each split."""
        match = _PATH_AND_LIMIT.fullmatch(self.path)
        return int(match.group(2)) if match else self.limit


_PATH_AND_LIMIT = re.compile(r"(.+):([1-9]\d*)")


class DataSection(Section):
    """Where the preference pairs come from and how they are split."""

    sources: list[Source] = Field([Source(path="demo")], min_length=1, description="read one after another")
    test_size: Fraction = Field(
        0.05, description="share of the prompts held out for the verdict; ignored for a source with its own test split"
    )
    validation_size: Fraction = Field(0.05, description="share of the prompts watched during training")
    seed: int = Field(0, ge=0, description="decides which prompts are held out; change it only for a new experiment")
    max_chars: int = Field(
        50_000, ge=1, description="a prompt or a response longer than this many characters is dropped, and counted"
    )
    max_drop_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="stop when a larger share of the rows cannot be used: the source or format is wrong",
    )
    checks: dict[str, Literal["keep", "drop", "fix", "fail"]] = Field(
        {},
        description="what to do about rows that fail a check, e.g. `{near_duplicate: keep}`: the README lists the checks",
    )
    near_threshold: float = Field(
        0.8,
        ge=0.7,
        le=1,
        description="texts are near copies from this share of common word triples (Jaccard); lower: more are found",
    )
    min_agreement: float = Field(
        0.75, ge=0, le=1, description="rows on whose label a smaller share of the annotators agrees are `disputed`"
    )
    max_length_bias: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="how often the longer response may be the chosen one before `length_bias` is found",
    )
    contamination: list[Source] = Field(
        [], description="evaluation sets whose prompts must not be trained on, e.g. `{path: gsm8k, train_split: test}`"
    )

    @field_validator("checks")
    @classmethod
    def each_policy_suits_its_check(cls, checks: dict[str, str]) -> dict[str, str]:
        for check, policy in checks.items():
            if check not in REASONS:
                raise ValueError(f"{check}: unknown check ({nearest(check, REASONS)})")
            if policy not in (allowed := allowed_policies(check)):
                raise ValueError(f"{check}: {policy} is not possible, only {', '.join(allowed)}")
        return checks

    @field_validator("sources")
    @classmethod
    def sources_hold_pairs(cls, sources: list[Source]) -> list[Source]:
        for source in sources:
            if source.format in INSTRUCTION_FORMATS:
                raise ValueError(f"format {source.format} holds instructions, not pairs: name it under sft.dataset")
        return sources

    @field_validator("sources")
    @classmethod
    def all_sources_have_a_weight_or_none(cls, sources: list[Source]) -> list[Source]:
        without = [source.path for source in sources if source.weight is None]
        if 0 < len(without) < len(sources):
            raise ValueError(f"{', '.join(without)} has no weight, and others have one: give each a weight, or none")
        return sources

    @model_validator(mode="after")
    def something_is_left_to_train_on(self) -> DataSection:
        if self.test_size + self.validation_size >= 0.9:
            raise ValueError("test_size and validation_size together leave under a tenth of the prompts to train on")
        return self
