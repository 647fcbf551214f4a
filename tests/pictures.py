"""Tasks about coloured pictures, and the configuration of runs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from cl_runner.compose import compose
from cl_runner.config import Config

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
#: Two tasks of a few coloured pictures on the tiny LLaVA.
SEEING = (
    "backbone=tiny_llava",
    "task_order=vqa",
    "task_order.tasks=[{name: action}, {name: count}]",
    "training.base.epochs=2",
    "training.incremental.epochs=1",
    "training.base.batch_size=8",
    "training.incremental.batch_size=8",
    "hardware.threads=1",
    "wandb=disabled",
)


def data(folder: Path) -> Path:
    """A data root: what colour is it?"""
    draw = random.Random(0)
    (folder / "coco" / "val2014").mkdir(parents=True)
    for domain in ("action", "count"):
        (folder / "vqa" / domain).mkdir(parents=True)
        for split, number in (("train", 24), ("eval", 2), ("test", 6)):
            rows = []
            for i in range(number):
                colour, place = draw.choice(sorted(COLOURS)), f"val2014/{domain}_{split}_{i}.png"
                Image.new("RGB", (draw.choice([16, 20, 40]), draw.choice([16, 24])), COLOURS[colour]).save(
                    folder / "coco" / place
                )
                question = "What colour?" if domain == "action" else "What colour is it?"
                rows.append({"prompt": question, "answer": colour, "pic_path": f"/data1/elsewhere/{place}"})
            (folder / "vqa" / domain / f"{split}.json").write_text(json.dumps(rows))
    return folder


def seeing(root: Path, *more: str) -> list[str]:
    chosen = {override.partition("=")[0] for override in more}
    return [*(o for o in SEEING if o.partition("=")[0] not in chosen), f"data_root={root}", *more]


def config(root: Path, *more: str) -> Config:
    return compose(seeing(root, *more)).config
