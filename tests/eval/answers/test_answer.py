from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.generation.generator import Generator
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import TokenPolicy
from eval.answers.answer import ContinuationScorer, answer_suite
from eval.answers.files import Response
from eval.grading.score import Scored, score_suite
from eval.suites import SuiteSpec, suite_named
from eval.suites.items import load_items
from eval.suites.lm_eval_tasks import quiet
from eval.suites.rows import write_records

SPEC = importlib.util.spec_from_file_location("published_forms", Path(__file__).parents[1] / "published_forms.py")
assert SPEC is not None and SPEC.loader is not None
forms = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(forms)

YAMLS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "winogrande": "winogrande/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "hendrycks_math_algebra": "hendrycks_math/hendrycks_math_algebra.yaml",
}
TEMPLATE = (
    "{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
    "{{ '\nassistant: ' if add_generation_prompt else '' }}"
)


@pytest.fixture(scope="module")
def parts(real_data: Path) -> tuple[Any, Any]:
    folder = real_data / "stories260k"
    return load_model(folder, "float32", "cpu"), load_tokenizer(folder)


def generator_of(parts: tuple[Any, Any], chat: bool, batch_tokens: int = 1500) -> Generator:
    model, tokenizer = parts
    tokenizer.chat_template = TEMPLATE if chat else None
    return Generator(model, tokenizer, batch_tokens)


def spec_of(folder: Path, name: str, records: list[dict[str, Any]], **settings: Any) -> SuiteSpec:
    write_records(folder / "items.jsonl", records)
    given = {"num_fewshot": None, "max_new_tokens": 12} | settings
    return SuiteSpec(name=name, data=pin_file(str(folder / "items.jsonl")), **given)


def answered(spec: SuiteSpec, generator: Generator) -> tuple[list[Response], Scored]:
    suite = suite_named(spec.name)
    found = answer_suite(suite, spec, 1, generator)
    return found.responses, score_suite(suite, found.items, found.responses)


