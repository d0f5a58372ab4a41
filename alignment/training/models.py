"""The model in training: loaded in its compute dtype, with or without LoRA, and saved as a plain checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.models.check import make_savable
from alignment.models.checkpoint import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    NOT_FINITE,
    TOKENIZER_FILES,
    first_not_finite,
    load_model,
    load_tokenizer,
    read_config,
    save_checkpoint,
)
from alignment.models.code import CODE_FILES
from alignment.models.loading import Reader, empty_model, reader
from alignment.models.quantised import dequantised
from alignment.models.sharding import (
    adapters,
    hollow,
    local,
    plain_name,
    replace_weights,
    require_shardable,
    wholes,
)
from alignment.models.weights import INDEX_FILE, SINGLE_FILE, tensors
from alignment.recipe.forward import Lora
from alignment.recipe.training import Optimisation
from alignment.stages.stage import AdapterSummary, OriginSummary
from alignment.store import Commit

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FILE_BYTES = 4 << 30
"""Bytes of one file of a checkpoint that is gathered from several ranks."""


class TrainedModel:
    """One model in memory, trained from the checkpoint in `folder`.

    Training in bfloat16 keeps the checkpoint's finer weights, where it has them, as the optimiser's masters.
    The result is stored in the dtype of its start, or in float32 if trained in it; its configuration and
    tokenizer are the start's, whatever the trainer set in them for itself. Code of the start's own runs, and comes
    along, where `runs_code`. Without `dropout` the model's own is off; LoRA's changes nothing at step 1 and stays.
    Raises `BadInput` for a start that could not be saved again, or for LoRA on tied weights: before it is trained.
    """

    def __init__(self, folder: Path, settings: Optimisation, runs_code: bool = False, *, dropout: bool = True) -> None:
        import torch

        self.folder, self.settings, self.runs_code = folder, settings, runs_code
        self.sharded = is_sharded(settings)
        stored = stored_dtype(folder)
        self.saved_as = "float32" if settings.precision == "float32" else stored
        if settings.quantise is not None:  # no finer than what was computed with
            self.saved_as = settings.precision
        finer = settings.precision == "bfloat16" and stored != "bfloat16" and settings.quantise is None
        self.read: Reader | None = None
        """Reads the weights of a sharded model, which has none until it is cut."""
        if self.sharded:
            precision = "bfloat16" if stored == "bfloat16" else "float32"
            precision = precision if settings.lora is None else settings.precision
            self.model = empty_model(folder, precision, runs_code=runs_code, dropout=dropout)
            require_shardable(self.model, getattr(torch, settings.precision))
            self.read = reader(self.model, folder)
            # an adapter is made on the device of its layer, with values, so weights have one, and no memory
            replace_weights(self.model, lambda _, weight: hollow(weight))
        elif finer and settings.lora is None:
            self.model = load_model(folder, "float32", runs_code=runs_code, dropout=dropout)
            round_weights(self.model)
        else:
            self.model = load_model(
                folder, settings.precision, runs_code=runs_code, dropout=dropout, quantise=settings.quantise
            )
        if settings.lora is not None:
            refuse_tied_targets(self.model, settings.lora, folder)
        make_savable(self.model, self.tokenizer(), folder)
        self.merge_elsewhere = finer and settings.lora is not None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The start's, anew: a trainer sets what it needs in its own."""
        return load_tokenizer(self.folder, self.runs_code)

    def lora_config(self) -> LoraConfig | None:
        """PEFT's configuration of the adapters; None where all weights are trained."""
        return None if self.settings.lora is None else lora_config(self.settings.lora)

    def keep_adapter(self, trained: Any, base: Commit, out: Path) -> dict[str, AdapterSummary]:
        """Writes the adapter into `out`/adapter, as PEFT saves it, if the settings say so; before `save` merges it.

        It names its base, which `base` is the commit of, by hub id and revision where it came from the hub, else by
        digest: a folder's path would say nothing on another machine.
        """
        if self.settings.lora is None or not self.settings.lora.keep_adapter:
            return {}
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = get_peft_model_state_dict(trained, save_embedding_layers=False)
        config, source = trained.peft_config["default"], OriginSummary.of(base).source or {}
        name = str(source.get("hub") or f"checkpoint:{base.digest}")
        described = {
            key: sorted(value) if isinstance(value, set) else value  # a set's order is another in each process
            for key, value in config.to_dict().items()
        }
        described |= {"base_model_name_or_path": name, "revision": source.get("revision"), "inference_mode": True}
        folder = out / ADAPTER_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: weight.detach().cpu().contiguous() for key, weight in sorted(weights.items())},
            folder / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        (folder / ADAPTER_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        about = AdapterSummary(
            base=name,
            revision=source.get("revision"),
            base_digest=base.digest,
            rank=config.r,
            alpha=config.lora_alpha,
            parameters=sum(weight.numel() for weight in weights.values()),
            quantise=self.settings.quantise,
        )
        return {"adapter": about}

    def save(self, trained: Any, optimizer: Any, out: Path) -> None:
        """Writes the trained model (the trainer's, PEFT or not) into `out`: masters unrounded, adapters merged.

        Every rank calls it, and the first one writes. Raises `BadInput` when training diverged.
        """
        import torch

        if self.sharded and self.settings.lora is None:
            self._save_by_weight(wholes(trained), trained, out)
            return
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        if self.sharded:
            self._save_by_weight(self._merged_weights(trained), trained.get_base_model(), out)
            return
        if self.settings.lora is None:
            plain = trained
            for weight, master in master_weights(optimizer):
                weight.data = master.data
        elif self.merge_elsewhere or self.settings.quantise:
            plain = self._merged_into_stored(trained)
        else:
            plain = trained.merge_and_unload()
        plain.to(getattr(torch, self.saved_as))
        require_finite(plain)
        save_checkpoint(plain, self.tokenizer(), out)
        keep_description(self.folder, out, self.saved_as, self.runs_code)

    def _save_by_weight(self, weights: Iterable[tuple[str, torch.Tensor]], model: Any, out: Path) -> None:
        """Weight by weight, in files of `FILE_BYTES`: the first rank has no more than one file's weights whole."""
        import torch
        from safetensors.torch import save_file
        from transformers.core_model_loading import revert_weight_conversion

        dtype, writes = getattr(torch, self.saved_as), torch.distributed.get_rank() == 0
        waiting: dict[str, torch.Tensor] = {}
        files: list[dict[str, int]] = []

        def write() -> None:
            named = revert_weight_conversion(model, waiting)
            path = out / f".part-{len(files)}.safetensors"
            save_file({name: weight.contiguous() for name, weight in named.items()}, path, metadata={"format": "pt"})
            files.append({name: weight.nbytes for name, weight in named.items()})
            waiting.clear()

        for name, weight in weights:
            if not writes:
                continue
            waiting[name] = weight.detach().to("cpu", dtype if weight.is_floating_point() else weight.dtype)
            require_finite_weights([(name, waiting[name])])
            if sum(each.nbytes for each in waiting.values()) >= FILE_BYTES:
                write()
        if not writes:
            return
        if waiting:
            write()
        names = [SINGLE_FILE]
        if len(files) > 1:
            names = [f"model-{place + 1:05d}-of-{len(files):05d}.safetensors" for place in range(len(files))]
            sizes = [size for weights in files for size in weights.values()]
            where = {weight: name for name, weights in zip(names, files, strict=True) for weight in weights}
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
            (out / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for place, name in enumerate(names):
            (out / f".part-{place}.safetensors").replace(out / name)
        self.tokenizer().save_pretrained(out)
        keep_description(self.folder, out, self.saved_as, self.runs_code)

    def _merged_weights(self, trained: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each weight of a sharded model with the adapter merged, read again from where it is stored:
        no process has the whole model, and a base rounded to compute is not kept."""
        import torch
        from peft.tuners.lora import LoraLayer

        assert self.read is not None
        model = trained.get_base_model()
        for weight in adapters(model):
            weight.data = weight.data.cpu().float()
        adapted = {f"{at}.weight": module for at, module in model.named_modules() if isinstance(module, LoraLayer)}
        dtype = torch.float32 if self.merge_elsewhere else getattr(torch, self.settings.precision)
        names = [plain_name(name) for name, _ in model.named_parameters()]
        for name in (name for name in names if name in self.read.entries):  # the others are the adapter's
            value = self.read.whole(name, dtype)
            if name in adapted:
                value += adapted[name].get_delta_weight("default")
            yield name, value
        stored = set(model.state_dict(keep_vars=True))
        yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)

    def _merged_into_stored(self, trained: Any) -> Any:
        """The adapter merged into the weights as they are stored: a base rounded to compute is not kept.

        A quantised base is kept, in float32 until the adapter is in it, as the adapter was trained beside its values.
        """
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        adapter = {name: weight.detach().cpu().float() for name, weight in get_peft_model_state_dict(trained).items()}
        values = {} if self.settings.quantise is None else dequantised(trained)
        if self.settings.quantise is None:
            trained.to("meta")
        precision = "float32" if self.merge_elsewhere or self.settings.quantise else self.settings.precision
        base = load_model(self.folder, precision, "cpu", runs_code=self.runs_code)
        for name, value in values.items():
            base.get_parameter(name).data = value
        make_savable(base, self.tokenizer(), self.folder)
        wrapped = get_peft_model(base, self.lora_config())
        set_peft_model_state_dict(wrapped, adapter)
        return wrapped.merge_and_unload()


def is_sharded(settings: Optimisation) -> bool:
    """Whether this process has a part of each weight only: what the settings ask for, where there are others."""
    import torch

    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return several and settings.sharded


def round_weights(model: Any) -> None:
    """Rounds float32 weights to bfloat16 and leaves each one's own value as its `original`.

    Buffers stay as they are, as they do when a checkpoint is loaded in bfloat16: rotary frequencies rounded
    to it would be another model's.
    """
    import torch

    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, weight in model.named_parameters():
        if not any(part in name for part in kept):
            weight.original = weight.detach()
            weight.data = weight.data.to(torch.bfloat16)


def master_weights(optimizer: Any) -> list[tuple[Any, Any]]:
    """(bfloat16 parameter, its float32 master) of an optimiser that keeps masters; none otherwise."""
    inner = getattr(optimizer, "optimizer", optimizer)  # as the trainer's accelerator wraps it
    return list(getattr(inner, "pairs", ()))


def owners(model: Any, optimizer: Any) -> dict[str, Any]:
    """Parameter name → the tensor that the optimiser steps: the float32 master where there is one."""
    masters = {id(weight): master for weight, master in master_weights(optimizer)}
    return {name: masters.get(id(weight), weight) for name, weight in model.named_parameters() if weight.requires_grad}


def stored_dtype(folder: Path) -> str:
    """The dtype most of a checkpoint's weights are stored in; float32 for any not in `STORED`."""
    elements: dict[str, int] = {}
    for tensor in tensors(folder):
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    return STORED.get(max(elements, key=lambda dtype: elements[dtype]), "float32")


def keep_description(start: Path, out: Path, dtype: str, runs_code: bool = False) -> None:
    """Gives the checkpoint in `out` the configuration and tokenizer files of `start`, byte for byte but the dtype, and
    its code where that may run."""
    code = {path.name for folder in (start, out) for path in folder.glob(CODE_FILES)} if runs_code else set()
    for name in (GENERATION_CONFIG_FILE, *TOKENIZER_FILES, *code):
        (out / name).unlink(missing_ok=True)
        if (start / name).is_file():
            shutil.copyfile(start / name, out / name)
    config = read_config(start)
    config.update(dict.fromkeys({"dtype", "torch_dtype"} & config.keys() or {"dtype"}, dtype))
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration of a recipe's `lora`."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


@contextmanager
def adapting(lora: Lora | None) -> Iterator[None]:
    """Raises `BadInput` for what PEFT refuses to put beside a model's layers."""
    try:
        yield
    except ValueError as error:
        told = (str(error).splitlines() or [""])[0]
        if lora is not None and "lora_dropout" in told:
            what = "PEFT drops nothing out of adapters beside experts: leave it at 0, or name linear layers as targets"
            raise BadInput(what, field="lora.dropout") from error
        if lora is not None and ("target" in told.lower() or "lm_head" in told):
            raise BadInput(told, field="lora.target_modules") from error
        raise


def refuse_tied_targets(model: Any, lora: Lora, folder: Path) -> None:
    """Raises `BadInput` for LoRA on an embedding and a head that are one tensor: merging changes both, and what was
    trained changed one of them."""
    tied, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not tied.weight or not isinstance(lora.target_modules, list):
        return  # `all-linear` leaves the head out
    for name, module in model.named_modules():
        if module in (tied, head) and any(
            name == target or name.endswith(f".{target}") for target in lora.target_modules
        ):
            raise BadInput(
                f"LoRA on {name} of {folder.name} would be saved as another model than was trained: its embeddings are"
                " tied to the head (tie_word_embeddings); leave both out, or train all weights",
                field="lora.target_modules",
            )


def require_finite(model: Any, step: int | None = None) -> None:
    """Raises `BadInput` naming the first weight that is not finite: nothing could be measured with it.

    Of a sharded model each rank looks at its own rows.
    `step` is the optimiser step that the weights are of, where it is not the last.
    """
    require_finite_weights(((name, local(weight)) for name, weight in model.named_parameters()), step)


def require_finite_weights(weights: Iterable[tuple[str, Any]], step: int | None = None) -> None:
    """The same of weights by name."""
    if (name := first_not_finite(weights)) is not None:
        when = "" if step is None else f" by step {step}"
        raise BadInput(f"training diverged{when}: {name} {NOT_FINITE}; lower the learning rate", field="learning_rate")
