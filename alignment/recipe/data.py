"""Where a recipe's models and data come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)


class Keyed(BaseModel):
    """What may stand in a stage's request: it says which of its fields count in the request's key.

    Fields named in `speed_only` change how fast a result comes, never what it is: they stay out of the key. A field
    named in `absent_by_default` stays out of key and JSON while it holds its default, so that what was made before
    there was such a field stays current.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset()
    absent_by_default: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = self.absent()
        return {name: value for name, value in handler(self).items() if name not in absent}

    def absent(self) -> set[str]:
        """Fields that are as if they were not there."""
        fields = type(self).model_fields
        return {name for name in self.absent_by_default if getattr(self, name) == fields[name].default}


class Section(Keyed):
    """A part of a recipe: unknown keys are refused by name, values do not change."""

    # an error's input may be an address with a password, and logs show the error's text
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_true_or_false(cls, value: Any, field: ValidationInfo) -> Any:
        """Pydantic takes true for 1 and false for 0. It may take a text for a number: YAML reads 1e-3 as one."""
        if _has_a_boolean(value):
            takes = list(_types_of(cls.model_fields[str(field.field_name)].annotation))
            if any(kind is int or kind is float for kind in takes) and not any(map(_takes_a_boolean, takes)):
                raise ValueError("must be a number, not true or false")
        return value


def _has_a_boolean(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_has_a_boolean, inside))


def _takes_a_boolean(kind: Any) -> bool:
    return kind is bool or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _types_of(annotation: Any) -> Iterator[Any]:
    """What is at the ends of an annotation: float and None of `dict[str, float] | None`."""
    inner = get_args(annotation)
    yield from (end for one in inner for end in _types_of(one)) if inner else (annotation,)


