"""No code of a model runs, unless the recipe says so; then it is pinned, copied along and recorded."""

from __future__ import annotations

import ast
import json
import os
import pty
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.check import check_loads
from alignment.models.checkpoint import digest_checkpoint, load_config, load_model, load_tokenizer
from alignment.models.code import RUNS_CODE
from alignment.models.pin import ModelPin, pin_model
from alignment.models.size import parameter_counts
from alignment.recipe import ModelSource
from alignment.stages import Context, execute
from alignment.stages.base_model import STAGE, BaseModelRequest
from alignment.store import Store

pytestmark = pytest.mark.usefixtures("code_of_models")

Make = Callable[..., Path]
PROJECT = Path(__file__).resolve().parents[3]

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path({mark!r}).touch()

class TinyConfig(LlamaConfig):
    model_type = "tiny_of_its_own"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_tiny import TinyConfig

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""
AUTO_MAP = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once the model's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def with_code(checkpoint: Make, mark: Path) -> Path:
    """A checkpoint whose configuration and model are classes of its own, in two files beside it."""
    folder = checkpoint()
    edit(folder / "config.json", model_type="tiny_of_its_own", architectures=["TinyForCausalLM"], auto_map=AUTO_MAP)
    (folder / "configuration_tiny.py").write_text(CONFIGURATION.format(mark=str(mark)))
    (folder / "modeling_tiny.py").write_text(MODELING)
    return folder


def is_refused(work: Callable[[], Any], file: str) -> None:
    with pytest.raises(BadInput, match=r"no code of a model is run.*run_code_of_model: true") as refused:
        work()
    assert file in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_needs_code_of_its_own_is_refused_by_one_line_wherever_it_is_read(
    with_code: Path, mark: Path
) -> None:
    for work in (
        lambda: pin_model(ModelSource(path=str(with_code))),
        lambda: check_loads(with_code),
        lambda: load_config(with_code),
        lambda: load_model(with_code, "float32"),
    ):
        is_refused(work, "config.json")
    assert not mark.exists()


def test_a_tokenizer_of_its_own_is_refused_before_anything_is_built_on_the_model(checkpoint: Make) -> None:
    folder = checkpoint()
    for named in ({"AutoTokenizer": ["tokenization_tiny.Tiny", None]}, ["tokenization_tiny.Tiny", None]):
        edit(folder / "tokenizer_config.json", auto_map=named, tokenizer_class="Tiny")
        is_refused(lambda: load_tokenizer(folder), "tokenizer_config.json")
        is_refused(lambda: check_loads(folder), "tokenizer_config.json")


def test_code_beside_a_model_that_transformers_knows_is_left_alone(checkpoint: Make, mark: Path) -> None:
    folder = checkpoint()
    edit(folder / "config.json", auto_map=AUTO_MAP)
    (folder / "configuration_tiny.py").write_text(CONFIGURATION.format(mark=str(mark)))
    (folder / "modeling_tiny.py").write_text(MODELING)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w')\n")
    pinned = pin_model(ModelSource(path=str(folder)))
    assert not [file.url for file in pinned.files or [] if file.url.endswith(".py")]
    assert type(load_model(folder, "float32")).__module__.startswith("transformers.")
    assert not mark.exists()