def oracle(
    folder: Path,
    parts: tuple[Any, Any],
    task: str,
    records: list[dict[str, Any]],
    split: str,
    chat: bool,
    shots: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """lm-eval's own evaluation of the model: its HFLM, its loop, one request a batch; two examples of `shots`."""
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder.mkdir()
    tasks = Path(lm_eval.__file__).parent / "tasks"
    stock = tasks / YAMLS.get(task, f"mmlu/default/{task}.yaml")
    files = {split: str(folder / "d.jsonl")}
    write_records(folder / "d.jsonl", records)
    config: dict[str, Any] = {"include": str(stock), "task": "oracle", "dataset_path": "json", "dataset_name": None}
    if shots:
        files["dev"] = str(folder / "s.jsonl")
        write_records(folder / "s.jsonl", shots)
    else:
        config |= {"training_split": None, "fewshot_split": None, "fewshot_config": None}
        config |= {"validation_split": None} if split == "test" else {}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
    config["num_fewshot"] = 2 if shots else 0
    (folder / "t.yaml").write_text(yaml.safe_dump(config))
    with quiet():
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load(["oracle"])
        loaded["tasks"]["oracle"].set_fewshot_seed(1234)
        lm = HFLM(pretrained=parts[0], tokenizer=parts[1], batch_size=1)
        result = evaluate(
            lm, loaded, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=True
        )
    assert result is not None
    return dict(result["results"]["oracle"]) | {"samples": result["samples"]["oracle"]}


@pytest.mark.real_data
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize(
    ("task", "make", "split"),
    [
        ("arc_challenge", forms.arc, "test"),
        ("truthfulqa_mc2", forms.truthfulqa, "validation"),
        ("winogrande", forms.winogrande, "validation"),
        ("hellaswag", forms.hellaswag, "validation"),
    ],
)
def test_choices_are_scored_as_by_lm_evals_own_loop(
    tmp_path: Path, parts: tuple[Any, Any], task: str, make: Callable[[int], Any], split: str, chat: bool
) -> None:
    records = make(23)
    responses, scored = answered(spec_of(tmp_path, task, records), generator_of(parts, chat))
    expected = oracle(tmp_path / "oracle", parts, task, records, split, chat)
    assert len(scored.metrics) == len(suite_named(task).metrics) >= 1
    for metric, mean in scored.metrics.items():
        assert mean.value == pytest.approx(expected[f"{metric},none"], abs=1e-6 if task.startswith("truth") else 1e-12)
    for response, sample in zip(responses, expected["samples"], strict=True):
        given = [one for one, _ in response.loglikelihoods]
        assert given == pytest.approx([resp[0][0] for resp in sample["resps"]], abs=2e-4)
        assert [greedy for _, greedy in response.loglikelihoods] == [resp[0][1] for resp in sample["resps"]]


@pytest.mark.real_data
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_mmlu_is_the_group_of_its_subjects_with_examples_of_the_same_subject(
    tmp_path: Path, parts: tuple[Any, Any], chat: bool
) -> None:
    records, examples = forms.mmlu(24), forms.mmlu(15, seed=1)
    write_records(tmp_path / "dev.jsonl", examples)
    few = {"few_shot_data": pin_file(str(tmp_path / "dev.jsonl")), "num_fewshot": 2}
    _, scored = answered(spec_of(tmp_path, "mmlu", records, **few), generator_of(parts, chat))
    assert scored.metrics["acc"].n == 24
    for subject in ("anatomy", "virology", "marketing"):
        own, shots = ([one for one in part if one["subject"] == subject] for part in (records, examples))
        expected = oracle(tmp_path / subject, parts, f"mmlu_{subject}", own, "test", chat, shots)
        values = [s.value for s in scored.samples if f'"subset": "{subject}"' in s.detail]
        assert sum(v or 0 for v in values) / len(values) == expected["acc,none"]


@pytest.mark.real_data
def test_math_answers_are_scored_by_lm_evals_own_equivalence(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    records = forms.math(12)
    spec = spec_of(tmp_path, "hendrycks_math", records)
    responses, _ = answered(spec, generator_of(parts, False))
    assert all(len(r.turns) == 1 and r.tokens[0] <= 12 for r in responses)
    expected = oracle(tmp_path / "o", parts, "hendrycks_math_algebra", records[::4], "test", False)
    pairs = zip(expected["samples"], responses[::4], strict=True)
    by_hand = [sample["resps"][0][0][: len(response.turns[0])] for sample, response in pairs]
    assert by_hand == [r.turns[0] for r in responses[::4]]  # lm-eval lets the model go on for longer
    suite = suite_named("hendrycks_math")
    items = load_items(suite, spec, 1)
    right = ["$" + one["solution"].split("boxed{")[1].split("}")[0] + "$" for one in records]
    wrong = [*right[:6], *("no idea" for _ in right[6:])]
    scored = score_suite(suite, items, [Response(i.id, (text,)) for i, text in zip(items, wrong, strict=True)])
    assert scored.metrics["exact_match"].value == 0.5


@pytest.mark.real_data
def test_choices_drawn_at_random_are_the_same_for_an_item_whatever_is_asked_with_it(
    tmp_path: Path, parts: tuple[Any, Any]
) -> None:
    generator = generator_of(parts, False)
    spec = spec_of(tmp_path, "gpqa_main_zeroshot", forms.gpqa(9))
    all_of_them, scored = answered(spec, generator)
    few, fewer = answered(spec.model_copy(update={"limit": 4}), generator)
    by_id = {response.id: response for response in all_of_them}
    assert len(few) == 4
    for response in few:
        assert [a for a, _ in response.loglikelihoods] == pytest.approx(
            [a for a, _ in by_id[response.id].loglikelihoods], abs=2e-4
        )
    values = {(s.id, s.metric): s.value for s in scored.samples}
    assert all(values[s.id, s.metric] == s.value for s in fewer.samples)


@pytest.mark.real_data
def test_an_item_that_does_not_fit_fails_by_name_where_lm_eval_would_cut_it(
    tmp_path: Path, parts: tuple[Any, Any]
) -> None:
    records = forms.arc(3)
    records[1]["question"] = "bear " * 600
    responses, scored = answered(spec_of(tmp_path, "arc_challenge", records), generator_of(parts, False))
    assert responses[1].failed is not None and responses[1].failed.endswith("> 512 + 1")
    assert (scored.n, list(scored.failed)) == (2, ["1"])


@pytest.mark.real_data
def test_choices_are_scored_under_the_date_of_training(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    tokenizer.chat_template = "{{ strftime_now('[%d %b %Y]') }}" + TEMPLATE
    asked = [{"role": "user", "content": "q"}]
    for policy, day in ((TokenPolicy(), "[26 Jul 2024]"), (TokenPolicy(today=date(2025, 1, 2)), "[02 Jan 2025]")):
        generator = Generator(model, tokenizer, 1500, policy)
        text = ContinuationScorer(model, generator.encoder, 1500).template(asked)
        assert text == f"{day}\nuser: q\nassistant: "
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == generator.encoder.encode(asked)[1:]


@pytest.mark.real_data
def test_what_a_task_cannot_ask_is_named(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    generator = generator_of(parts, False)

    def problem(name: str, records: list[dict[str, Any]], **settings: Any) -> str:
        with pytest.raises(BadInput) as found:
            answered(spec_of(tmp_path, name, records, **settings), generator)
        return str(found.value)

    missing = forms.arc(3)
    del missing[2]["answerKey"]
    assert "row 3, field 'answerKey'" in problem("arc_challenge", missing)
    assert "cannot read these items: UndefinedError: 'question' is undefined" in problem("arc_challenge", [{"q": 1}])
    unknown = forms.mmlu(4)
    unknown[3]["subject"] = "potions"
    assert "'potions' is not a subset of mmlu" in problem("mmlu", unknown)
    assert "each item names its own" in problem("mmlu", forms.arc(2))
    assert "chat_template" in problem("arc_challenge", forms.arc(2), chat_template=True)
    assert "num_fewshot: 2 needs few_shot_data" in problem("arc_challenge", forms.arc(2), num_fewshot=2)
    stray = forms.arc(3)
    stray[1]["choices"] = {"text": ["a", "b"], "label": ["A", "B"]}
    stray[1]["answerKey"] = "C"
    assert "lm-eval cannot ask item 1: ValueError" in problem("arc_challenge", stray)


@pytest.mark.real_data
@pytest.mark.parametrize("chat", [False, True])
def test_completions_are_scored_by_their_mean_log_likelihood_a_token(
    tmp_path: Path, parts: tuple[Any, Any], chat: bool
) -> None:
    import torch

    records = [
        {
            "id": str(number),
            "prompt": f"{name} went to the park.",
            "chosen": [" She saw a big red ball and was happy."],
            "rejected": [" x", "q q q q", f" {name} {name} {name}", "n" * 600 if number else "n"],
            "subset": "Focus",
        }
        for number, name in enumerate(("Lily", "Tom"))
    ]
    generator = generator_of(parts, chat)
    responses, scored = answered(spec_of(tmp_path, "reward_bench_2", records), generator)
    model, tokenizer = parts
    lily = records[0]
    prompt = lily["prompt"] + "\n\n"
    if chat:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": lily["prompt"]}], tokenize=False, add_generation_prompt=True
        )
    for text, (score, _) in zip(lily["chosen"] + lily["rejected"], responses[0].loglikelihoods, strict=True):
        ids = tokenizer(prompt + text).input_ids
        with torch.inference_mode():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(tokenizer(prompt.rstrip()).input_ids)  # lm-eval scores white space with the completion
        values = [float(logps[place - 1, ids[place]]) for place in range(start, len(ids))]
        assert score == pytest.approx(sum(values) / len(values), abs=2e-4)
    assert responses[1].failed is not None and "tokens >" in responses[1].failed
    assert (scored.n, set(scored.failed)) == (1, {"1"})
    right = responses[0].loglikelihoods[0][0] > max(score for score, _ in responses[0].loglikelihoods[1:])
    assert scored.metrics["focus"].value == float(right)
