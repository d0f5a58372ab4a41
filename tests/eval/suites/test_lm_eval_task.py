from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from eval.answers.files import Response
from eval.grading.lm_eval import replay
from eval.grading.score import score_suite
from eval.suites import GSM8K, IFEVAL, Item
from eval.suites.items import read_items
from eval.suites.lm_eval_task import FEW_SHOT_SEED, chat_prompts, open_task, plain_prompts, stop_strings


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when anything stays behind in the temporary folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def evaluate(task: Any, answers: list[str]) -> dict[str, Any]:
    """lm-eval's own evaluation loop over a model that says these answers, one per document."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate

    class Stored(LM):
        def generate_until(self, requests: list[Any]) -> list[str]:
            return [answers[request.doc_id] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    tasks: Any = {"tasks": {task.config.task: task}}
    result = evaluate(Stored(), tasks, bootstrap_iters=100)
    assert result is not None
    return dict(result["results"][task.config.task])


@pytest.mark.real_data
def test_gsm8k_scores_equal_lm_evals_own_loop(real_data: Path, no_leftovers: None) -> None:
    items = read_items(GSM8K, real_data / "gsm8k/test.jsonl")[:120]
    rng = random.Random(0)
    final = [str(item.fields["answer"].rpartition("#### ")[2]) for item in items]
    forms = ["so #### {}", "The answer is ${}.", "{} apples, no: {}5", "", "#### {},000"]
    answers = [rng.choice(forms).format(value, value) for value in final]
    assert GSM8K.task is not None
    with open_task(GSM8K.task, items) as task:
        oracle = evaluate(task, answers)
    scored = score_suite(GSM8K, items, [Response(i.id, (a,)) for i, a in zip(items, answers, strict=True)])
    for metric in GSM8K.metrics:
        name, _, filter_name = metric.partition(",")
        assert scored.metrics[metric].value == pytest.approx(oracle[metric])
        assert scored.metrics[metric].stderr == pytest.approx(oracle[f"{name}_stderr,{filter_name}"])


@pytest.mark.real_data
@pytest.mark.usefixtures("sentence_data")
def test_ifeval_scores_equal_lm_evals_own_loop(real_data: Path, no_leftovers: None) -> None:
    items = read_items(IFEVAL, real_data / "ifeval/input_data.jsonl")
    answers = [item.fields["prompt"].upper() if index % 2 else "no way" for index, item in enumerate(items)]
    steady = [  # lm-eval leaves these two kinds to chance
        index
        for index, item in enumerate(items)
        if not {"keywords:letter_frequency", "language:response_language"} & set(item.fields["instruction_id_list"])
        and not any(name.startswith("change_case:english") for name in item.fields["instruction_id_list"])
    ]
    items, answers = [items[index] for index in steady], [answers[index] for index in steady]
    assert len(items) > 350 and IFEVAL.task is not None
    with open_task(IFEVAL.task, items) as task:
        oracle = evaluate(task, answers)
    scored = score_suite(IFEVAL, items, [Response(i.id, (a,)) for i, a in zip(items, answers, strict=True)])
    for metric in IFEVAL.metrics:
        assert scored.metrics[metric].value == pytest.approx(oracle[f"{metric},none"])


@pytest.mark.real_data
@pytest.mark.usefixtures("sentence_data")
def test_scores_do_not_depend_on_the_other_items(real_data: Path) -> None:
    items = read_items(IFEVAL, real_data / "ifeval/input_data.jsonl")
    responses = [Response(item.id, (item.fields["prompt"],)) for item in items]
    whole = {(s.id, s.metric): s.value for s in score_suite(IFEVAL, items, responses).samples}
    part = score_suite(IFEVAL, items[200:260][::-1], responses[200:260]).samples
    assert len(part) > 200
    assert all(whole[s.id, s.metric] == s.value for s in part)


@pytest.mark.real_data
def test_few_shot_prompts_are_lm_evals_own(real_data: Path, no_leftovers: None) -> None:
    items = read_items(GSM8K, real_data / "gsm8k/test.jsonl")[:6]
    examples = [item.fields for item in read_items(GSM8K, real_data / "gsm8k/train.jsonl")]
    assert GSM8K.task is not None
    with open_task(GSM8K.task, items, examples, 5) as task:
        prompts, again, chats = plain_prompts(task, 5), plain_prompts(task, 5), chat_prompts(task, 5)
        task.set_fewshot_seed(FEW_SHOT_SEED)
        task.build_all_requests()
        oracle = [instance.args[0] for instance in task.instances]
    assert prompts == again == oracle
    known = {example["question"] for example in examples}
    for prompt, chat, item in zip(prompts, chats, items, strict=True):
        shown = prompt.split("\n\nQuestion: ")
        assert len(shown) == 6 and shown[-1] == f"{item.fields['question']}\nAnswer:"
        assert [message["role"] for message in chat] == ["user", "assistant"] * 5 + ["user"]
        assert {
            message["content"].removeprefix("Question: ").removesuffix("\nAnswer:") for message in chat[:-1:2]
        } <= known
        assert "".join(message["content"] for message in chat).replace("Answer:", "") in prompt.replace(
            "Answer: ", ""
        ).replace("Answer:", "").replace("\n\n", "")


@pytest.mark.real_data
def test_zero_shot_prompts_and_stops_are_those_of_the_task(real_data: Path) -> None:
    items = read_items(GSM8K, real_data / "gsm8k/test.jsonl")[:3]
    assert GSM8K.task is not None
    with open_task(GSM8K.task, items) as task:
        assert plain_prompts(task, 0) == [f"Question: {item.fields['question']}\nAnswer:" for item in items]
        assert chat_prompts(task, 0) == [[{"role": "user", "content": p}] for p in plain_prompts(task, 0)]
        assert stop_strings(task) == ("Question:", "</s>", "<|im_end|>")


def test_replay_tells_what_each_filter_took(no_leftovers: None) -> None:
    assert GSM8K.task is not None
    with open_task(GSM8K.task, [Item("0", {"question": "q", "answer": "a\n#### 12"})]) as task:
        scores = replay(task, {0: "12 it is. #### 13"})[0]
    assert (scores["exact_match,strict-match"], scores["extracted,strict-match"]) == (0.0, "13")
    assert scores["extracted,flexible-extract"] == "13"


def test_a_scorer_that_fails_names_the_item_and_keeps_the_other_scores(no_leftovers: None) -> None:
    fields = {"prompt": "p", "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
    bad = fields | {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 5}]}
    items = [Item("1", {"key": 1, **fields}), Item("2", {"key": 2, **bad})]
    scored = score_suite(IFEVAL, items, [Response("1", ("<<a>>",)), Response("2", ("a",))])
    assert scored.failed.keys() == {"2"} and "scorer fails" in scored.failed["2"]
    assert (scored.n, scored.metrics["prompt_level_strict_acc"].value) == (1, 1.0)
    assert {sample.value for sample in scored.samples if sample.cluster == "2"} == {None}
    with pytest.raises(BadInput, match=r"IFEval: item 2: the suite's own scorer fails: \w+Error"):
        score_suite(IFEVAL, items[1:], [Response("2", ("a",))])
