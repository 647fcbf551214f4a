"""The lines that load an exported folder, as its card and the screen have them."""

from __future__ import annotations

import json
from pathlib import Path

from cl_runner.config import Backbone
from cl_runner.handover import vllm
from cl_runner.handover.manifest import Manifest, hub_name
from cl_runner.parts import family_kind

AUTO = {
    "classifier": "AutoModelForSequenceClassification",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image_text": "AutoModelForImageTextToText",
}


def lines(manifest: Manifest, backbone: Backbone, place: str) -> str:
    """Python that loads it by libraries that others have; empty where only cl_runner does.

    Args:
        backbone: of the run.
        place: Python that gives the folder.
    """
    if manifest.kind == "method":
        return ""
    auto = AUTO[family_kind(manifest.backbone.family)]
    reader = "AutoProcessor" if auto.endswith("ImageTextToText") else "AutoTokenizer"
    dtype = ', dtype="bfloat16"' if backbone.dtype == "bfloat16" else ""
    found = [f"folder = {place}", f"reader = transformers.{reader}.from_pretrained(folder)"]
    if manifest.kind == "model":
        return "\n".join(
            ["import transformers\n", *found, f"model = transformers.{auto}.from_pretrained(folder{dtype})"]
        )
    name = hub_name(backbone)
    base = 'f"{folder}/backbone"' if name is None else json.dumps(name)
    more = f", revision={json.dumps(backbone.revision)}" if name is not None and backbone.revision else ""
    if family_kind(manifest.backbone.family) == "classifier":
        more += f", num_labels={len(manifest.labels)}"
    whose = next(iter(manifest.folders.values()), "")
    inside = f'f"{{folder}}/{whose}"' if whose else "folder"
    note = f"  # the texts of {whose}; each task has a folder" if whose else ""
    return "\n".join(
        [
            "import peft",
            "import transformers\n",
            *found,
            f"backbone = transformers.{auto}.from_pretrained({base}{more}{dtype})",
            f"model = peft.PeftModel.from_pretrained(backbone, {inside}){note}",
        ]
    )


def own_lines(manifest: Manifest, place: str) -> str:
    """Python that loads it by this package and asks it, as the run asked; empty of what reads pictures."""
    if family_kind(manifest.backbone.family) == "image_text":
        return ""
    known = list(manifest.folders) or [task.name for task in manifest.tasks]
    told = "task" in manifest.told or bool(manifest.folders)
    task = f", task={json.dumps(known[0])}" if told else ""
    return f'import cl_runner\n\nmodel = cl_runner.load({place})\nmodel.answer(["a text as the tasks have them"]{task})'


def of_vllm(manifest: Manifest, architecture: str, folder: Path, backbone: Backbone) -> str:
    """What vLLM would do with it, in a sentence.

    Args:
        architecture: the class of the run's model.
        backbone: of the run.
    """
    if manifest.kind == "method":
        return "vLLM has no loader for it: what it answers with is more than a model"
    if manifest.kind == "model":
        return vllm.of_model(folder)
    base = hub_name(backbone) or "FOLDER/backbone"
    return vllm.of_adapter(folder / next(iter(manifest.folders.values()), ""), architecture, base)
