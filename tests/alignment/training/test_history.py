"""Log records become plain history."""

from __future__ import annotations

from alignment.training.arguments import history, log_every
from alignment.training.sft_trainer import looks, patience_is_over

LOG = [
    {"step": 1, "loss": 0.69314718, "rewards/margins": 0.0, "grad_norm": float("nan"), "epoch": 0.1},
    {"step": 2, "eval_loss": 2.0},
    {"step": 2, "loss": 0.5, "rewards/accuracies": 1.0, "learning_rate": 1e-3},
    {"step": 4, "eval_loss": 1.5},
    {"step": 6, "eval_loss": 1.5},
    {"step": 6, "train_runtime": 3.0},
]


def test_a_step_is_one_record_under_our_names_without_what_is_no_number() -> None:
    assert history(LOG) == [
        {"step": 1, "loss": 0.693147, "margin": 0.0},
        {"step": 2, "held_out_loss": 2.0, "loss": 0.5, "accuracy": 1.0, "learning_rate": 0.001},
        {"step": 4, "held_out_loss": 1.5},
        {"step": 6, "held_out_loss": 1.5},
    ]


def test_the_best_look_is_the_first_of_equals_and_patience_counts_those_after_it() -> None:
    seen = looks(LOG)
    assert (seen.best_step, seen.best_loss, seen.since) == (4, 1.5, 1)
    assert patience_is_over(seen, 1) and not patience_is_over(seen, 2)
    assert looks([]).best_step is None


def test_a_long_run_is_logged_about_two_hundred_times() -> None:
    assert [log_every(steps) for steps in (1, 199, 2000)] == [1, 1, 10]
