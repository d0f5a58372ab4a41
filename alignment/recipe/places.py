"""Where a recipe's stages run, and where its runs and models go."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from alignment.recipe.data import Section, VariableName


class Pools(Section):
    """The pool of pools.yaml in which each GPU stage runs."""

    sft: str = "local"
    """Pool of supervised fine-tuning."""
    reference: str = "local"
    """Pool of the reference log-prob pass."""
    policy: str = "local"
    """Pool of preference training."""
    responses: str = "local"
    """Pool of all steps that load a model and generate text: answers to the suites, the policy's divergence, the check
    before a registration. If a server answers (`evals.generate`), the last two run in the pool of `reference`, and this
    one needs one process: with the GPUs that `kind: vllm` gives its server, or without any for `kind: endpoint`."""


FORBIDDEN_IN_MODEL_NAME = "/:@'\"`\\"
"""MLflow refuses / and : in a name, a quote would end the name in a search, and @ begins an alias."""
MAX_MODEL_NAME = 256


class Registry(Section):
    """Where runs and promoted models go in MLflow."""

    model_name: str | None = None
    """Name of the registered model; the recipe's name by default. Letters, digits, blanks, `. _ - +`; 256 at most."""
    smoke_prompt: str = "Hello"
    """Prompt that the checkpoint, loaded back from the store, must answer before it is registered; the answer is kept
    with the registration."""

    experiment: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """MLflow experiment that has the recipe's runs; the recipe's name by default. Recipes with the same experiment are
    compared there side by side: a recipe that `align run R --set … --as NAME` derives has the experiment of R. It
    changes no result."""

    @field_validator("model_name")
    @classmethod
    def _model_name(cls, value: str | None) -> str | None:
        """Refuses a name that MLflow would refuse only at the end of a whole run."""
        if value is None:
            return None
        bad = any(sign in FORBIDDEN_IN_MODEL_NAME or not sign.isprintable() for sign in value)
        if bad or not 0 < len(value) <= MAX_MODEL_NAME or value[0] in " .-" or value[-1] == " ":
            raise ValueError(
                f"{value[:60]!r} cannot name a registered model: a name begins with a letter or digit and holds"
                f" letters, digits, blanks and . _ - +, {MAX_MODEL_NAME} at most"
            )
        return value


class Publish(Section):
    """Where a registered model is published: exactly one of `folder` and `hub`.

    Only what the gate passed is published. A new version is published when it is registered, and `align publish MODEL`
    repeats it or catches up.
    """

    folder: str | None = None
    """A folder: each version is a folder in it, and the link `champion` leads to the newest. Relative paths start at
    the folder the command is run in, not at the recipe's."""
    hub: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """A model repository on the Hugging Face Hub, as in our-team/our-model; it is created if it is not there."""
    private: bool = True
    """Whether the repository must be private. A public one is refused where this is true; where it is false, licences
    of model and data must be known."""
    even_if_overridden: bool = False
    """Publish also what a person promoted despite the gate; its card says so."""
    token_env: VariableName = "HF_TOKEN"
    """Name of the environment variable that holds the hub's token; the token itself is never written anywhere."""

    @model_validator(mode="after")
    def _one_place(self) -> Publish:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give exactly one of folder, hub")
        if self.folder is not None and not self.private:
            raise ValueError("private goes with hub")
        return self
