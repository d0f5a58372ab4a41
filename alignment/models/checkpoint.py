"""A checkpoint folder: config.json, safetensors weights and a tokenizer, read and written one way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.data.templates import ends_answers
from alignment.digest import canonical_json, json_digest
from alignment.errors import BadInput, first_few, no_such
from alignment.models.code import code_digests, loading, refusal, refuse_code, refuse_kernels
from alignment.models.ends import end_ids, eos_of_tokenizer, stop_strings
from alignment.models.quantised import Quantisation, loading_quantised, settle
from alignment.models.weights import INDEX_FILE, SINGLE_FILE, is_finite, tensors, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


# A checkpoint folder's small files: its configuration and the names its tokenizer goes by.

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CHAT_TEMPLATE_FILE = "chat_template.jinja"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FOLDER = "adapter"
"""Where a kept adapter lies: beside the weights, Transformers would load it on top of what it is merged into."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE_FILE,
)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json as plain data, of a folder or the file itself; raises `BadInput` when it is no JSON object."""
    path = Path(folder) if Path(folder).is_file() else Path(folder) / CONFIG_FILE
    try:
        config = json_of(path, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        there = "no config.json: not a checkpoint folder" if Path(folder).is_dir() else no_such("folder", folder)
        raise BadInput(there, file=str(folder)) from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", file=str(path)) from None
    if not isinstance(config, dict):
        raise BadInput("a model configuration is a JSON object", file=str(path))
    for name, count in _numbers(config, LAYERS):
        if count > MOST_LAYERS:  # Transformers makes lists of this length before it looks at any weight
            raise BadInput(f"says {count}; {MOST_LAYERS} are the most that are read", file=str(path), field=name)
    return config


LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
MOST_LAYERS = 10_000
SIZES = {"vocab_size": 1, "hidden_size": 1, "n_embd": 1, "d_model": 1, "intermediate_size": 16}
"""Sizes of a configuration, and of how many times the widest tensor one may be: the embeddings have all but the last,
which no tensor of a mixture of experts may have."""


def _numbers(config: dict[str, Any], names: Iterable[str]) -> Iterator[tuple[str, int | float]]:
    for part in (config, text_config(config)):
        for name in names:
            if isinstance(value := part.get(name), int | float) and not isinstance(value, bool):
                yield name, value


def refuse_sizes(folder: Path) -> None:
    """Raises `BadInput` for a size in config.json that the tensors in the folder's weights rule out.

    Transformers would first take the memory for a model of that size, and then say which shapes differ.
    """
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return
    widest = max((size for tensor in tensors(folder) for size in tensor.shape), default=0)
    for name, size in _numbers(read_config(folder), SIZES):
        if size > SIZES[name] * widest:
            told = f"says {size}, and no tensor of the weights has more than {widest}: config.json is another model's"
            raise BadInput(told, file=str(folder / CONFIG_FILE), field=name)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration: nested in multimodal ones, else the whole."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def max_positions(folder: str | Path) -> int | None:
    """The longest sequence the model was made for, or None where its configuration sets no bound."""
    return positions_of(read_config(folder))


def positions_of(config: dict[str, Any]) -> int | None:
    """The longest sequence that a configuration has positions for, or None where it sets no bound."""
    config = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def embeddings(folder: Path) -> int | None:
    """Ids that the model in `folder` has embeddings for, None where its configuration does not say."""
    rows = text_config(read_config(folder)).get("vocab_size")
    return rows if isinstance(rows, int) else None


def has_chat_template(folder: str | Path) -> bool:
    """Whether the folder's tokenizer carries a chat template, in a file of its own or in its configuration."""
    folder = Path(folder)
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    about = json_of(path, path.read_bytes())
    if not isinstance(about, dict):
        raise BadInput("a tokenizer's configuration is a JSON object", file=str(path))
    return bool(about.get("chat_template"))


def json_of(path: Path, data: bytes) -> Any:
    """What a checkpoint's JSON file says; raises `BadInput` that names the file."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", file=str(path)) from error


# What a checkpoint is: the digests that name it and the numbers every checkpoint's summary carries.

NO_EFFECT_ON_FORWARD = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attention_dropout",
        "attn_implementation",
        "attn_pdrop",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "resid_pdrop",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Configuration keys that leave an evaluated forward pass as it is; every other key counts, known or not."""