class ModelSource(Section):
    """Exactly one of `hub`, `path` and `embedded`."""

    hub: str | None = None
    """Model id on the Hugging Face Hub, such as Qwen/Qwen2.5-0.5B-Instruct."""
    revision: str | None = None
    """Commit hash, tag or branch on the hub; the hub's default branch if left out. It is pinned to a commit hash when
    the recipe is read, so a branch that moves makes another base model: give a hash for a run that can be repeated."""
    path: str | None = None
    """Local folder with config.json, safetensors weights and a tokenizer; or a file that ends in .gguf, which is
    dequantised once to bfloat16 (it needs the package gguf). Relative paths start at the folder the command is run in,
    not at the recipe's."""
    embedded: Literal["micro"] | None = None
    """The micro Llama that alignment-dags makes from a seed: it shows the pipeline, not quality."""
    chat_template: str | None = None
    """Jinja chat template, as text or as a path that ends in .jinja, in place of the tokenizer's own. Without one a
    model takes plain text only, no messages."""
    license: str | None = None
    """Licence of the model, such as apache-2.0, for the card of what is made from it; nothing depends on it."""
    run_code_of_model: bool = False
    """Run the Python files that the model brings (`auto_map`): read them first. They are pinned, copied into every
    checkpoint made from the model, and named in its lineage. Without this no code of a model runs."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        given = [name for name in ("hub", "path", "embedded") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path, embedded (given: {', '.join(given) or 'none'})")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        if self.run_code_of_model and self.embedded is not None:
            raise ValueError("run_code_of_model goes with hub or path: the embedded model brings no code")
        return self


class DataSource(Section):
    """Exactly one of `files`, `hub` and `embedded`."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"license"})

    files: list[str] | None = None
    """Paths, globs or fsspec URLs of JSONL, JSON, CSV or Parquet files; a folder means all data files in it.
    Relative paths start at the folder the command is run in, not at the recipe's."""
    hub: str | None = None
    """Data set id on the Hugging Face Hub."""
    revision: str | None = None
    """Commit hash, tag or branch of the data set; the hub's default branch if left out."""
    config: str | None = None
    """Configuration (subset) of the data set; needed where it has several."""
    split: str | None = None
    """Split of the data set, such as train."""
    embedded: Literal["micro"] | None = None
    """Text that alignment-dags generates from a seed."""
    license: str | None = None
    """Licence of the data, such as CC-BY-4.0, for lineage and card of what is trained on it; nothing depends on it."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        given = [name for name in ("files", "hub", "embedded") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of files, hub, embedded (given: {', '.join(given) or 'none'})")
        if self.hub is None and (self.revision or self.config or self.split):
            raise ValueError("revision, config and split go with hub")
        return self


def _words(value: Any) -> Any:
    """Words that YAML reads as numbers or booleans, as they are compared: text in lower case."""
    return {str(word).strip().lower(): wanted for word, wanted in value.items()} if isinstance(value, dict) else value


Column = Literal[
    "prompt",
    "instruction",
    "input",
    "system",
    "history",
    "messages",
    "conversations",
    "tools",
    "chosen",
    "rejected",
    "completion",
    "label",
    "kto_tag",
    "chosen_score",
    "rejected_score",
    "response_a",
    "response_b",
    "winner",
    "responses",
    "scores",
    "ranks",
]
"""The names that a form without an author of its own reads."""


class Reading(Section):
    """How records become preference rows, where the data leaves a choice."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {
            "columns",
            "labels",
            "pairing",
            "min_score_gap",
            "min_score_ratio",
            "max_side_similarity",
            "max_rows",
            "weight_column",
            "margin_column",
        }
    )

    columns: dict[Column, str] = {}
    """Which column of the data is which, for data in none of the known forms: `{prompt: question, chosen: good,
    rejected: bad}`. A dot leads into a column: `meta.question`. Columns that are not named here are read only where
    their name is one of these. With `system` the rows are read as conversations."""
    labels: Annotated[dict[str, bool], BeforeValidator(_words)] = {}
    """What the words or numbers of `label`, or of `winner`, mean: true for a wanted completion, or for `response_a` as
    the better one; false for the opposite. Case does not count."""
    pairing: Literal["best_worst", "all", "adjacent", "random"] = "best_worst"
    """Which pairs are made where a prompt has more than two answers with scores or ranks. `best_worst`: one, of the
    best and the worst. `all`: each two of them. `adjacent`: each with the next worse. `random`: one, drawn by a hash
    of the answers. Answers of equal score or rank are no pair."""
    min_score_gap: float | None = Field(default=None, ge=0)
    """Least difference of the chosen side's score and the rejected one's, on the data's own scale; pairs with less, or
    without scores, are quarantined. null keeps all."""
    min_score_ratio: float | None = Field(default=None, ge=1)
    """Least ratio of the chosen side's score to the rejected one's, such as 2 for SHP's votes; pairs with less, or
    without scores, are quarantined. null keeps all."""
    max_side_similarity: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of words that the two sides of a pair have in common, as a fraction: words that both have, over
    those that either has, with repetition and without regard to case. More similar pairs are quarantined: they teach
    little but that difference. 0.9 leaves out those that differ in one word of twenty. null keeps all."""
    weight_column: str | None = Field(default=None, min_length=1)
    """The column with a pair's weight, a number from 0, which `optimise.weighted` trains with; a dot leads into a
    column. Rows without, or with a weight that is negative or not finite, are quarantined."""
    margin_column: str | None = Field(default=None, min_length=1)
    """The column with a pair's target margin, which `optimise.target_margin: column` trains with: by how much the
    chosen side is better. Rows without, or with a margin that is not finite, are quarantined."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most rows of the source, in training and held out: which ones is drawn by the recipe's seed and the rows' ids, so
    that neither the order of rows nor of files counts. The others are left out and counted; null keeps all."""


DEFAULT_READING = Reading()


class PreferencePart(Reading, DataSource):
    """Preference data from one place."""

    split_into: int = Field(default=1, ge=1, le=10_000)
    """Number of shards that each source file (or hub split) is cut into, by the position of its rows."""

    def reading(self) -> Reading:
        """Only what decides how its records become rows."""
        return Reading(**{name: getattr(self, name) for name in Reading.model_fields})


class NamedSource(PreferencePart):
    """One of several sources."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    """Name of the source: its shards are called `<name>-…`. Lower-case letters, digits and _, a letter first."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the source's rows, relative to the other weights: as many rows are kept as these shares allow, which
    ones is drawn as for `max_rows`. Sources without a weight keep all their rows."""
    keep_rows: int | None = Field(default=None, ge=0)
    """Most rows of the source that are kept, drawn as for `weight` from the rows that are not left out for another
    reason; null keeps all. `align sources` writes it in place of `weight`, so that a policy without one source has the
    same rows of the others."""


class PreferenceSource(PreferencePart):
    """Preference data; each file is a shard, or `split_into` shards by row position. Several `sources` may be written
    as a list in place of this section.

    `max_length_gap`, `min_reference_logp`, `near_duplicates` and `decontaminate` leave rows out of the training set by
    name. They change no shard and no reference log-prob.
    """

    sources: tuple[NamedSource, ...] = ()
    """Several sources, each with its own place, columns, licence and weight, in place of one."""
    settle_seconds: float = Field(default=30.0, ge=0)
    """Seconds for which a file must not have been written before the watching sensor reads it."""
    watch_seconds: int = Field(default=30, ge=1)
    """Seconds from one check of the source by the watching sensor to the next."""
    max_length_gap: int | None = Field(default=None, ge=0)
    """Characters by which the chosen and the rejected answer of a pair may differ in length; pairs that differ by more
    are left out. `align prefs stats` shows how lengths differ."""
    min_reference_logp: float | None = Field(default=None, le=0)
    """Lowest reference log-probability of an answer, in nats a token, such as -5: pairs with an answer below it are
    left out, because the model would not have written it. Not for methods without a reference."""
    near_duplicates: float | None = Field(default=None, ge=0.5, le=1)
    """Similarity (0.5 to 1; 0.9 is usual) of prompt and both answers from which a row counts as a near-duplicate of an
    earlier row and is left out; estimated by MinHash over triples of words."""
    decontaminate: tuple[str, ...] = ()
    """Suites of the recipe, such as [gsm8k]: rows that hold one of their items are left out, by runs of 13
    words: more than two thirds of the runs of a text of the item. A change of the items makes the training set anew."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"sources": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_source(self) -> PreferenceSource:
        if not self.sources:
            super()._one_source()  # type: ignore[operator]  # pydantic's wrapper of the method
            return self
        if astray := sorted(self.model_fields_set & PreferencePart.model_fields.keys()):
            raise ValueError(f"{', '.join(astray)}: give it in each of the sources")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]}")
        return self

    @property
    def parts(self) -> tuple[PreferencePart, ...]:
        """The sources, or the one that this is."""
        return self.sources or (self,)

    @property
    def file_patterns(self) -> list[str]:
        """Paths, globs and URLs of all sources."""
        return [pattern for part in self.parts for pattern in part.files or ()]


# A recipe names the environment variable that holds a secret.


def _checked(value: str) -> str:
    # the error does not repeat the value, which may be the secret itself
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("expected the name of an environment variable that holds the secret, not the secret itself")
    return value


VariableName = Annotated[str, AfterValidator(_checked)]
"""The name of an environment variable. A recipe holds the name, never the secret itself."""
