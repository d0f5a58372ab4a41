"""What decides a forward pass: token ids, precision, the passes of reference and policy, and the adapter."""

from __future__ import annotations

from datetime import date
from typing import ClassVar, Literal

from pydantic import Field

from alignment.data.templates import TODAY
from alignment.models.quantised import Quantisation
from alignment.recipe.data import Section

Precision = Literal["float32", "bfloat16"]


class TokenPolicy(Section):
    """How a row becomes token ids. The settings are part of every sequence key."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {"max_prompt_length", "system", "today", "plain_text", "max_dropped", "format_tokens"}
    )
    speed_only: ClassVar[frozenset[str]] = frozenset({"max_dropped"})

    max_length: int = Field(default=2048, ge=2)
    """Longest prompt + completion in tokens, the tokens that begin and end a text included."""
    truncation: Literal["drop", "keep_start", "keep_end"] = "drop"
    """What happens to longer rows. `drop`: the pair is left out and counted. `keep_start`: the completion loses its
    end, the token that ends it included. `keep_end`: the prompt loses its start; the completion is never cut."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Longest prompt in tokens, the token that begins a text included; null sets no limit of its own. A longer prompt
    loses its start with `truncation: keep_end`; otherwise its row is left out and counted."""
    system: Literal["as_template", "first_user", "drop"] = "as_template"
    """What becomes of a conversation's system message. `as_template`: the chat template writes it. `first_user`: it is
    put before the first user message, a blank line between them. `drop`: it is left out. The last two are for chat
    templates that move it once an answer follows, as Mistral's do, or refuse it."""
    today: date = TODAY
    """The date, as YYYY-MM-DD, that a chat template which asks for today's date is told, in training and evaluation;
    a fixed one, since the tokens would change every day. It has no effect with other templates."""
    plain_text: Literal["as_is", "chat"] = "as_is"
    """What becomes of rows whose prompt and completion are plain strings. `as_is`: no chat template is applied. `chat`:
    the prompt becomes a user message and the completion an assistant message."""
    format_tokens: Literal["count", "mask"] = "count"
    """Whether the special tokens of a completion (headers, the end of a turn) count in its log-probs. `mask`: they do
    not, in neither the loss nor the reference, on both sides and in its number of tokens (Llama 3; Grattafiori et al.
    2024, section 4.1.4): two completions share them, and a loss that raises and lowers the same token may teach a model
    to stop too late or too early. SFT, and SFT rows beside preferences, count them always."""
    max_dropped: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a shard's rows, as a fraction, that may be left out because the chat template writes their
    prompt otherwise once an answer follows; more is an error, which names the remedy."""

    def writing(self) -> TokenPolicy:
        """Only what decides how a row is written out, which SFT and evaluations share; the rest at its default."""
        shared = ("system", "today", "plain_text", "max_dropped")
        return TokenPolicy(**{name: getattr(self, name) for name in shared})

    def drop_limit(self) -> dict[str, float]:
        """`max_dropped` where it is not the default, for the key of a stage that fails above it: it changes no value,
        but a result made where more rows may be dropped is no answer to who allows fewer."""
        return {} if self.max_dropped == TokenPolicy().max_dropped else {"max_dropped": self.max_dropped}


class Lora(Section):
    """LoRA adapter (Hu et al. 2021)."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"keep_adapter", "quantise"})

    rank: int = Field(default=16, ge=1)
    """Rank of the two matrices that are trained beside each weight; a higher one learns more and takes more memory."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: its change of a weight is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed at random while training, as a fraction."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter, such as q_proj; `all-linear` takes every linear layer but the head."""
    keep_adapter: bool = False
    """Keeps the adapter beside the merged checkpoint, in PEFT's format, so that a server can load it on top of the
    checkpoint that training started from. The merged checkpoint is the same with and without."""
    quantise: Quantisation | None = None
    """`nf4` keeps the frozen weights of linear layers in four bits while the adapter is trained (QLoRA; Dettmers et al.
    2023): about a quarter of their memory in bfloat16. The reference is quantised too, and its log-probs have keys of
    their own. The merged checkpoint holds the weights that were trained beside, in `precision`. It needs the package
    bitsandbytes (`alignment-dags[qlora]`). null keeps them in `precision`."""


class Reference(Section):
    """The reference log-prob pass, which is the one that training takes."""

    precision: Precision = "bfloat16"
    """Precision of weights and computation. If the method takes a reference, it must equal `optimise.precision`;
    otherwise the loss of the first step would differ from its theoretical value."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens of one forward pass of scorer and trainer. On a GPU in 16 bits passes are filled up to it and it counts
    in the values' key; elsewhere it changes speed and memory, never values. Halve it when memory runs out."""
    sharded: bool = False
    """Cuts the model's weights over the GPUs of a slot, for a model that one GPU cannot hold; false keeps a whole copy
    on each, which is faster where it fits. It counts where the pool's launcher starts more than one process, and
    changes no value."""
