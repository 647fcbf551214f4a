"""What every test shares: one CPU thread, no network."""

from __future__ import annotations

import base64
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# Before torch is imported, here or in a subprocess: tests must not fight over cores or reach for a hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Helpers that compare show what differs, as tests do.
pytest.register_assert_rewrite("four_tasks", "gradients", "own", "stored")


#: Tests of what pictures show; elsewhere figures are made, but not rendered.
DRAWN = ("test_report", "test_atlas", "test_run", "test_wandb")
#: Tests that ask nothing of a run's plan, which takes half of a tiny run.
UNPLANNED = {
    *("test_adapters", "test_beginnings", "test_captioning", "test_certificate", "test_chats", "test_checkpoints"),
    *("test_compare", "test_conf", "test_drawings", "test_families", "test_figures", "test_first_task", "test_fork"),
    *("test_forgotten", "test_gguf", "test_humaneval", "test_masked_kl", "test_optimizer", "test_own_files"),
    *("test_piece", "test_probes", "test_prompts", "test_replay", "test_representations", "test_resume"),
    *("test_resume_memory", "test_sdft", "test_slm", "test_special_tokens", "test_trackers", "test_training"),
    *("test_versions", "test_vqa", "test_zero_gradient"),
}
#: Of tests of many rows that take long every so many run by default, and of 0 none: all with CL_RUNNER_EVERY_FAMILY=1.
THINNED = {
    "test_a_job_near_its_limit_saves_and_waits_again": 0,
    "test_a_multirun_is_brought_at_once": 0,
    "test_a_multirun_of_two_at_once_tells_what_becomes_of_its_jobs": 0,
    "test_a_plan_asks_about_an_architecture_that_nothing_changed": 0,
    "test_a_plan_is_within_a_quarter_of_what_lives": 3,
    "test_a_plan_is_within_a_quarter_of_what_lives_while_answers_are_given": 0,
    "test_a_process_that_a_library_kills_says_where_and_goes_on": 0,
    "test_a_queue_in_the_background": 0,
    "test_a_run_ends_with_the_same_bits_after_an_interruption": 4,
    "test_a_run_keeps_states_and_cka_and_shows_them": 0,
    "test_a_run_of_rows_on_disk_is_that_of_rows_in_memory": 2,
    "test_a_run_that_died_has_each_line_once": 3,
    "test_a_run_that_takes_tasks_is_the_run_that_trains_them": 0,
    "test_a_run_that_takes_the_first_task_ends_with_the_same_bits": 3,
    "test_a_run_whose_checkpoint_was_brought_opens_no_connection": 0,
    "test_answers_by_prefix_have_room_for_prompts": 0,
    "test_commands_of_the_readmes_can_be_typed": 5,
    "test_curves_of_each_family_and_of_several_runs": 0,
    "test_death_at_a_checkpoint": 4,
    "test_death_elsewhere": 4,
    "test_death_in_the_middle_of_a_task": 0,
    "test_death_with_a_memory": 0,
    "test_death_with_adapters": 2,
    "test_death_with_retrieval": 0,
    "test_each_has_one_answer": 0,
    "test_equal_layers_are_counted_from_few_to_the_byte": 0,
    "test_every_experiment_runs_two_steps": 9,
    "test_every_option_composes": 9,
    "test_every_order_composes": 4,
    "test_export_is_what_peft_loads": 2,
    "test_forged_snapshots": 9,
    "test_gradient_of_a_mean_over_targets": 3,
    "test_half_precision_weights_learn_and_are_restored_bit_for_bit": 3,
    "test_importance_is_shared_between_runs_and_changes_no_bit": 0,
    "test_interrupted_and_resumed_equals_uninterrupted": 0,
    "test_its_own_command_made_tiny_fills_it": 3,
    "test_jobs_of_a_multirun_see_them_too": 0,
    "test_micro_batches_give_the_step_of_the_whole_batch": 4,
    "test_old_examples_are_counted_as_the_run_meets_them": 4,
    "test_one_message_and_status_2": 4,
    "test_online_replay_is_the_mean_over_both": 3,
    "test_only_what_changes_no_result_is_set_and_typed_values_stay": 0,
    "test_orders_as_published": 4,
    "test_others_load_it_by_the_lines_of_its_card": 0,
    "test_pairs_learn_or_are_refused": 9,
    "test_parts_by_their_path": 0,
    "test_passes_change_neither_draws_nor_step": 3,
    "test_plan_of_a_run_is_in_its_folder": 2,
    "test_presets_run_two_steps": 3,
    "test_retrieved_values_live_like_the_real_ones": 4,
    "test_row_is_what_it_was": 3,
    "test_runs_are_compared_in_one_projection": 0,
    "test_scores_do_not_depend_on_the_batch_size": 2,
    "test_the_plan_of_a_gpu": 0,
    "test_the_printed_benchmark": 0,
    "test_the_printed_method_resumes": 3,
    "test_two_equal_runs_have_the_same_numbers": 0,
    "test_two_orders_share_the_tasks_that_they_begin_with": 4,
    "test_two_processes_store_the_same_key": 0,
    "test_versions_of_what_a_method_added": 0,
    "test_what_is_kept_is_what_plans_count": 4,
    "test_what_is_trained_otherwise_is_trained_anew": 3,
    "test_what_is_wrong_is_said_once": 0,
}
#: Files that take minutes with every family: they begin first, so that no process is left alone with one at the end.
LONGEST = ("test_sharded", "test_conformance", "test_several", "test_fork", "test_conf", "test_papers", "test_resume")
#: A picture of one pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; leave out rows of THINNED, but where a test is asked for by its name."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if os.environ.get("CL_RUNNER_EVERY_FAMILY") == "1" or any("::" in place for place in config.args):
        return
    seen: Counter[str] = Counter()
    left_out = []
    for item in items:
        name = getattr(item, "originalname", item.name)
        step = THINNED.get(name, 1)
        if step == 0 or seen[name] % step:
            left_out.append(item)
        seen[name] += 1
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes of the tiny models cost, for all runs of this process."""
    return tmp_path_factory.mktemp("prices")


def unplanned(*asked: object) -> NoReturn:
    """In the place of a plan."""
    raise ValueError("this test asks for none")


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, prices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering and planning are two thirds of a tiny run's time."""
    monkeypatch.setattr("cl_runner.planning.plan.price_store", lambda config: prices)
    if request.path.stem in UNPLANNED:
        monkeypatch.setattr("cl_runner.planning.begun.plan_run", unplanned)
    if not request.path.stem.startswith(DRAWN):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: path.write_bytes(PNG))


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Runs without reports, for one test."""
    from tiny import without_report  # which imports torch

    with without_report():
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