def test_no_terminal_is_asked(with_code: Path, mark: Path, tmp_path: Path, align_command: list[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    command = [*align_command, "reference", "--model", str(with_code), "--pairs", str(pairs), "--out", f"{pairs}.out"]
    process, terminal = pty.fork()
    if process == 0:
        os.execv(command[0], command)
    said = b""
    while select.select([terminal], [], [], 120)[0]:
        try:
            block = os.read(terminal, 4096)
        except OSError:
            break
        if not block:
            break
        said += block
        if b"[y/N]" in block:
            os.write(terminal, b"y\n")
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert b"[y/N]" not in said
    assert b"no code of a model is run" in said.replace(b"\r\n", b"")
    assert not mark.exists()


def test_the_recipe_lets_code_run_and_every_checkpoint_says_so(with_code: Path, mark: Path, tmp_path: Path) -> None:
    from transformers import set_seed

    set_seed(0)
    store = Store(str(tmp_path / "store"))
    pin = pin_model(ModelSource(path=str(with_code), run_code_of_model=True))
    commit = execute(STAGE, BaseModelRequest(pin=pin, seed=0), store)
    assert set(commit.summary[RUNS_CODE]) == {"configuration_tiny.py", "modeling_tiny.py"}
    context = Context(store, tmp_path / "out", tmp_path / "work")
    folder = store.fetch(commit.artifact)
    assert context.runs_code(commit.artifact)
    assert type(load_model(folder, "float32", runs_code=True)).__name__ == "TinyForCausalLM"
    assert mark.exists()
    is_refused(lambda: load_model(folder, "float32"), "config.json")


def test_code_that_may_run_is_part_of_what_a_checkpoint_is(with_code: Path) -> None:
    before = digest_checkpoint(with_code, runs_code=True)
    assert digest_checkpoint(with_code).config != before.config
    (with_code / "modeling_tiny.py").write_text(MODELING + "\n# another\n")
    after = digest_checkpoint(with_code, runs_code=True)
    assert (after.config != before.config, after.weights == before.weights) == (True, True)


def test_a_pin_says_nothing_of_code_unless_it_may_run(checkpoint: Make) -> None:
    pin = pin_model(ModelSource(path=str(checkpoint())))
    assert "runs_code" not in pin.model_dump()
    assert ModelPin(files=pin.files, runs_code=True).model_dump()["runs_code"] is True


@pytest.mark.parametrize(
    ("reference", "message"),
    [("owner/other--modeling_tiny.Tiny", "code of another repository"), ("modeling_gone.Tiny", "modeling_gone.py is")],
)
def test_code_that_may_run_lies_in_the_models_own_folder(with_code: Path, reference: str, message: str) -> None:
    edit(with_code / "config.json", auto_map={"AutoModelForCausalLM": reference})
    with pytest.raises(BadInput, match=message):
        pin_model(ModelSource(path=str(with_code), run_code_of_model=True))


@pytest.mark.parametrize(
    "asks",
    [
        {"_attn_implementation": "kernels-community/flash-attn2"},
        {"attn_implementation": "owner/kernel@v1:forward"},
        {"attn_implementation": {"text_config": "owner/kernel"}},
        {"text_config": {"_attn_implementation": "owner/kernel"}},
        {"use_kernels": True},
        {"kernel_config": {"RMSNorm": "owner/kernel:RMSNorm"}},
    ],
)
def test_kernels_of_a_hub_are_refused_by_one_line(checkpoint: Make, asks: dict[str, Any]) -> None:
    folder = checkpoint()
    edit(folder / "config.json", **asks)
    for work in (lambda: pin_model(ModelSource(path=str(folder))), lambda: load_model(folder, "float32")):
        with pytest.raises(BadInput, match=r"config\.json, field '.*': asks for kernels from a hub"):
            work()


def test_attention_is_ours_to_choose_whatever_the_configuration_names(checkpoint: Make) -> None:
    folder = checkpoint()
    edit(folder / "config.json", _attn_implementation="flash_attention_2")
    assert load_model(folder, "float32").config._attn_implementation == "sdpa"
    assert parameter_counts(json.loads((folder / "config.json").read_text()))[0] > 0


def test_transformers_takes_no_kernel_by_itself() -> None:
    from transformers.integrations import hub_kernels

    assert hub_kernels._kernels_enabled is False


def test_an_adapter_beside_a_model_is_not_loaded_on_top_of_it(checkpoint: Make) -> None:
    folder = checkpoint()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="an adapter lies beside the model"):
        load_model(folder, "float32")


def test_models_are_loaded_in_one_file_and_without_leave_to_run_code() -> None:
    """Whoever leaves the argument out is asked at a terminal by Transformers; who loads elsewhere is named here."""
    leave = {"**loading(runs_code)", "**loading(False)", "trust_remote_code=False"}
    leave |= {"trust_remote_code=loading(runs_code)['trust_remote_code']"}
    loaders = {"from_pretrained", "from_config"}
    found: dict[str, list[str]] = {}
    for floor in ("alignment", "eval", "resources", "assets", "alignment_dags"):
        for path in sorted((PROJECT / floor).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in loaders:
                    given = [ast.unparse(one) for one in call.keywords]
                    assert leave & set(given), f"{path}:{call.lineno}"
                    found.setdefault(path.name, []).append(ast.unparse(call.func))
    assert set(found) <= {"checkpoint.py", "gguf.py", "loading.py", "reward.py", "size.py"}, found
