"""Settings of pairs that are made from documents."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config.sections.evaluation_section import EndpointSection
from posttrain.config.sections.section import Section


class WriterSection(EndpointSection):
    """The model that writes, for each passage, an instruction, an answer of its own, and an extract that answers it."""


class DocumentsSection(Section):
    """Pairs from documents: chosen is an extract of a passage, rejected is the model's own answer to the same instruction."""

    paths: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1,
        description="files, folders or globs: text (.txt), Markdown (.md), HTML (.html, .htm) or Parquet (.parquet)",
    )
    text_column: str = Field("text", min_length=1, description="column with the text, for Parquet")
    min_passage_chars: int = Field(
        200, ge=1, description="minimum number of characters in a passage; shorter ones are counted"
    )
    max_passage_chars: int = Field(
        2000,
        ge=50,
        description="maximum number of characters in a passage; paragraphs are joined up to it and longer ones cut",
    )
    min_answer_chars: int = Field(
        100, ge=1, description="minimum number of characters of the extract and of the model's answer"
    )
    languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] | None = Field(
        None, description="languages of passages to keep, as two letters such as `en`; null: all"
    )
    max_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="maximum share of the model's word trigrams that occur in the passage; above it the answer was copied, and "
        "rejecting it would be wrong",
    )
    writer: WriterSection = WriterSection()

    @model_validator(mode="after")
    def validate_writer(self) -> DocumentsSection:
        if not self.writer.base_url:
            raise ValueError(
                "writer is missing: set writer.base_url and writer.model, the model that writes the instructions"
            )
        if self.min_passage_chars > self.max_passage_chars:
            raise ValueError("min_passage_chars is above max_passage_chars: lower it")
        return self