@dataclass(frozen=True)
class CheckpointDigest:
    """Names of a checkpoint's parts, 64 hex digits each; `digest` is over the other three and what ends an answer."""

    weights: str
    config: str
    tokenizer: str
    digest: str


def digest_checkpoint(folder: str | Path, runs_code: bool = False) -> CheckpointDigest:
    """Digests of a folder. The same tensors give the same `weights` however they are split over files.

    Code that may run changes a forward pass, so its files count as configuration. What ends an answer counts in
    `digest` alone, and only where it is more than the tokenizer's EOS, which the tokenizer's digest covers. So most
    checkpoints keep the digest of versions that did not look at it, and a digest that was committed is never
    computed again.
    """
    folder = Path(folder)
    weights, config, tokenizer = weights_digest(folder), config_digest(read_config(folder)), tokenizer_digest(folder)
    if runs_code:
        config = json_digest([config, code_digests(folder)])
    parts: list[Any] = [weights, config, tokenizer]
    ends, stops = end_ids(folder), stop_strings(folder)
    if stops or ends != eos_of_tokenizer(folder):
        parts.append({"ends": sorted(ends), "stops": sorted(stops)})
    return CheckpointDigest(weights, config, tokenizer, json_digest(parts))


def weights_digest(folder: Path) -> str:
    """SHA-256 over tensors sorted by name, each as name, dtype, shape and bytes; streamed.

    Raises `BadInput` for a weight that is not finite: nothing can be measured or trained with it.
    """
    sha = hashlib.sha256()
    for tensor in tensors(folder):
        about = canonical_json([tensor.name, tensor.dtype, tensor.shape])
        sha.update(len(about).to_bytes(4, "little") + about)
        for block in tensor.blocks():
            if not is_finite(tensor.dtype, block):
                raise BadInput(f"{tensor.name} {NOT_FINITE}", file=str(tensor.file))
            sha.update(block)
    return sha.hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """Digest of a configuration without the keys that change no forward pass."""
    return json_digest(_forward_keys(config))


def tokenizer_digest(folder: Path) -> str:
    """Digest over the tokenizer's files and chat template; JSON files by content, not by layout."""
    parts = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            parts[name] = (
                json_digest(json_of(path, data)) if path.suffix == ".json" else hashlib.sha256(data).hexdigest()
            )
    return json_digest(parts)


def checkpoint_summary(folder: str | Path, digest: CheckpointDigest | None = None) -> dict[str, Any]:
    """What every stage that makes a checkpoint puts into its summary, computed without loading the model.

    Keys: weights_digest, config_digest, tokenizer_digest, end_ids, rope_by_length, parameters, architecture,
    vocab_size, max_positions, has_chat_template, template_ends_answers.
    """
    folder = Path(folder)
    digest = digest or digest_checkpoint(folder)
    config = read_config(folder)
    return {
        "weights_digest": digest.weights,
        "config_digest": digest.config,
        "tokenizer_digest": digest.tokenizer,
        "end_ids": end_ids(folder),
        "rope_by_length": rope_by_length(config),
        "parameters": sum(tensor.elements for tensor in tensors(folder)),
        "architecture": next(iter(config.get("architectures") or [config.get("model_type", "unknown")])),
        "vocab_size": text_config(config).get("vocab_size"),
        "max_positions": max_positions(folder),
        "has_chat_template": has_chat_template(folder),
        "template_ends_answers": _template_ends_answers(folder),
    }


def _template_ends_answers(folder: Path) -> bool | None:
    """Whether what ends an answer stands behind those that the chat template writes; None where that is not known."""
    if not has_chat_template(folder):
        return None
    try:
        tokenizer = load_tokenizer(folder)
    except BadInput:  # it is no tokenizer, or one with code; who needs it says so
        return None
    ends = tokenizer.convert_ids_to_tokens(end_ids(folder))
    return ends_answers(tokenizer, [end for end in ends if end])


BY_LENGTH = ("longrope", "su", "dynamic")
"""Kinds of rotary positions that choose their frequencies by length; `su` is the older name of longrope."""


