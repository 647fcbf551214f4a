"""Processors of pictures and prompts for models with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from cl_runner.config import Backbone

#: LLaVA-1.5's words around a turn.
TEMPLATE = (
    "{% for message in messages %}{{ message.role.upper() }}: "
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
#: Of Qwen3-VL, in the order of their ids in `backbone=tiny_qwen3_vl`: an image, a video, what stands around both.
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
#: Pixels of a picture that Qwen3-VL reads at least and at most, for models of a few numbers.
FEWEST_PIXELS, MOST_PIXELS = 64, 4096


class _PicturesAlone(Qwen3VLProcessor):
    """Without its part for videos, which needs a package of its own."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Each part by itself; what reads the whole would ask for the part that is not there."""
        for name in ("tokenizer", "image_processor"):
            getattr(self, name).save_pretrained(save_directory, push_to_hub=push_to_hub, **options)


def _llava(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    vision = architecture["vision_config"]
    size = vision["image_size"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=TEMPLATE,
    )


def _qwen3_vl(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    vision = architecture["vision_config"]
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS)})
    return _PicturesAlone(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=vision["patch_size"],
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            merge_size=vision.get("spatial_merge_size", 2),
            size={"shortest_edge": FEWEST_PIXELS, "longest_edge": MOST_PIXELS},
        ),
        tokenizer=tokenizer,
        chat_template=TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


#: model_type -> what its vision_config must name, and what makes the processor.
_MAKERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], PreTrainedTokenizerBase], ProcessorMixin]]] = {
    "llava": (("image_size", "patch_size"), _llava),
    "qwen3_vl": (("patch_size",), _qwen3_vl),
}


def small_processor(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The processor of a model with random weights; the tokenizer gets the tokens that stand for pictures.

    Raises:
        ValueError: the architecture is none that a processor is known for.
    """
    architecture = backbone.architecture or {}
    needed, maker = _MAKERS.get(str(architecture.get("model_type")), ((), None))
    if maker is None or not set(needed) <= architecture.get("vision_config", {}).keys():
        raise ValueError(
            "backbone.architecture: of models with pictures and random weights only model_type: llava (with "
            "vision_config.image_size and .patch_size) and qwen3_vl (with .patch_size) are known. "
            "See: backbone=tiny_llava, backbone=tiny_qwen3_vl"
        )
    return maker(architecture, tokenizer)
