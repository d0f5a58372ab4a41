"""The recipe: one model, its preference data and a method, as a person writes it down."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, Tag, field_validator, model_validator

from alignment.address import all_shown
from alignment.methods import Method
from alignment.models.quantised import Quantisation
from alignment.recipe.data import ModelSource, PreferenceSource, Section
from alignment.recipe.evaluation import Evals, Gate, Judge
from alignment.recipe.forward import Reference, TokenPolicy
from alignment.recipe.generate import GeneratedPairs, OnPolicy, RewardModel, Rounds
from alignment.recipe.places import Pools, Publish, Registry
from alignment.recipe.schedule import Alerts, Schedule
from alignment.recipe.several import Link, MergePart, Soups, Sweep
from alignment.recipe.training import Dpo, Optimise, Sft, as_fast_as_sft


def _has_template(folder: str) -> bool:
    """Whether a model's folder names a chat template, in either of the places where Transformers keeps one. What a GGUF
    file has is only known once it is read: no note is made of it."""
    if folder.lower().endswith(".gguf"):
        return True
    settings = Path(folder) / "tokenizer_config.json"
    try:
        within = '"chat_template"' in settings.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True  # no folder of a model: what is wrong with it is said elsewhere
    return within or any(settings.parent.glob("chat_template*"))


def _one_or_chain(given: Any) -> str:
    """By which of its two forms `optimise` is read; a branch of a union names the form, and is no key in errors."""
    return "list[Link]" if isinstance(given, list | tuple) else "Optimise"


def _required_without_preset(schema: dict[str, Any]) -> None:
    """For editors: a file that extends a preset needs no more than a name."""
    others = [key for key in schema.pop("required") if key != "name"]
    schema |= {"required": ["name"], "anyOf": [{"required": others}, {"required": ["extends"]}]}


class Recipe(Section):
    """Everything a person decides. Its name is the asset group and the prefix of every asset key."""

    model_config = ConfigDict(json_schema_extra=_required_without_preset)

    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {
            "publish",
            "extends",
            "residency",
            "sweep",
            "soups",
            "merge",
            "generate",
            "rounds",
            "reward_model",
            "on_policy",
        }
    )

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """Lower-case letters, digits and _, a letter first, 63 characters at most. Another name is another recipe, with
    its own assets, nights and registered model; artifacts are shared whatever the name."""
    extends: str | None = None
    """A preset that the recipe is laid over, such as presets/zephyr_7b: a file from the recipe's folder, else among the
    shipped recipes. Sections are merged key by key; a section that says where a model or data is replaces the preset's.
    The recipe that results is what is kept and shown."""
    description: str = ""
    """What the recipe is for; people read it, nothing depends on it."""
    seed: int = 0
    """Seed of every draw: the order of training rows, samples of data, sampled answers, embedded models and data."""
    base_model: ModelSource
    """The pretrained model that supervised fine-tuning starts from; with `orpo`, where the policy starts."""
    sft: Sft | None = None
    """Supervised fine-tuning. The policy starts from its checkpoint, which is also the reference. Every method needs
    the section but `orpo`, which trains from the base model and refuses it."""
    preferences: PreferenceSource
    """The preference pairs."""
    tokens: TokenPolicy = TokenPolicy()
    """How a preference pair becomes token ids."""
    held_out_fraction: float = Field(default=0.02, ge=0, lt=0.5)
    """Fraction of the preference pairs that are held out: they are measured and never trained on. A hash of the prompt
    decides, so all pairs of a prompt are on the same side and stay there. 0 holds out none."""
    reference: Reference = Reference()
    """How the reference log-probs are computed."""
    optimise: Annotated[
        Annotated[Optimise, Tag("Optimise")] | Annotated[list[Link], Tag("list[Link]"), Field(min_length=1)],
        Discriminator(_one_or_chain),
    ] = Optimise()
    """How the policy is trained: the method, its settings and the optimiser's. `dpo` is an older spelling of it. A list
    is a chain: each link starts from the result of the link before it, and the last link's result is the policy."""
    generate: GeneratedPairs | None = None
    """Pairs that are made before training of answers that a model gives to prompts; they are one more shard beside
    those of `preferences`."""
    rounds: Rounds | None = None
    """Rounds of training, each on pairs made of answers that the policy of the round before gives."""
    reward_model: RewardModel | None = None
    """The reward model that scores sampled answers."""
    on_policy: OnPolicy | None = None
    """The prompts, answers and scores that `optimise.method: grpo` trains on. `preferences` are then only measured:
    their held-out pairs are, as with every method, and the others are not used."""
    dpo: Dpo = Dpo()
    """The older spelling of `optimise`, which `align recipes upgrade` rewrites; a recipe has one of the two."""
    sweep: Sweep | None = None
    """Trains at several points in place of one."""
    soups: Soups | None = None
    """Weighted averages of the policy and earlier checkpoints as candidates beside the policy alone."""
    merge: tuple[MergePart, ...] = ()
    """The policy as a weighted average (a model soup) of what training made and of other checkpoints, as a list of
    `{of: policy, weight: 0.9}`; the average is what is evaluated and can be registered. Empty averages nothing."""
    evals: Evals = Evals()
    """What is measured on the SFT checkpoint (with `orpo`, on the base model), the policy and the champion."""
    judge: Judge | None = None
    """Who grades open answers. Without a judge such suites are answered, and shown as not judged."""
    gate: Gate | Literal["none", "default"] = "none"
    """What a policy must show to be registered. `none` registers nothing, and the run ends without an error.
    `default` asks `no_regression` of every suite's main metric and of XSTest's refusals of unsafe prompts, with a
    margin of a twentieth of the metric's scale, that one of these is better than the baseline's, that answers are not
    twice as long, and that no fewer of them end by themselves. Suites that need a judge count only if the recipe has a
    judge; `align recipes check`, the plan and the report name those that are left out."""
    registry: Registry = Registry()
    """How a policy that passes is registered in MLflow."""
    publish: Publish | None = None
    """Where a registered model is published. Without this section it stays in the store and in MLflow."""
    pools: Pools = Pools()
    """The pool that each stage on a GPU runs in."""
    residency: str | None = Field(default=None, min_length=1)
    """Region that data and models must not leave, such as eu, or eu-west-1; a region eu-west-1 is within eu. Plan and
    run refuse a pool, the store, the tracking server, a judge, an endpoint or a place of publication that is elsewhere,
    or whose region pools.yaml does not tell. null demands nothing."""
    schedule: Schedule | None = None
    """The nightly run. Without this section a recipe runs only when a person asks."""
    alerts: Alerts | None = None
    """Where alerts go beside the log."""

    _written: dict[str, Any] | None = PrivateAttr(default=None)

    @cached_property
    def file(self) -> Path | None:
        """The resolved path of the file that the recipe was read from, set by the loader; None for plain data.

        It is neither a field nor a private attribute, so that two files with the same recipe give equal recipes.
        """
        return None

    @property
    def written(self) -> dict[str, Any]:
        """The recipe as the person wrote it, as plain data without secrets: environment variables are not filled in,
        and addresses have no user, password or query."""
        written = self._written
        return cast(
            dict[str, Any],
            all_shown(self.model_dump(mode="json", exclude_unset=True, by_alias=True) if written is None else written),
        )

    def outside_practice(self) -> list[str]:
        """One sentence for each setting of a training that lies outside of what practice supports; none is refused."""
        links = [note for link in self.links for note in link.outside_practice()]
        return [*(self.sft.outside_practice() if self.sft else []), *dict.fromkeys(links)]

    @field_validator("extends")
    @classmethod
    def _resolved(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError(
                "a preset is looked up where a recipe is read from its file, and this one was given as data"
            )
        return value

    @model_validator(mode="after")
    def _one_spelling(self) -> Recipe:
        """`dpo` holds the settings whichever way they are spelled; those of a chain's last link."""
        if {"optimise", "dpo"} <= self.model_fields_set:
            raise ValueError("optimise and dpo are two spellings of one section: give one of them")
        if "dpo" not in self.model_fields_set:
            self.__dict__["dpo"] = self.links[-1].as_dpo()
        return self

    @model_validator(mode="after")
    def _start(self) -> Recipe:
        called, start = self.links[0].called, self.start
        if self.sft is None and start == "sft_checkpoint":
            raise ValueError(
                f"sft is missing, and {called} starts from an SFT checkpoint: give sft a dataset, or adopt; orpo starts"
                " from the base model"
            )
        if self.sft is not None and start == "base_model":
            raise ValueError(f"{called} starts from the base model, without SFT: take the section sft out")
        return self

    @model_validator(mode="after")
    def _chain(self) -> Recipe:
        first = self.links[0]
        for number, link in enumerate(self.later_links, start=2):
            if link.method.data != first.method.data:
                raise ValueError(
                    f"optimise: link {number}, {link.called}, takes {link.method.data} rows, and link 1,"
                    f" {first.called}, {first.method.data} ones: the links of a chain share their data"
                )
            if link.tf32 != first.tf32:
                raise ValueError("optimise: tf32 must be the same in all links, as they share log-probs")
            if link.method.needs_reference and link.quantise != self.reference_quantise:
                raise ValueError(
                    "optimise: lora.quantise must be the same in all links with a reference, as they share log-probs"
                )
            if link.method.start == "base_model":
                raise ValueError(f"optimise: {link.called} starts from the base model, so only link 1 can be it")
            if link.select is not None and link.method.data != "paired":
                raise ValueError(f"optimise: link {number} selects pairs, and {link.called} takes none")
            if link.reference == "sft" and self.sft is None:
                raise ValueError(f"optimise: link {number} has reference: sft, and the recipe has no sft")
        if isinstance(first, Link) and first.select is not None:
            raise ValueError("optimise: link 1 has no policy before it that could disagree: select is for later links")
        return self

    @model_validator(mode="after")
    def _swept(self) -> Recipe:
        if self.sweep is None:
            return self
        if self.later_links:
            raise ValueError("sweep is of one training, and optimise is a chain: leave one of them out")
        if not self.evals.selected():
            raise ValueError("sweep has no items to pick a point by: select a suite in evals")
        if self.sweep.beta and "beta" not in self.method.settings():
            raise ValueError(f"sweep.beta: {self.training.called} has no beta")
        by = (self.sweep.by or "").partition("/")[0]
        if by and by not in self.evals.selected():
            raise ValueError(f"sweep.by names {by}, which evals does not select ({', '.join(self.evals.selected())})")
        return self

    @model_validator(mode="after")
    def _averaged(self) -> Recipe:
        if self.soups is None:
            return self
        if other := next((name for name in ("sweep", "merge") if getattr(self, name)), None):
            raise ValueError(f"soups and {other}: each makes the policy of its own, so leave one of them out")
        if not self.evals.selected():
            raise ValueError("soups have no items to pick a candidate by: select a suite in evals")
        if self.soups.sft and self.sft is None:
            raise ValueError("soups.sft averages the SFT checkpoint, and the recipe has no section sft")
        by = (self.soups.by or "").partition("/")[0]
        if by and by not in self.evals.selected():
            raise ValueError(f"soups.by names {by}, which evals does not select ({', '.join(self.evals.selected())})")
        return self

    @model_validator(mode="after")
    def _seeds(self) -> Recipe:
        if self.repeats and (self.merge or self.sweep or self.soups):
            other = "merge" if self.merge else "sweep" if self.sweep else "soups"
            raise ValueError(f"gate.seeds trains the policy again, and with {other} it is none that was trained alone")
        return self

    @model_validator(mode="after")
    def _merged(self) -> Recipe:
        if not self.merge:
            return self
        named = [part.of for part in self.merge if part.of is not None]
        if named.count("policy") != 1 or len(self.merge) < 2:
            raise ValueError("merge averages the policy, once, with at least one other checkpoint")
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"merge has {twice} twice")
        if "sft" in named and self.sft is None:
            raise ValueError("merge names sft, and the recipe has no section sft")
        total = sum(part.weight for part in self.merge)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of merge add up to {total:.6g}, not to 1")
        if self.sweep is not None:
            raise ValueError("merge and sweep: a sweep's winner is a point that was measured, so leave one of them out")
        return self

    @model_validator(mode="after")
    def _sampled(self) -> Recipe:
        for name, sampled in (("generate", self.generate), ("rounds", self.rounds)):
            if sampled is None:
                continue
            if sampled.judged and (self.judge is None or self.judge.kind != "openai"):
                raise ValueError(f"{name}.score asks a judge, and the recipe has no judge of kind openai")
            if sampled.reward_modelled and self.reward_model is None:
                raise ValueError(f"{name}.score has a reward model, and the recipe has no section reward_model")
            if sampled.weak == "sft" and self.sft is None:
                raise ValueError(f"{name}.weak: sft, and the recipe has no sft")
            if any(link.weighted or link.target_margin == "column" for link in self.links):
                raise ValueError(f"{name}: generated rows have neither weights nor margins of a column")
            if sampled.pairs == "delta" and any(link.target_margin == "scores" for link in self.links):
                raise ValueError(f"{name}.pairs: delta scores no answer of weak, which target_margin: scores reads")
        if self.generate is not None and self.generate.generator in ("sft", "champion") and self.sft is None:
            raise ValueError("generate.generator needs sft: name the model that answers")
        if self.refers_to_champion:
            refers = {"rounds": self.rounds, "a chain in optimise": self.later_links, "sweep": self.sweep}
            if other := next((name for name, value in refers.items() if value), None):
                raise ValueError(f"generate.reference: champion and {other}: give one of them")
            if not self.method.needs_reference:
                raise ValueError(f"generate.reference: champion, and {self.training.called} has no reference")
        trained_here = self.reward_model is not None and self.reward_model.adopt is None
        if self.generate is not None and self.generate.reward_modelled and trained_here:
            raise ValueError(
                "generate.score: a reward model that is trained here would be trained on what it has scored: give"
                " reward_model.adopt"
            )
        if trained_here and self.method.data != "paired":
            raise ValueError(f"reward_model is trained on pairs, and {self.training.called} takes none: give adopt")
        if self.rounds is None:
            return self
        others: dict[str, Any] = {"a chain in optimise": self.later_links, "sweep": self.sweep, "merge": self.merge}
        others["soups"] = self.soups
        others["gate.seeds"] = self.repeats
        for other in (name for name, value in others.items() if value):
            raise ValueError(f"rounds and {other}: give one of them")
        if not self.held_out_fraction:
            raise ValueError("rounds are compared on held-out prompts, and held_out_fraction is 0")
        if self.sft is None and "sft" in (self.rounds.start, self.rounds.reference):
            raise ValueError("rounds.start and rounds.reference: sft, and the recipe has no sft")
        if self.links[0].method.start == "base_model":
            raise ValueError(f"rounds: {self.training.called} starts from the base model, so later rounds cannot")
        return self

    @model_validator(mode="after")
    def _sampled_in_training(self) -> Recipe:
        settings, called = self.dpo, self.training.called
        if not any(link.method.on_policy for link in self.links):
            if self.on_policy is not None:
                raise ValueError(f"on_policy is what method: grpo trains on, and {called} takes preferences")
            return self
        if self.on_policy is None:
            raise ValueError(f"{called} trains on answers to prompts: give the section on_policy")
        others: dict[str, Any] = {"a chain in optimise": self.later_links, "sweep": self.sweep, "merge": self.merge}
        others |= {"generate": self.generate, "rounds": self.rounds, "gate.seeds": self.repeats}
        if other := next((name for name, value in others.items() if value), None):
            raise ValueError(f"{called} and {other}: give one of them")
        refused = {
            "lora": settings.lora,
            "sharded": settings.sharded,
            "tf32": settings.tf32,
            "router_aux_loss_coef": settings.router_aux_loss_coef,
            "sft_rows_fraction": settings.sft_rows_fraction,
            "weighted": settings.weighted,
            "target_margin": settings.target_margin,
            "stop": settings.stop,
            "keep_steps": settings.keep_steps,
            "gradient_checkpointing: selective": settings.gradient_checkpointing == "selective",
        }
        if name := next((name for name, value in refused.items() if value), None):
            raise ValueError(
                f"{name} does not go with {called}, which trains all weights by TRL's trainer: leave it out"
            )
        answers = settings.batch_size * self.on_policy.n
        if answers % settings.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {settings.micro_batch_size} does not divide the {answers} answers of a step"
                f" (batch_size {settings.batch_size} × on_policy.n {self.on_policy.n})"
            )
        return self

    @model_validator(mode="after")
    def _agreement(self) -> Recipe:
        section, called = self.training.spelling.section, self.training.called
        for link in self.links:
            needed = self.needs_reference or link.method.needs_reference
            if needed and self.reference.precision != link.precision:
                raise ValueError(
                    f"reference.precision and {section}.precision must be the same: the cached log-probs "
                    "must equal the policy's at its first step"
                )
        if self.evals.best_of is not None and self.reward_model is None:
            raise ValueError("evals.best_of chooses by a reward model: give the section reward_model")
        if self.evals.best_of is not None and self.evals.sharded:
            raise ValueError("evals.best_of needs the whole model in one process: leave out best_of or evals.sharded")
        if self.reference.sharded and self.scores and self.reference_quantise is not None:
            raise ValueError(
                "lora.quantise needs the whole model in one process: leave out lora.quantise or reference.sharded"
            )
        if self.preferences.min_reference_logp is not None and not self.needs_reference:
            raise ValueError(f"preferences.min_reference_logp needs a reference, and {called} has none")
        if unknown := set(self.preferences.decontaminate) - set(self.evals.selected()):
            raise ValueError(
                f"preferences.decontaminate names {', '.join(sorted(unknown))}, which evals does not select"
                f" (selected: {', '.join(self.evals.selected()) or 'none'})"
            )
        if self.evals.new_rows is not None and (not self.needs_reference or self.method.data != "paired"):
            raise ValueError(f"evals.new_rows takes pairs and a reference, and {called} has not both")
        worth = None if self.schedule is None else self.schedule.worth
        if worth is not None and worth.wake_on_drift and self.evals.new_rows is None:
            raise ValueError(
                "schedule.worth.wake_on_drift looks at new rows, which are not measured: add evals.new_rows: {}"
            )
        by_judge = self.evals.xstest is not None and self.evals.xstest.scored_by == "judge"
        if by_judge and (self.judge is None or self.judge.kind == "rubric"):
            raise ValueError("evals.xstest.scored_by: judge needs a judge of kind openai")
        if any(link.sft_rows_fraction for link in self.links) and (self.sft is None or self.sft.dataset is None):
            raise ValueError("sft_rows_fraction takes rows of sft.dataset, and the recipe has none")
        for asked, column in (
            (any(link.weighted for link in self.links), "weight_column"),
            (any(link.target_margin == "column" for link in self.links), "margin_column"),
        ):
            if asked and not all(getattr(part, column) for part in self.preferences.parts):
                what = "weighted" if column == "weight_column" else "target_margin: column"
                raise ValueError(f"{what} needs preferences.{column}, the column of the data that holds it")
        looks = [name for name in ("stop", "keep_steps") if any(getattr(link, name) is not None for link in self.links)]
        if looks and (not self.held_out_fraction or self.method.data != "paired"):
            why = "held_out_fraction is 0" if not self.held_out_fraction else f"{self.training.called} takes no pairs"
            raise ValueError(f"{section}.{looks[0]} looks at held-out pairs, and {why}")
        if self.judge and self.judge.kind == "rubric":
            others = (self.evals.alpaca_eval, self.evals.arena_hard, self.evals.harmless)
            if (self.evals.mt_bench and not self.evals.mt_bench.embedded) or any(others):
                raise ValueError("judge kind rubric grades only the embedded questions of mt_bench")
        return self

    def notes(self) -> list[str]:
        """One sentence for each setting that is allowed and seldom meant; none is refused."""
        notes, section = self.outside_practice(), self.training.spelling.section
        if self.sft is not None and self.sft.dataset is not None:
            fast = (as_fast_as_sft(link, self.sft) for link in self.links)
            notes += dict.fromkeys(f"{section}.{note}" for note in fast if note)
        if self.tokens.truncation == "keep_start":
            notes.append(
                "tokens.truncation: keep_start cuts the token that ends an answer: the policy may learn not to end"
            )
        if self.evals.selected() and self.evals.precision != self.dpo.precision:
            notes.append(
                f"evals.precision {self.evals.precision} is not {section}.precision {self.dpo.precision}: the policy"
                " is measured in another precision than it was trained in"
            )
        if self.refers_to_champion and self.gate == "none":
            notes.append(
                "generate.reference: champion has no effect while gate: none registers no champion: the reference stays"
                " the SFT checkpoint"
            )
        adopted = None if self.sft is None else self.sft.adopt
        if adopted is not None and adopted.path and adopted.chat_template is None and not _has_template(adopted.path):
            notes.append(
                "sft.adopt has no chat template, as base models: preferences alone do not teach to answer; give"
                " sft.dataset, or a chat_template if it was fine-tuned"
            )
        return notes

    @property
    def training(self) -> Dpo:
        """How the policy is trained, as the recipe spells it: what it calls the method, and what its notes name. Of a
        chain it is the last link."""
        return self.dpo if "dpo" in self.model_fields_set else self.links[-1]

    @property
    def links(self) -> tuple[Dpo, ...]:
        """The trainings from the start checkpoint to the policy, in order; one, unless `optimise` is a chain."""
        if "dpo" in self.model_fields_set:
            return (self.dpo,)
        return tuple(self.optimise) if isinstance(self.optimise, list) else (self.optimise,)

    @property
    def later_links(self) -> tuple[Link, ...]:
        """The links of a chain that start from a policy: all but the first."""
        return tuple(self.optimise[1:]) if isinstance(self.optimise, list) else ()

    @property
    def start(self) -> Literal["sft_checkpoint", "base_model"]:
        """Where the first training starts, which is what the policy is compared with."""
        return self.links[0].method.start

    @property
    def spoken_start(self) -> str:
        """What the start checkpoint is, in a sentence."""
        if self.start == "base_model":
            return "base model"
        return "adopted model" if self.sft is not None and self.sft.adopt is not None else "SFT checkpoint"

    @property
    def needs_reference(self) -> bool:
        """Whether the log-probs of the start checkpoint are needed: as some training's reference, or to select by."""
        return self.links[0].method.needs_reference or any(
            link.select is not None or (link.method.needs_reference and link.reference == "sft")
            for link in self.later_links
        )

    @property
    def refers_to_champion(self) -> bool:
        """Whether the reference of the training is the champion, once there is one."""
        return self.generate is not None and self.generate.reference == "champion"

    @property
    def scores(self) -> bool:
        """Whether any log-probs are cached: of the start checkpoint, or of a policy that a later link starts from."""
        return self.needs_reference or any(link.method.needs_reference for link in self.links)

    @property
    def reference_quantise(self) -> Quantisation | None:
        """How the frozen weights of checkpoints are kept whose log-probs are cached: as those of the trainings that
        take them for a reference. Without such a training as those of the policy's."""
        return next((link.quantise for link in self.links if link.method.needs_reference), self.dpo.quantise)

    @property
    def method(self) -> Method:
        """The preference method of the policy's training, with its own settings."""
        return self.dpo.method

    @property
    def candidates(self) -> Sweep | Soups | None:
        """The section that asks for several candidates, of which the best by one metric becomes the policy."""
        return self.sweep or self.soups

    @property
    def repeats(self) -> int:
        """How many more times the policy is trained, for the spread from run to run."""
        return self.gate.seeds - 1 if isinstance(self.gate, Gate) else 0

    @property
    def experiment(self) -> str:
        """The MLflow experiment of its runs."""
        return self.registry.experiment or self.name

    @property
    def model_name(self) -> str:
        """Name of the registered model: `registry.model_name`, or the recipe's name."""
        return self.registry.model_name or self.name