def rope_by_length(config: dict[str, Any]) -> bool:
    """Whether positions turn by the longest sequence of a pass, so that a log-prob depends on its company."""
    for part in (config, text_config(config)):
        for rope in (part.get("rope_scaling"), part.get("rope_parameters")):
            kinds = [rope, *rope.values()] if isinstance(rope, dict) else []  # one, or one for each kind of layer
            if any(
                isinstance(kind, dict) and (kind.get("rope_type") or kind.get("type")) in BY_LENGTH for kind in kinds
            ):
                return True
    return False


def whole_summary(recorded: dict[str, Any], folder: Callable[[], Path]) -> dict[str, Any]:
    """A checkpoint's recorded summary, and what the version that recorded it did not say, from the files.

    A recorded digest stands: it is what every artifact that was made from the checkpoint names.
    """
    if not all(name in recorded for name in ("weights_digest", "config_digest", "tokenizer_digest")):
        return checkpoint_summary(folder())
    if "end_ids" in recorded and "rope_by_length" in recorded:
        return recorded
    about = {"end_ids": end_ids(folder()), "rope_by_length": rope_by_length(read_config(folder()))}
    return {**about, **recorded}


def _forward_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _forward_keys(item) for name, item in value.items() if name not in NO_EFFECT_ON_FORWARD}
    return value


DROPOUT = ("dropout", "pdrop", "layerdrop", "drop_rate")
"""What names of dropout rates have in them."""
PRECISIONS = ("float32", "bfloat16", "float64")
NOT_FINITE = "holds values that are not finite (NaN or infinite)"

__all__ = [
    "CheckpointDigest",
    "checkpoint_summary",
    "default_device",
    "digest_checkpoint",
    "embeddings",
    "first_line",
    "first_not_finite",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_tokenizer",
    "loaded_from",
    "max_positions",
    "read_config",
    "require_precision",
    "save_checkpoint",
    "whole_summary",
    "without_dropout",
]


def default_device() -> torch.device:
    """This process's accelerator (by LOCAL_RANK under a launcher), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def require_precision(precision: str, device: torch.device | str) -> None:
    """Raises `BadInput` for a precision that the device does not compute in; a CPU does in each, slowly."""
    import torch

    if precision != "bfloat16" or torch.device(device).type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise BadInput(f"{name} does not compute in bfloat16: use float32", field="precision")


def load_config(folder: str | Path, runs_code: bool = False) -> PreTrainedConfig:
    """The folder's configuration as Transformers' own class has it; raises `BadInput` where it has none for it."""
    from transformers import AutoConfig

    folder = Path(folder)
    refuse_kernels(read_config(folder), str(folder / CONFIG_FILE))
    refuse_sizes(folder)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **loading(runs_code))
        config._attn_implementation = None  # ours to choose: one in the file would go before the argument
        text = config.get_text_config()
        if isinstance(text.pad_token_id, int) and text.pad_token_id >= text.vocab_size:
            text.pad_token_id = None  # it changes no forward pass, and PyTorch makes no embedding with it
        return config
    except Exception as error:  # a class may raise anything on values that it does not expect
        if not runs_code and isinstance(error, ValueError) and (refused := refusal(folder)) is not None:
            raise refused from error
        raise BadInput(f"cannot be read: {first_line(error)}", file=str(folder / CONFIG_FILE)) from error


def load_generation_config(folder: str | Path) -> GenerationConfig | None:
    """The folder's generation settings, None without the file; raises `BadInput` for values that are never valid."""
    from transformers import GenerationConfig

    path = Path(folder) / GENERATION_CONFIG_FILE
    if not path.is_file():
        return None
    settings = json_of(path, path.read_bytes())
    if not isinstance(settings, dict):
        raise BadInput("generation settings are a JSON object", file=str(path))
    for name in TOKEN_IDS:
        ids = settings.get(name)
        if not all(isinstance(token, int) for token in (ids if isinstance(ids, list) else [ids or 0])):
            raise BadInput(f"is a token id or a list of them, not {ids!r}", file=str(path), field=name)
    try:
        return GenerationConfig.from_dict(settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"cannot be used: {first_line(error)}", file=str(path)) from error


