"""Drawn pictures: what is asked and said of them is what they show; the same seed draws the same files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tiny import run_command

from cl_runner.compose import compose
from cl_runner.data.drawings import CELL, COLOURS, GROUNDS, NUMBERS, QUESTIONS, SHAPES, SIDE, drawings
from cl_runner.data.task import build_tasks
from cl_runner.digests import digest_of


def shown(image: Image.Image) -> tuple[str, str, int]:
    """Colour, shape and number, found by looking: nearest colours, and how much of its box a shape fills."""
    pixels = [image.getpixel((x, y)) for y in range(SIDE) for x in range(SIDE)]
    (colour,) = {name for name, value in COLOURS.items() if value in pixels}
    boxes = []
    for top in (0, CELL):
        for left in (0, CELL):
            cell = image.crop((left, top, left + CELL, top + CELL))
            inside = [(x, y) for x in range(CELL) for y in range(CELL) if cell.getpixel((x, y)) == COLOURS[colour]]
            if inside:
                width, height = (max(values) - min(values) + 1 for values in zip(*inside, strict=True))
                boxes.append(len(inside) / (width * height))
    shapes = {"square" if share == 1 else "circle" if share > 0.65 else "triangle" for share in boxes}
    (shape,) = shapes
    return colour, shape, len(boxes)


def test_a_picture_shows_what_its_answers_and_captions_say() -> None:
    found = drawings("train", 120, 0)
    for drawing in found:
        colour, shape, number = shown(drawing.picture())
        assert (colour, shape) == (drawing.answer("colour"), drawing.answer("shape"))
        assert NUMBERS[number - 1] == drawing.answer("count")
        captions = drawing.captions()
        assert len(set(captions)) == 5
        for caption in captions:
            assert all(word in caption.lower() for word in (colour, shape, NUMBERS[number - 1]))
            assert (f"{shape}s" in caption) == (number > 1)
    counted = Counter((d.colour, d.shape, d.number) for d in found)
    assert (
        len(counted) == len(COLOURS) * len(SHAPES) * len(NUMBERS) and max(counted.values()) - min(counted.values()) < 2
    )
    assert {d.ground for d in found} == set(GROUNDS)


def test_more_pictures_begin_with_the_fewer_and_splits_differ() -> None:
    assert drawings("train", 100, 3)[:30] == drawings("train", 30, 3)
    assert drawings("test", 30, 3) != drawings("train", 30, 3) != drawings("train", 30, 4)


def test_the_command_writes_what_orders_and_probes_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["draw", str(tmp_path), "--train", "24", "--val", "2", "--test", "6"]
    assert run_command(arguments) == 0
    assert "task_order=drawn probe=captioning_drawn" in capsys.readouterr().out
    files = sorted(path for path in (tmp_path / "drawn").rglob("*") if path.is_file())
    assert len(files) == 32 + 3 * (len(QUESTIONS) + 1) + 1
    before = {path: digest_of(path.read_bytes()) for path in files}
    assert run_command(arguments) == 0
    assert before == {path: digest_of(path.read_bytes()) for path in files}
    counts = [f"task_order.{part}.{split}=null" for part in ("base", "incremental") for split in ("train", "test")]
    config = compose(["backbone=tiny_llava", "task_order=drawn", f"data_root={tmp_path}", *counts]).config
    tasks = build_tasks(config.task_order, config.task)
    assert [(task.name, len(task.train), len(task.test)) for task in tasks] == [(kind, 24, 6) for kind in QUESTIONS]
    for task in tasks:
        for example in task.test:
            assert example.picture is not None
            found = dict(zip(QUESTIONS, shown(Image.open(example.picture.path)), strict=True))
            wanted = found[task.name]
            assert example.answer == (NUMBERS[wanted - 1] if isinstance(wanted, int) else wanted)
    captions = json.loads((tmp_path / "drawn" / "dataset_drawn.json").read_text())["images"]
    assert Counter(one["split"] for one in captions) == {"train": 24, "val": 2, "test": 6}


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["draw", str(tmp_path), "--test", "0"]) == 2
    assert "at least one picture" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run_command(["draw", str(tmp_path / "file")]) == 2
    assert "cannot write" in capsys.readouterr().err
    missing = ["backbone=tiny_llava", "task_order=drawn", f"data_root={tmp_path}/none", f"root={tmp_path}/out"]
    assert run_command(missing) == 2
    assert "Type: python -m cl_runner draw" in capsys.readouterr().err
