"""The accuracy matrix: every derived number against one worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cl_runner.matrix import (
    FORMULAS,
    after,
    bootstrap_interval,
    derived,
    forgetting_matrix,
    read_matrix,
    union_accuracy,
    write_accuracy,
    write_forgetting,
)

# Three tasks. Task 1 peaks after task 2 (90), not right after it was trained (80).
ROWS = np.array(
    [
        [50.0, 40.0, 30.0],
        [80.0, 45.0, 35.0],
        [90.0, 70.0, 38.0],
        [60.0, 75.0, 66.0],
    ]
)
SIZES = [60, 20, 20]


def test_every_number_of_a_hand_worked_matrix() -> None:
    assert derived(ROWS, SIZES) == pytest.approx(
        {
            "union_accuracy": (60 * 60 + 20 * 75 + 20 * 66) / 100,  # 64.2
            "union_accuracy/after_first": (60 * 80 + 20 * 45 + 20 * 35) / 100,  # 64
            "average_accuracy": (60 + 75 + 66) / 3,  # 67
            "average_incremental_accuracy": (80 + (90 + 70) / 2 + 67) / 3,
            "forgetting/chaudhry18": ((90 - 60) + (70 - 75)) / 2,  # 12.5
            "forgetting/first_minus_last": ((80 - 60) + (70 - 75)) / 2,  # 7.5
            "bwt/gem": -7.5,
            "forward_transfer/gem": ((45 - 40) + (38 - 30)) / 2,  # 6.5
            "plasticity/diagonal": (80 + 70 + 66) / 3,  # 72
            "first_task/after_first": 80,
            "first_task/last": 60,
        }
    )


def test_every_number_has_a_formula() -> None:
    assert list(derived(ROWS, SIZES)) == list(FORMULAS)


def test_forgetting_matrix_takes_the_best_since_training_and_never_the_start() -> None:
    rows = ROWS.copy()
    rows[0] = 100.0  # a lucky untrained model is not knowledge that can be forgotten
    nan = np.nan
    expected = [[nan, nan, nan], [-10.0, nan, nan], [30.0, -5.0, nan]]
    np.testing.assert_array_equal(forgetting_matrix(rows), expected)


def test_one_task_has_no_number_that_compares_two() -> None:
    numbers = derived(np.array([[50.0], [80.0]]), [10])
    assert set(numbers) == {
        "union_accuracy",
        "union_accuracy/after_first",
        "average_accuracy",
        "average_incremental_accuracy",
        "plasticity/diagonal",
        "first_task/after_first",
        "first_task/last",
    }


def test_without_sizes_there_is_no_union() -> None:
    assert not [name for name in derived(ROWS) if name.startswith("union")]


def test_after_two_tasks_the_numbers_are_those_of_a_run_of_two() -> None:
    np.testing.assert_array_equal(after(ROWS, 2), [[50, 40], [80, 45], [90, 70]])
    assert derived(after(ROWS, 2))["forgetting/chaudhry18"] == -10
    with pytest.raises(AssertionError):
        after(ROWS, 4)


def test_an_unfinished_matrix_is_refused() -> None:
    with pytest.raises(AssertionError, match="not a finished matrix"):
        derived(ROWS[:3])


def test_union_weighs_by_test_items() -> None:
    assert union_accuracy(np.array([100.0, 0.0]), [30, 10]) == 75


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_accuracy_round_trip_is_exact(tmp_path: Path, count: int) -> None:
    tasks = ["books, used", 'the "rest"', "c"]
    rows = (np.random.default_rng(0).random((4, 3)) * 100)[:count]
    write_accuracy(tmp_path / "accuracy.csv", tasks, rows)
    names, read = read_matrix(tmp_path / "accuracy.csv")
    assert names == tasks
    assert read.shape == rows.shape and (read == rows).all()


def test_files_look_as_promised(tmp_path: Path) -> None:
    write_accuracy(tmp_path / "accuracy.csv", ["a", "b", "c"], ROWS[:2])
    assert (tmp_path / "accuracy.csv").read_text() == "after,a,b,c\nstart,50.0,40.0,30.0\na,80.0,45.0,35.0\n"
    write_forgetting(tmp_path / "forgetting.csv", ["a", "b", "c"], ROWS)
    assert (tmp_path / "forgetting.csv").read_text() == "after,a,b,c\na,,,\nb,-10.0,,\nc,30.0,-5.0,\n"
    assert np.isnan(read_matrix(tmp_path / "forgetting.csv")[1]).sum() == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.csv", "forgetting.csv"]


@pytest.mark.parametrize("text", ["", "task,a\n", "after,a\nstart,1.0,2.0\n", "after,a\nstart,x\n"])
def test_a_file_that_is_no_matrix_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "accuracy.csv").write_text(text)
    with pytest.raises(ValueError, match=r"accuracy\.csv"):
        read_matrix(tmp_path / "accuracy.csv")


def test_bootstrap_interval_matches_the_normal_one_and_its_seed() -> None:
    correct = np.arange(1000) < 800
    low, high = bootstrap_interval(correct, seed=0)
    # 1.96 sqrt(0.8 * 0.2 / 1000) = 2.48 points
    assert low == pytest.approx(80 - 2.48, abs=0.35) and high == pytest.approx(80 + 2.48, abs=0.35)
    assert bootstrap_interval(correct, seed=0) == (low, high)
    assert len({bootstrap_interval(correct, seed=seed) for seed in range(5)}) > 1
    assert bootstrap_interval(np.ones(5, dtype=bool), seed=0) == (100, 100)
