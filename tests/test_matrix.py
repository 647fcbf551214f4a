"""The accuracy matrix: every derived number against one worked by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cl_runner import intervals
from cl_runner.intervals import by_task, derived_draws, derived_intervals, draw, interval, read_scores
from cl_runner.matrix import (
    FORMULAS,
    Floats,
    MatrixTexts,
    after,
    derived,
    derived_arrays,
    forgetting_matrix,
    formula_of,
    headline,
    headline_column,
    read_matrix,
    renamed,
)
from cl_runner.metrics.classes import CLASS_SCORES

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
            "forgetting/slm_after_2": 80 - 90,
            "forgetting/slm_after_3": ((90 - 60) + (70 - 75)) / 2,
            "retained_share": 100 * (60 + 75) / (80 + 70),  # 90
            "bwt/gem": -7.5,
            "bwt/trace": -7.5,
            "bwt/all_tasks": ((60 - 80) + (75 - 70) + 0) / 3,  # -5
            "bwt/piece_release": ((90 - 80) + (70 - 70)) / 2,  # 5: after task 2, without task 3
            "forward_transfer/gem": ((45 - 40) + (38 - 30)) / 2,  # 6.5
            "plasticity/diagonal": (80 + 70 + 66) / 3,  # 72
            "first_task/after_first": 80,
            "first_task/last": 60,
        }
    )


def test_a_summary_of_an_earlier_version_is_read_by_todays_names() -> None:
    numbers = derived(ROWS, SIZES)
    old = {name: value for name, value in numbers.items() if name != "bwt/all_tasks"} | {"bwt/trace": -5.0}
    assert renamed(old) == numbers and renamed(numbers) == numbers
    assert renamed({"bwt/gem": [1.0, 2.0], "bwt/trace": [3.0, 4.0]}) == {
        "bwt/gem": [1.0, 2.0],
        "bwt/trace": [1.0, 2.0],
        "bwt/all_tasks": [3.0, 4.0],
    }
    assert renamed({"average_accuracy": 1.0}) == {"average_accuracy": 1.0}, "of one task"


def test_every_number_has_a_formula() -> None:
    names = [re.sub(r"after_\d+$", "after_k", name) for name in derived(ROWS, SIZES)]
    of_matrix = [*dict.fromkeys(names), *(f"average_{name}" for name in CLASS_SCORES)]
    others = list(FORMULAS)[len(of_matrix) :]
    assert list(FORMULAS) == [*of_matrix, *others], "what the matrix and its predictions say comes first"
    assert all(re.match("retrieval_|served_", name) for name in others), "the others are methods' own"
    assert formula_of("forgetting/slm_after_12") == FORMULAS["forgetting/slm_after_k"]
    assert "Chaudhry" in formula_of("forgetting/chaudhry18")


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


def test_the_maximum_of_slm_begins_before_a_task_is_trained() -> None:
    rows = ROWS.copy()
    rows[1, 1] = 72.0  # task 2 was better after task 1 than after its own training (70)
    numbers = derived(rows)
    assert numbers["forgetting/chaudhry18"] == (30 - 5) / 2
    assert numbers["forgetting/slm_after_3"] == (30 + 72 - 75) / 2


def test_cells_that_were_not_measured_leave_out_what_needs_them() -> None:
    rows = ROWS.copy()
    for row in range(3):
        rows[row, row:] = np.nan  # only tasks seen so far
    numbers = derived(rows, SIZES)
    missing = {"union_accuracy/after_first", "forward_transfer/gem"}
    assert set(derived(ROWS, SIZES)) - set(numbers) == missing
    # The one number that may use the cells above the diagonal does not here: A[1,2] = 45 is no maximum anyway.
    assert numbers == {name: value for name, value in derived(ROWS, SIZES).items() if name not in missing}
    np.testing.assert_array_equal(forgetting_matrix(rows), forgetting_matrix(ROWS))
    assert headline_column(rows, SIZES) == {"union": [None, None, None, pytest.approx(64.2)]}


def test_many_matrices_at_once_are_each_as_alone() -> None:
    many = np.random.default_rng(0).random((5, 2, 4, 3)) * 100
    for name, values in derived_arrays(many, SIZES).items():
        assert values.shape == (5, 2)
        for place in np.ndindex(5, 2):
            assert values[place] == pytest.approx(derived(many[place], SIZES)[name])
    whole = forgetting_matrix(many)[..., -1, :-1].mean(axis=-1)
    np.testing.assert_array_equal(derived_arrays(many)["forgetting/chaudhry18"], whole)


def test_the_headline_is_the_union_where_there_is_one() -> None:
    assert headline(derived(ROWS, SIZES)) == "union_accuracy"
    assert headline(derived(ROWS)) == "average_accuracy"
    assert headline_column(ROWS, None)["average"][-1] == pytest.approx(67)
    assert headline_column(np.array([[100.0, 0.0]]), [30, 10]) == {"union": [75]}


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_accuracy_round_trip_is_exact(tmp_path: Path, count: int) -> None:
    tasks = ["books, used", 'the "rest"', "c"]
    rows = (np.random.default_rng(0).random((4, 3)) * 100)[:count]
    (tmp_path / "accuracy.csv").write_text(MatrixTexts(tasks).texts(rows.tolist())["accuracy.csv"])
    names, read = read_matrix(tmp_path / "accuracy.csv")
    assert names == tasks
    assert read.shape == rows.shape and (read == rows).all()


def test_files_look_as_promised(tmp_path: Path) -> None:
    texts = MatrixTexts(["a", "b", "c"]).texts(ROWS[:2].tolist())
    assert texts["accuracy.csv"] == "after,a,b,c\nstart,50.0,40.0,30.0\na,80.0,45.0,35.0\n"
    texts = MatrixTexts(["a", "b", "c"]).texts(ROWS.tolist())
    assert texts["forgetting.csv"] == "after,a,b,c\na,,,\nb,-10.0,,\nc,30.0,-5.0,\n"
    (tmp_path / "forgetting.csv").write_text(texts["forgetting.csv"])
    assert np.isnan(read_matrix(tmp_path / "forgetting.csv")[1]).sum() == 6


def test_a_matrix_that_grows_has_the_texts_of_the_whole() -> None:
    """Cells that were not measured included, and what was written before is not put into words again."""
    rows = np.random.default_rng(1).random((7, 6)) * 100
    rows[np.arange(7)[:, None] - 1 < np.arange(6)] = np.nan  # as with evaluation.tasks=seen
    rows[4, 1] = np.nan
    growing = MatrixTexts(list("abcdef"))
    for count in (1, 2, 5, 7):
        found = growing.texts(rows[:count].tolist())
    assert found == MatrixTexts(list("abcdef")).texts(rows.tolist())
    written = [
        [float(cell) if cell else np.nan for cell in line.split(",")[1:]]
        for line in found["forgetting.csv"].split()[1:]
    ]
    assert np.array_equal(np.array(written), forgetting_matrix(rows), equal_nan=True)


@pytest.mark.parametrize("text", ["", "task,a\n", "after,a\nstart,1.0,2.0\n", "after,a\nstart,x\n"])
def test_a_file_that_is_no_matrix_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "accuracy.csv").write_text(text)
    with pytest.raises(ValueError, match=r"accuracy\.csv"):
        read_matrix(tmp_path / "accuracy.csv")


def answers(*right: int, size: int = 400) -> Floats:
    """Scores [rows, size] with so many right answers in each row, the first ones."""
    return np.array([[100.0 * (i < count) for i in range(size)] for count in right])


def test_the_interval_of_a_share_is_the_normal_one_and_repeats() -> None:
    low, high = interval(draw([answers(320, size=400)]))[:, 0, 0]
    # 1.96 sqrt(0.8 * 0.2 / 400) = 3.92 points
    assert low == pytest.approx(80 - 3.92, abs=0.6) and high == pytest.approx(80 + 3.92, abs=0.6)
    assert interval(draw([answers(320)]))[:, 0, 0].tolist() == [low, high]
    assert interval(draw([answers(5, size=5)]))[:, 0, 0].tolist() == [100, 100]


def test_rows_share_their_draw_and_tasks_do_not() -> None:
    same = answers(200, 200)
    drawn = draw([same, same])
    assert (drawn[:, 0] == drawn[:, 1]).all(), "equal answers are equal in every draw"
    assert drawn.std() > 1 and np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1] < 0.2


def test_intervals_of_derived_numbers_against_a_loop() -> None:
    random = np.random.default_rng(1)
    sizes = [30, 50, 20]
    scores = [random.random((4, size)) * 100 for size in sizes]
    found = derived_intervals(scores, sizes)
    numbers: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(2000):
        rows = np.empty((4, 3))
        for task, each in enumerate(scores):
            chosen = random.integers(each.shape[1], size=each.shape[1])
            rows[:, task] = [np.mean([row[i] for i in chosen]) for row in each]
        for name, value in derived(rows, sizes).items():
            numbers[name].append(value)
    assert set(found) == set(derived(np.stack([each.mean(axis=1) for each in scores], axis=1), sizes))
    for name, values in numbers.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.3 * np.std(values)), name
        assert found[name][0] < found[name][1]


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw([answers(10, 20, size=37)], draws=50)
    monkeypatch.setattr(intervals, "_DRAWN", 100)
    assert (draw([answers(10, 20, size=37)], draws=50) == whole).all()


def test_numbers_of_blocks_of_draws_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    sizes = [30, 50, 20, 41]
    scores = [random.random((5, size)) * 100 for size in sizes]
    scores[3][0] = np.nan
    whole = derived_arrays(draw(scores, draws=100, streams=[4, 9, 2, 9]), sizes)
    monkeypatch.setattr(intervals, "_CELLS", 300)
    parts = list(intervals._blocks(scores, 100, None))
    assert [part.shape for part in parts] == [(8, 5, 4)] * 12 + [(4, 5, 4)], "15 matrices would fit, 8 are taken"
    found = derived_draws(scores, sizes, draws=100, streams=[4, 9, 2, 9])
    assert list(found) == list(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert found[name].base is None, "nothing keeps the blocks alive"


def test_a_drawn_matrix_is_the_means_of_the_drawn_examples() -> None:
    scores = [np.random.default_rng(task).random((3, size)) * 100 for task, size in enumerate((7, 12))]
    drawn = draw(scores, draws=5)
    for task, each in enumerate(scores):
        random = np.random.default_rng([intervals.SEED, task])
        for number in range(5):
            chosen = random.integers(each.shape[1], size=each.shape[1])
            np.testing.assert_allclose(drawn[number, :, task], each[:, chosen].mean(axis=1), rtol=1e-13)


def test_kept_scores_are_read_by_row_and_task_and_holes_are_empty(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    lines = [{"task": "a", "score": 12.5}, {"task": "b", "score": 50.0}, {"task": "a", "score": 0.0}]
    old = [{"task": "a", "answer": "x", "prediction": "x"}, {"task": "a", "answer": "x", "prediction": "y"}]
    for name, content in (("01_a", old), ("02_b", lines)):
        text = "".join(json.dumps(line) + "\n" for line in content)
        (tmp_path / "predictions" / f"{name}.jsonl").write_text(text)
    scores = read_scores(tmp_path)
    a, b = by_task(scores, ["a", "b"], 3)
    nan = np.nan
    np.testing.assert_array_equal(a, [[nan, nan], [100, 0], [12.5, 0]])
    np.testing.assert_array_equal(b, [[nan], [nan], [50]])
    # Only what was measured has an interval.
    assert np.isnan(interval(draw([a, b]))).sum() == 2 * 3
    (tmp_path / "predictions" / "03_c.jsonl").write_text('{"task": "a"}\n')
    with pytest.raises(ValueError, match=r"03_c\.jsonl cannot be read"):
        read_scores(tmp_path)
