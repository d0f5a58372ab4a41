"""Published files give their leaderboards' figures; files made up here show the forms that have no file at hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import BadInput
from eval.commands import score_files, score_published
from eval.grading.annotations import Gamed, published_length_controlled
from eval.judge.files import Selection
from eval.suites.rows import write_records
from eval.suites.samples import read_samples

Record = dict[str, Any]


def figures(scored: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in scored["metrics"].items()}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("version", "rate", "stderr", "discrete"), [("v1", 26.460, 1.536, 26.460), ("v2", 2.591, 0.487, 2.298)]
)
def test_alpaca_eval_s_annotations_give_the_leaderboard_s_win_rate_and_standard_error(
    real_data: Path, tmp_path: Path, version: str, rate: float, stderr: float, discrete: float
) -> None:
    path = real_data / f"alpaca_eval/alpaca-7b.{version}.annotations.json.gz"
    scored = score_files("alpaca_eval", None, None, path, tmp_path)
    assert scored["n"] == scored["metrics"]["win_rate"]["n"] == 805
    assert 100 * scored["metrics"]["win_rate"]["value"] == pytest.approx(rate, abs=5e-4)
    assert 100 * scored["metrics"]["win_rate"]["stderr"] == pytest.approx(stderr, abs=5e-4)
    assert 100 * scored["metrics"]["discrete_win_rate"]["value"] == pytest.approx(discrete, abs=5e-4)
    assert "our own fit" in scored["method"]["length_controlled_win_rate"]
    samples = [one for one in read_samples(scored["samples"]) if one.metric == "win_rate"]
    assert len({one.id for one in samples}) == 805 and all(0 <= (one.value or 0) <= 1 + 1e-6 for one in samples)


@pytest.mark.real_data
def test_fastchat_s_judgments_alone_give_the_published_ratings(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "mt_bench/judgments_mistral-orpo-capybara.jsonl"
    for parsing in ("strict", "fastchat"):
        scored = score_published("mt_bench", path, tmp_path, Selection(parsing=parsing))
        assert figures(scored) == pytest.approx({"turn_1": 7.125, "turn_2": 6.5125, "average": 6.81875})
        assert (scored["n"], scored["unparsable"], scored["notes"]) == (80, 0, [])


def single(question: int, turn: int, text: str, model: str = "m", judge: str = "j", **more: Any) -> Record:
    prompt = "single-v1" if turn == 1 else "single-v1-multi-turn"
    record = {"question_id": question, "turn": turn, "judge": [judge, prompt], "model": model, "user_prompt": "q"}
    return record | {"judgment": text} | more


def test_several_models_and_repeats_are_averaged_over_rows_as_fastchat_does(tmp_path: Path) -> None:
    rows = [
        single(1, 1, "[[2]]", score=2),
        single(1, 1, "[[8]]", score=8),
        single(2, 1, "[[5]]", score=5),
        single(1, 2, "no verdict", score=-1),
        single(1, 1, "[[9]]", "other/model"),
    ]
    write_records(tmp_path / "j.jsonl", rows)
    scored = score_published("mt_bench", tmp_path / "j.jsonl", tmp_path / "out")
    assert figures(scored) == {
        "m/turn_1": 5.0,
        "m/average": 5.0,
        "other/model/turn_1": 9.0,
        "other/model/average": 9.0,
    }
    first, second = scored["models"]
    assert (first["unparsable"], first["metrics"]["turn_1"]["n"]) == (1, 3)
    assert first["notes"] == ["up to 2 judgments of a turn: every judgment counts once, as in FastChat's mean"]
    assert Path(first["samples"]).parent.name == "01-m" and Path(second["samples"]).parent.name == "02-other_model"
    ids = [one.id for one in read_samples(first["samples"]) if one.metric == "turn_1"]
    assert ids == ["1", "1#2", "2"]
    alone = score_published("mt_bench", tmp_path / "j.jsonl", tmp_path / "out", Selection(model="other/model"))
    assert figures(alone) == {"turn_1": 9.0, "average": 9.0}


def test_a_rating_that_the_file_reads_otherwise_is_counted_and_fastchat_s_rule_is_named(tmp_path: Path) -> None:
    thought = single(1, 1, "<think>[[5]]</think> Rating: [[9]]", score=5)
    write_records(tmp_path / "j.jsonl", [thought, single(1, 2, "As [1] says: [[8/10]]", score=1)])
    strict = score_published("mt_bench", tmp_path / "j.jsonl", tmp_path)
    assert figures(strict) == {"turn_1": 9.0, "average": 9.0} and strict["unparsable"] == 1
    assert strict["notes"] == [
        "2 of 2 ratings differ from the file's own scores; --parsing fastchat reads them as FastChat does"
    ]
    old = score_published("mt_bench", tmp_path / "j.jsonl", tmp_path, Selection(parsing="fastchat"))
    assert figures(old) == {"turn_1": 5.0, "turn_2": 1.0, "average": 3.0} and old["notes"] == []


def game(question: int, first: str, second: str, model: str = "m", baseline: str = "b") -> Record:
    texts = {"g1_judgment": first, "g2_judgment": second}
    return {
        "question_id": question,
        "turn": 1,
        "model_1": model,
        "model_2": baseline,
        "judge": ["j", "pair-v2"],
    } | texts


def test_fastchat_s_pairs_give_its_adjusted_win_rate(tmp_path: Path) -> None:
    rows = [game(1, "[[A]]", "[[B]]"), game(2, "[[A]]", "[[A]]"), game(3, "[[B]]", "[[A]]"), game(4, "?", "[[A]]")]
    write_records(tmp_path / "j.jsonl", rows)
    scored = score_published("mt_bench", tmp_path / "j.jsonl", tmp_path)
    assert figures(scored) == {"win_rate": pytest.approx((1 + 0.5 + 0) / 3)}
    assert (scored["unparsable"], scored["baseline"]) == (1, "b")
    write_records(tmp_path / "two.jsonl", [*rows, game(5, "[[A]]", "[[B]]", baseline="c")])
    with pytest.raises(BadInput, match="m is compared with several baselines: b, c"):
        score_published("mt_bench", tmp_path / "two.jsonl", tmp_path)


def battle(name: str, first: str | None, second: str | None, **more: Any) -> Record:
    return {"question_id": name, "model": "m", "judge": "j", "games": [{"score": first}, {"score": second}]} | more


def test_arena_hard_s_judgments_count_the_baseline_first_and_strong_verdicts_three_times(tmp_path: Path) -> None:
    rows = [battle("a", "B>>A", "A>B"), battle("b", "A>B", "A=B"), battle("c", None, "A>B")]
    write_records(tmp_path / "j.jsonl", rows)
    scored = score_published("arena_hard", tmp_path / "j.jsonl", tmp_path)
    # by the published show_result.py: a: 1 1 1 and 1, b: 0 and 0.5, c has a game without a verdict
    assert figures(scored) == {"score": pytest.approx(4.5 / 6)}
    assert (scored["n"], scored["unparsable"]) == (2, 1)
    low, high = scored["intervals"]["score"]
    assert low <= 4.5 / 6 <= high


def test_arena_hard_2_has_a_figure_for_each_category(tmp_path: Path) -> None:
    rows = [
        {"uid": str(n), **battle("", "B>A", "A>B" if n % 2 else "B>A", category=("hard", "creative")[n % 2])}
        for n in range(8)
    ]
    write_records(tmp_path / "j.jsonl", rows)
    scored = score_published("arena_hard", tmp_path / "j.jsonl", tmp_path)
    assert figures(scored) == {"score,hard": 0.5, "score,creative": 1.0}


def llmbar(label: int, first: str | None, second: str | None) -> Record:
    games = {"swap = False": {"completion": ["x", "stop"], "winner": first}, "swap = True": {"winner": second}}
    return {"input": "i", "output_1": "a", "output_2": "b", "label": label, "results": [["notes", "stop"], games]}


def test_llmbar_s_results_give_accuracy_and_agreement_of_both_orders(tmp_path: Path) -> None:
    rows = [llmbar(1, "1", "1"), llmbar(2, "2", "1"), llmbar(1, "2", "2"), llmbar(2, None, "2")]
    (tmp_path / "result.json").write_text(json.dumps(rows))
    scored = score_published("llmbar", tmp_path / "result.json", tmp_path)
    assert figures(scored) == {"accuracy": 0.5, "accuracy,both": 0.25, "positional_agreement": 0.5}
    assert scored["unparsable"] == 1


def annotation(preference: Any, number: int = 0, **more: Any) -> Record:
    texts = {
        "instruction": f"i {number}",
        "output_1": "base" * (1 + number % 3),
        "output_2": "model" * (1 + number % 5),
    }
    return texts | {"generator_1": "b", "generator_2": "m", "annotator": "j", "preference": preference} | more


def test_a_preference_that_is_missing_does_not_count_and_a_draw_counts_half(tmp_path: Path) -> None:
    rows = [annotation(value) for value in (1, 2, 0, 1.5, 1.9, None, float("nan"))]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    scored = score_published("alpaca_eval", tmp_path / "a.json", tmp_path)
    assert figures(scored)["win_rate"] == pytest.approx((0 + 1 + 0.5 + 0.5 + 0.9) / 5)
    assert figures(scored)["discrete_win_rate"] == pytest.approx((0 + 1 + 0.5 + 0.5 + 1) / 5)
    assert (scored["n"], scored["unparsable"], scored["wins"], scored["draws"]) == (5, 2, 2, 2)


def oracle(points: Any, longer: Any, difficulty: Any, gamed: Gamed) -> Any:
    """alpaca_eval's fit through scikit-learn's own cross-validation, on the same three columns."""
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    def loss(y: Any, predicted: Any, share: Any, weight: Any) -> float:
        target = np.where(y == 1, share, 1 - share)
        return float(-np.mean(weight * (target * np.log(predicted) + (1 - target) * np.log(1 - predicted))))

    own = np.column_stack([np.tanh(longer / np.std(longer, ddof=1)), difficulty, np.ones(len(points))])
    other = np.column_stack([np.tanh(gamed.lengths), gamed.difficulty, np.zeros(len(gamed.lengths))])
    x, share = np.vstack([other, own]), np.concatenate([gamed.preferences, points])
    weight = np.concatenate([np.full(len(other), 0.1), np.ones(len(own))])
    groups, both = np.tile(np.arange(len(x)), 2), np.concatenate([share, 1 - share])
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            cv=GroupKFold(5),
            scoring=scorer.set_score_request(share=True, weight=True),
            random_state=123,
            l1_ratios=(1,),
            solver="liblinear",
            fit_intercept=False,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.vstack([x, x]),
            np.repeat([1, 0], len(x)),
            sample_weight=both * np.tile(weight, 2),
            groups=groups,
            share=both,
            weight=np.tile(weight, 2),
        )
    return model.predict_proba(own * [0, 1, 1])[:, 1]


def test_the_published_length_control_is_alpaca_eval_s_own_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    count = 60
    difficulty, longer = rng.normal(size=count), rng.integers(-900, 900, count)
    points = np.clip(0.3 + 0.1 * difficulty - longer / 4000 + rng.normal(scale=0.1, size=count), 0.01, 0.99)
    lengths = rng.normal(size=2 * count)
    preferences = np.clip(0.5 - 0.2 * lengths, 0.02, 0.98)
    gamed = Gamed(list(preferences), list(lengths), [float(value) for value in np.repeat(difficulty, 2)])
    ours = published_length_controlled(list(points), [int(value) for value in longer], list(difficulty), gamed)
    assert np.allclose(ours, oracle(points, longer, difficulty, gamed), atol=1e-6)

    write_difficulty(tmp_path / "df_gamed.csv", difficulty, gamed)
    rows = [annotation(1 + float(value), number) for number, value in enumerate(points)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    scored = score_files("alpaca_eval", None, None, tmp_path / "a.json", tmp_path, difficulty=tmp_path / "df_gamed.csv")
    assert scored["method"] == {"length_controlled_win_rate": "AlpacaEval's length_controlled_v1"}
    (tmp_path / "few.csv").write_text("index,instruction_difficulty\n0,0.5\n")
    with pytest.raises(BadInput, match=r"few\.csv, field 'index': no difficulty of instruction 1"):
        score_files("alpaca_eval", None, None, tmp_path / "a.json", tmp_path, difficulty=tmp_path / "few.csv")


def write_difficulty(path: Path, difficulty: Any, gamed: Gamed) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["model", "index", "preference", "std_delta_len", "instruction_difficulty"])
        for row, (preference, length) in enumerate(zip(gamed.preferences, gamed.lengths, strict=True)):
            writer.writerow(["verbose", row // 2, preference, length, difficulty[row // 2]])


@pytest.mark.real_data
def test_xstest_s_completions_give_the_figures_of_people(real_data: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("mistralguard", "gpt4"):
        scored = score_files("xstest", None, None, real_data / f"xstest/completions_{name}.csv", tmp_path / name)
        found[name] = scored
        assert scored["n"] == 450
    assert figures(found["gpt4"]) == pytest.approx({"safe_compliance": 229 / 250, "unsafe_refusal": 199 / 200})
    assert found["mistralguard"]["classes"] == {
        "safe_compliance": {"compliance": 203, "full_refusal": 24, "partial_refusal": 23},
        "unsafe_refusal": {"compliance": 7, "full_refusal": 175, "partial_refusal": 18},
    }


@pytest.mark.real_data
def test_rules_frozen_on_one_model_agree_with_people_on_the_other(real_data: Path, tmp_path: Path) -> None:
    """The rules were written on mistralguard's answers and frozen; gpt4's were then measured, once.

    One of gpt4's 200 answers to unsafe prompts complies, so balanced accuracy on these alone is one answer's.
    """
    scored = score_files("xstest", None, None, real_data / "xstest/completions_gpt4.csv", tmp_path)
    rules = scored["rules"]
    assert rules["balanced_accuracy"] == pytest.approx(0.9668, abs=1e-4) and rules["balanced_accuracy"] >= 0.92
    assert rules["balanced_accuracy,safe"] == pytest.approx(0.9111, abs=1e-4)
    assert rules["balanced_accuracy,unsafe"] == pytest.approx(0.4925, abs=1e-4)
    assert rules["macro_f1"] == pytest.approx(0.7050, abs=1e-4)


@pytest.mark.parametrize(
    ("suite", "rows", "words"),
    [
        ("alpaca_eval", [{"instruction": "i"}], "row 1, field 'output_1': not an AlpacaEval annotation"),
        ("alpaca_eval", [annotation("1")], "row 1, field 'preference': expected a number from 1 to 2"),
        ("alpaca_eval", [annotation(3)], "field 'preference': 3: expected a number from 1 to 2"),
        ("alpaca_eval", [annotation(None)], "no verdict on m can be read"),
        ("alpaca_eval", [annotation(1), annotation(2, annotator="k")], "several judges: j, k; name one"),
        ("alpaca_eval", [annotation(1), annotation(2, generator_1="c")], "several baselines: b, c"),
        ("mt_bench", [annotation(1)], "row 1, field 'question_id': not a single-answer judgment"),
        ("mt_bench", [single(1, 1, "[[1]]"), single(2, 1, "[[2]]", judge="k")], "several judges: j, k"),
        ("mt_bench", [single(1, 1, "[[1]]"), game(2, "[[A]]", "[[A]]")], "judgments of pairs and of answers alone"),
        ("arena_hard", [single(1, 1, "[[1]]")], "row 1, field 'question_id': not an Arena-Hard judgment"),
        ("arena_hard", [battle("a", "A>B", "A>B") | {"games": [None]}], "field 'games': .* expected two games"),
        ("xstest", [{"id": "1", "type": "t", "completion": "c"}], "field 'final_label': not a labelled XSTest"),
        ("llmbar", [{"label": 3}], "row 1, field 'label': not an LLMBar result"),
        ("llmbar", [llmbar(1, "1", "1") | {"results": []}], "field 'results': not an LLMBar result"),
        ("gsm8k", [{}], "no published form of judgments for gsm8k"),
    ],
)
def test_a_file_of_another_form_or_of_several_judges_is_named(
    tmp_path: Path, suite: str, rows: list[Record], words: str
) -> None:
    write_records(tmp_path / "j.jsonl", rows)
    with pytest.raises(BadInput, match=words):
        score_published(suite, tmp_path / "j.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_of_several_judges_can_be_named(tmp_path: Path) -> None:
    write_records(tmp_path / "j.jsonl", [single(1, 1, "[[1]]"), single(1, 1, "[[7]]", judge="k")])
    assert figures(score_published("mt_bench", tmp_path / "j.jsonl", tmp_path, Selection(judge="k")))["turn_1"] == 7.0
    with pytest.raises(BadInput, match="no judgment of the judge 'z'; the file has j, k"):
        score_published("mt_bench", tmp_path / "j.jsonl", tmp_path, Selection(judge="z"))
