"""The recipe's `stop`, by histories made by hand and on a tiny model; and the signs of a training that goes wrong."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.recipe import Dpo, Stop
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.signs import Sign, signs, stop_reason
from tests.alignment.training.two_processes import TwoProcesses


def looks(*accuracies: float, **last: float) -> list[dict[str, float]]:
    made: list[dict[str, float]] = [
        {"step": step, "held_out_accuracy": accuracy, "held_out_loss": 1 - accuracy, "held_out_margin": accuracy}
        for step, accuracy in enumerate(accuracies, start=1)
    ]
    made[-1] |= {f"held_out_{name}": value for name, value in last.items()}
    return made


@pytest.mark.parametrize(
    ("seen", "stop", "reason"),
    [
        (
            looks(0.7, median_margin=5.1),
            {"median_margin": 5},
            "the median reward margin of held-out pairs is 5.1, above 5",
        ),
        (looks(0.7, median_margin=5.0), {"median_margin": 5}, None),
        (looks(0.7, kl=10.5), {"kl": 10}, "KL(policy ‖ start) is 10.5 nats a response, above 10"),
        (looks(0.7, kl=9.5), {"kl": 10}, None),
        (
            looks(0.6, 0.7, 0.69, 0.68),
            {"patience": 2},
            "2 looks without a better held-out accuracy than 0.7, the last 0.68",
        ),
        (looks(0.6, 0.7, 0.69, 0.71), {"patience": 2}, None),
        (looks(0.6, 0.7, 0.69), {"patience": 2}, None),
        (
            looks(0.7, 0.6),
            {"patience": 1, "metric": "loss"},
            "1 looks without a better held-out loss than 0.3, the last 0.4",
        ),
    ],
)
def test_a_condition_ends_the_training_with_its_numbers(seen: Any, stop: dict[str, Any], reason: str | None) -> None:
    assert stop_reason(seen, Stop(**stop)) == reason


def test_without_a_condition_the_looks_are_curves_and_end_nothing() -> None:
    assert stop_reason(looks(0.9, 0.5, 0.1, 0.1, 0.1), Stop(eval_steps=5)) is None


def history(**columns: list[float]) -> list[dict[str, float]]:
    names = list(columns)
    return [
        dict(zip(["step", *names], [step, *row], strict=True))
        for step, row in enumerate(zip(*columns.values(), strict=True))
    ]


GOOD = {
    "margin": [0.0, 0.5, 1.0, 1.3, 1.5, 1.6, 1.6, 1.6],
    "chosen_reward": [0.0] + [0.5] * 7,
    "rejected_reward": [-0.5] * 8,
}


@pytest.mark.parametrize(
    ("changed", "held_out", "text", "bad"),
    [
        ({}, {"accuracy": 0.52}, "held-out accuracy is 52.0 %: the preferences were not learned, or", True),
        ({}, {"accuracy": 0.9}, "held-out accuracy is 90.0 %, above 80 %: the pairs are easily told apart", False),
        ({}, {"accuracy": 0.7, "margin": 7.0}, "the held-out reward margin is 7, above 5: over-fitted", True),
        (
            {"margin": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]},
            {"accuracy": 0.7},
            "the reward margin has no plateau: it rose by 1 in the last quarter and by 1 in the second",
            True,
        ),
        (
            {"chosen_reward": [0.0] * 4 + [1.0] * 4, "rejected_reward": [0.0] * 4 + [0.8] * 4},
            {"accuracy": 0.7},
            "the rejected reward rises with the chosen one (+0.8 and +1)",
            True,
        ),
        (
            {"chosen_reward": [0.0] * 4 + [-0.7] * 4},
            {"accuracy": 0.7},
            "the log-probs of chosen completions fall",
            False,
        ),
        (
            {"held_out_accuracy": [0.6, 0.7, 0.75, 0.75, 0.74, 0.7, 0.7, 0.66]},
            {"accuracy": 0.66},
            "held-out accuracy fell from 0.75 to 0.66 over the last 5 looks",
            True,
        ),
    ],
)
def test_each_sign_of_trouble_has_its_sentence(
    changed: dict[str, list[float]], held_out: dict[str, float | None], text: str, bad: bool
) -> None:
    (found,) = signs(history(**(GOOD | changed)), held_out, Dpo())
    assert found.text.startswith(text) and found.bad is bad


def test_a_training_that_goes_well_shows_no_sign_and_rewards_without_a_reference_say_nothing() -> None:
    assert signs(history(**GOOD), {"accuracy": 0.7, "margin": 1.5}, Dpo()) == []
    (still,) = signs(history(**GOOD), {"accuracy": 0.7, "margin": 0.013}, Dpo())
    assert still.text.startswith("the held-out reward margin is 0.013: the policy is nearly where") and not still.bad
    assert signs(history(**GOOD), {"accuracy": 0.7, "margin": 0.013}, Dpo(loss="simpo", beta=2.0)) == []
    hardly = GOOD | {"chosen_reward": [0.0] * 4 + [1.0] * 4, "rejected_reward": [0.0] * 4 + [0.05] * 4}
    assert signs(history(**hardly), {"accuracy": 0.7}, Dpo()) == [], "the rejected reward hardly rises"
    falling = history(**(GOOD | {"chosen_reward": [-1.0] * 4 + [-2.0] * 4}))
    assert isinstance(signs(falling, {}, Dpo())[0], Sign)
    assert signs(falling, {}, Dpo(loss="simpo")) == []


@pytest.mark.parametrize("pairs", [16, 64, 512])
def test_a_level_course_of_held_out_accuracy_is_no_fall_and_one_that_overfits_is(pairs: int) -> None:
    """Ten looks at the same pairs, of which a tenth is decided anew at each look."""
    rng = np.random.default_rng(pairs)

    def looks(shares: list[float]) -> list[dict[str, float]]:
        level, made = rng.random(pairs), []
        for share in shares:
            anew = rng.random(pairs) < 0.1
            level[anew] = rng.random(int(anew.sum()))
            made.append({"held_out_accuracy": float((level < share).mean())})
        return made

    level = sum(bool(signs(looks([0.7] * 10), {"accuracy": 0.7}, Dpo(), pairs)) for _ in range(200))
    assert level <= 10, "of 200"
    tie = [{"held_out_accuracy": value} for value in (0.5, 0.75, 1.0, 1.0, 1.0)]
    assert signs(tie, {"accuracy": 0.7}, Dpo(), pairs) == []
    if pairs > 16:
        over = [0.7, 0.75, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45]
        assert sum(bool(signs(looks(over), {"accuracy": 0.7}, Dpo(), pairs)) for _ in range(50)) >= 45


def test_a_sign_names_only_what_the_method_takes() -> None:
    falling = history(**(GOOD | {"chosen_reward": [0.0] * 4 + [-0.7] * 4}))
    for settings, cure, swapped in (
        (Dpo(), "sft_weight", "chosen and rejected"),
        (Dpo(loss="kto"), "sft_rows_fraction", "thumbs up and down"),
    ):
        not_learned, fallen = signs(falling, {"accuracy": 0.5}, settings)
        assert not_learned.text.endswith(f"or {swapped} are swapped") and fallen.text.endswith(
            f"; {cure} keeps them up"
        )
        Dpo(loss=settings.loss, **{cure: 0.1})


def test_a_margin_that_runs_away_ends_the_training_and_the_summary_says_at_which_step(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    wild = {"learning_rate": 3e-3, "epochs": 6, "beta": 1.0}
    stop = {"eval_steps": 2, "median_margin": 0.5}
    summary = execute(STAGE, lab.dpo_request(checkpoint, manifest, stop=stop, **wild), lab.store).summary
    assert summary["stopped_by"].startswith(f"stopped at step {summary['steps']} of ")
    assert summary["stopped_by"].partition(": ")[2].startswith("the median reward margin of held-out pairs is ")
    seen = [record for record in summary["history"] if "held_out_median_margin" in record]
    assert [record["step"] for record in seen] == list(range(2, summary["steps"] + 1, 2))
    assert (
        seen[-1]["held_out_median_margin"]
        > 0.5
        >= max((record["held_out_median_margin"] for record in seen[:-1]), default=0.0)
    )


def test_looks_that_stop_nothing_leave_the_policy_as_it_is_without_them(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(40), held_out_fraction=0.2)
    plain = execute(STAGE, lab.dpo_request(checkpoint, manifest, lora={"rank": 2, "dropout": 0.2}), lab.store)
    watched = lab.dpo_request(
        checkpoint, manifest, lora={"rank": 2, "dropout": 0.2}, stop={"eval_steps": 2, "median_margin": 1e6, "kl": 1e6}
    )
    looked = execute(STAGE, watched, lab.store)
    assert looked.digest == plain.digest and looked.key != plain.key
    assert looked.summary["stopped_by"] is None and "stopped_by" not in plain.summary
    assert any("held_out_kl" in record for record in looked.summary["history"])


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_kl_of_a_look_is_that_of_the_sampled_responses_under_policy_and_start(
    lab: Any, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.models.checkpoint import load_model
    from alignment.training import stops
    from tests.alignment.training.conftest import alone

    kept: dict[str, Any] = {}
    drawn = stops.sample

    def keep(trainer: Any, *rest: Any) -> Any:
        import copy

        kept["sequences"], kept["policy"] = drawn(trainer, *rest), copy.deepcopy(trainer.causal_lm)
        return kept["sequences"]

    monkeypatch.setattr(stops, "sample", keep)
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(40), held_out_fraction=0.2)
    request = lab.dpo_request(checkpoint, manifest, lora=lora, learning_rate=1e-2, stop={"eval_steps": 6, "kl": 1e-6})
    summary = execute(STAGE, request, lab.store).summary
    start, policy = load_model(lab.store.fetch(checkpoint), "float32"), kept["policy"].eval()
    policy.set_attn_implementation("eager")
    ratios = [
        alone(policy, sequence.prompt_ids, sequence.completion_ids)
        - alone(start, sequence.prompt_ids, sequence.completion_ids)
        for sequence in kept["sequences"]
    ]
    (seen,) = [record for record in summary["history"] if "held_out_kl" in record]
    assert seen["held_out_kl"] == pytest.approx(statistics.fmean(ratios), abs=1e-3) and len(ratios) > 4
    assert (summary["stopped_by"] is not None) == (seen["held_out_kl"] > 1e-6)


def test_a_stopped_training_that_is_killed_ends_at_the_same_step_and_weights(lab: Any, tmp_path: Path) -> None:
    from tests.alignment.training.test_resume import killed_while_saving

    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    wild = {"learning_rate": 3e-3, "epochs": 6, "beta": 1.0, "save_steps": 2}
    request = lab.dpo_request(checkpoint, manifest, stop={"eval_steps": 2, "median_margin": 0.5}, **wild)
    twin = lab.twin(tmp_path / "twin")
    whole = execute(STAGE, request, twin)
    killed_while_saving("policy_checkpoint", request, lab.store, 4, tmp_path)
    resumed = execute(STAGE, request, lab.store)
    assert resumed.summary["resumed_from_step"] == 2 and resumed.digest == whole.digest
    assert resumed.summary["stopped_by"] == whole.summary["stopped_by"]


def test_the_best_candidate_by_the_held_out_pairs_is_the_policy_and_the_summary_says_which(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    wild = {"learning_rate": 1e-2, "beta": 2.0, "epochs": 4, "schedule": "constant_with_warmup", "warmup_ratio": 0.0}
    kept = execute(STAGE, lab.dpo_request(checkpoint, manifest, keep_steps=6, **wild), lab.store)
    seen = {record["step"]: record["held_out_loss"] for record in kept.summary["history"] if "held_out_loss" in record}
    steps = kept.summary["steps"]
    assert list(seen) == [*range(6, steps, 6), steps]
    best = min(seen, key=lambda step: seen[step])
    assert best < steps and kept.summary["kept_step"] == best
    assert kept.summary["kept"].startswith(f"the policy is that of step {best}, whose held-out loss of ")
    # what is measured on the saved policy is what was seen at the best step
    assert kept.summary["held_out"]["loss"] == pytest.approx(seen[best], abs=1e-4)


def test_a_run_that_is_killed_after_its_best_candidate_still_ends_with_it(lab: Any, tmp_path: Path) -> None:
    from tests.alignment.training.test_resume import killed_while_saving

    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    wild = {"learning_rate": 1e-2, "beta": 2.0, "epochs": 4, "schedule": "constant_with_warmup", "warmup_ratio": 0.0}
    request = lab.dpo_request(checkpoint, manifest, keep_steps=6, save_steps=5, **wild)
    whole = execute(STAGE, request, lab.twin(tmp_path / "twin"))
    best, steps = whole.summary["kept_step"], whole.summary["steps"]
    assert best + 10 < steps
    killed_while_saving("policy_checkpoint", request, lab.store, best + 10 - best % 5, tmp_path)
    resumed = execute(STAGE, request, lab.store)
    assert resumed.summary["resumed_from_step"] > best
    assert (resumed.digest, resumed.summary["kept"]) == (whole.digest, whole.summary["kept"])


def test_two_processes_look_at_the_same_pairs_and_stop_and_choose_alike(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    settings: dict[str, Any] = {"learning_rate": 3e-3, "epochs": 6, "beta": 1.0, "keep_steps": 4, "batch_size": 8}
    settings["stop"] = {"eval_steps": 4, "median_margin": 1.0, "kl": 1e6}
    one, two = (lab.dpo_request(checkpoint, manifest, world_size=size, **settings) for size in (1, 2))
    twin = lab.twin(tmp_path / "one")
    together, single = two_processes.execute(STAGE, two, lab.store), execute(STAGE, one, twin)
    assert single.summary["stopped_by"] is not None
    assert together.summary["stopped_by"].partition(":")[0] == single.summary["stopped_by"].partition(":")[0]
    assert together.summary["kept_step"] == single.summary["kept_step"]
    for name in ("held_out_accuracy", "held_out_median_margin", "held_out_loss"):
        ours, theirs = (
            [record[name] for record in each.summary["history"] if name in record] for each in (together, single)
        )
        assert ours == pytest.approx(theirs, abs=5e-2) and ours


@pytest.mark.parametrize(("changes", "told"), [({"held_out_fraction": 0.0}, "held_out_fraction is 0")])
def test_a_recipe_that_stops_by_pairs_it_does_not_hold_out_is_refused(changes: dict[str, Any], told: str) -> None:
    from alignment.errors import BadInput
    from alignment.recipe import parse_recipe

    embedded = {"embedded": "micro"}
    plain = {"name": "r", "base_model": embedded, "sft": {"dataset": embedded}, "preferences": embedded}
    with pytest.raises(BadInput, match=told):
        parse_recipe(plain | {"dpo": {"stop": {"patience": 2}}} | changes, "-", {})


def test_looks_at_candidates_do_not_use_up_the_patience_of_the_recipes_looks(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(60), held_out_fraction=0.2)
    still = {"learning_rate": 1e-30, "epochs": 2, "keep_steps": 1}
    request = lab.dpo_request(checkpoint, manifest, stop={"eval_steps": 4, "patience": 1}, **still)
    summary = execute(STAGE, request, lab.store).summary
    assert summary["stopped_by"].startswith("stopped at step 8 of "), "the second look of `stop` is the first worse one"
    assert [record["step"] for record in summary["history"] if "held_out_loss" in record] == list(range(1, 9))