def load_tokenizer(folder: str | Path, runs_code: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, as it is; raises `BadInput` when there is none or it cannot be read.

    Code of its own runs only where `runs_code`, which a checkpoint's commit record says (`Context.runs_code`).
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise BadInput(f"no tokenizer here (expected one of {', '.join(VOCABULARY_FILES)})", file=str(folder))
    if not runs_code:
        refuse_code(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **loading(runs_code))
    except Exception as error:  # a damaged file raises whatever its parser stumbled on, bare Exception included
        if not runs_code and isinstance(error, ValueError) and (refused := refusal(folder)) is not None:
            raise refused from error
        raise BadInput(f"the tokenizer cannot be read: {first_line(error)}", file=str(folder)) from error
    return tokenizer


def load_model(
    folder: str | Path,
    precision: str,
    device: torch.device | str | None = None,
    *,
    runs_code: bool = False,
    dropout: bool = True,
    quantise: Quantisation | None = None,
) -> PreTrainedModel:
    """The folder's causal language model in eval mode, all weights in `precision`.

    With `quantise` those of linear layers are in four bits, and computed with in `precision`.

    Without `dropout` it drops nothing in training either: a policy that drops units is not its reference.

    Attention is SDPA, or eager for the few architectures without it (Gemma 2 caps its attention logits).
    Only safetensors weights are read. `device` is `default_device()` by default. Code of the model's own runs only
    where `runs_code`, which a checkpoint's commit record says (`Context.runs_code`).
    """

    folder = Path(folder)
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision '{precision}'; there are {', '.join(PRECISIONS)}")
    device = default_device() if device is None else device
    require_precision(precision, device)
    weight_files(folder)
    config = load_config(folder, runs_code)
    if not dropout:
        without_dropout(config)
    load_generation_config(folder)
    if (folder / ADAPTER_FILE).is_file():  # Transformers would load it on top, and no digest of ours names it
        raise BadInput("an adapter lies beside the model: merge it, or move it elsewhere", file=str(folder))
    with loaded_from(folder, "model", runs_code):
        how = {} if quantise is None else loading_quantised(quantise, precision, device)
        model = _load(folder, config, precision, "sdpa", runs_code, how)
    if quantise is None:
        model = model.to(device)  # type: ignore[arg-type]
    else:
        settle(model, folder)
    model.eval()
    if (name := first_not_finite(model.named_parameters())) is not None:
        raise BadInput(f"{name} {NOT_FINITE} in {precision}", file=str(folder))
    return model


@contextmanager
def loaded_from(folder: Path, what: str, runs_code: bool = False) -> Iterator[None]:
    """Turns whatever a model's class raises on a folder that it cannot use into `BadInput`: classes raise anything on
    values that they do not expect. What a device lacks or does wrong stays as it is."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        if not runs_code and isinstance(error, ValueError) and (refused := refusal(folder)) is not None:
            raise refused from error
        raise BadInput(f"the {what} cannot be loaded: {first_line(error)}", file=str(folder)) from error


def without_dropout(config: PreTrainedConfig) -> None:
    """Sets every dropout rate of a configuration to 0, before the model is made from it: many layers read theirs from
    it and hold no `nn.Dropout` (OPT, Falcon, BLOOM, GPT-BigCode). Some have a configuration of their own (DBRX)."""
    from transformers import PreTrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            without_dropout(value)
        elif isinstance(value, float) and any(word in name for word in DROPOUT):
            setattr(config, name, 0.0)


def first_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with an element that is not finite; None where all are.

    By the least and largest element, which takes no memory and a thirtieth of the time of `isfinite` on a CPU.
    """
    for name, weight in weights:
        if weight.numel() and not all(bool(end.isfinite()) for end in weight.detach().aminmax()):
            return name
    return None


def _load(
    folder: Path, config: PreTrainedConfig, precision: str, attention: str, runs_code: bool, how: dict[str, Any]
) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, precision),
            attn_implementation=attention,
            use_safetensors=True,
            use_kernels=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **loading(runs_code),
            **how,
        )
    except ValueError as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            return _load(folder, config, precision, "eager", runs_code, how)
        raise
    for names, what in (
        (sorted(map(str, found["missing_keys"])), "lack"),
        (sorted(str(mismatch[0]) for mismatch in found["mismatched_keys"]), "have another shape for"),
    ):
        if names:  # Transformers fills them with random numbers
            told = (
                f"the weights {what} {first_few(names)}: the files are not whole, or {CONFIG_FILE} is another model's"
            )
            raise BadInput(told, file=str(folder))
    return model


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes config, safetensors weights and tokenizer (with its chat template) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weight_files(folder)


def first_line(error: Exception) -> str:
    """An error's first line, and the second where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
