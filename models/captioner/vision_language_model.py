"""Captions by a vision-language model, which is prompted again if its caption does not contain the class name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from classifier_lens.models.captioner.captioner import (
    TemplateCaptioner,
    check_caption,
    fill_template,
    mentions,
    normalize_whitespace,
    with_article,
)
from classifier_lens.models.devices import parse_device, parse_dtype
from classifier_lens.models.hub import as_user_error, load_frozen, local_folder
from classifier_lens.models.image_conversion import to_uint8_array
from classifier_lens.runner.configuration.value_ranges import Dtype, Names, PerProblemCount
from classifier_lens.runner.types import Example, UserError, indefinite_article


@dataclass(frozen=True)
class ChatTurn:
    """An image in [0, 1], a prompt, and the response; None for the turn that the model has to complete."""

    image: Float[Tensor, "3 h w"]
    prompt: str
    response: str | None


class ChatModel(Protocol):
    """Returns the response to the last turn; the turns before it are examples."""

    def __call__(self, turns: Sequence[ChatTurn]) -> str: ...


@dataclass(frozen=True)
class FewShotExample:
    """An image in [0, 1], its class name, and a caption that contains the class name."""

    image: Float[Tensor, "3 h w"]
    label: str
    caption: str


class VlmCaptioner:
    """The first caption of the model that contains the class name.

    Args:
        chat: the vision-language model.
        caption_prompts: prompts with the placeholders `{article}` and `{label}`, tried once each in this order.
        objects_prompt: the prompt for a list of objects.
        few_shot_examples: turns that precede each prompt for a caption.
        fallback: captioner that is used, with a note, if no response contains the class name.
    """

    def __init__(
        self,
        chat: ChatModel,
        caption_prompts: Sequence[str],
        objects_prompt: str,
        few_shot_examples: Sequence[FewShotExample],
        fallback: TemplateCaptioner,
    ) -> None:
        self.chat, self.caption_prompts, self.objects_prompt = chat, caption_prompts, objects_prompt
        self.few_shot_examples, self.fallback = few_shot_examples, fallback
        self._notes: dict[str, str] = {}
        self.notes: Mapping[str, str] = self._notes

    def caption(self, example: Example) -> str:
        """The first sentence, without its period, of the first response that contains the class name."""
        caption = ""
        for prompt in self.caption_prompts:
            examples = [
                ChatTurn(shot.image, _fill_prompt(prompt, shot.label), shot.caption) for shot in self.few_shot_examples
            ]
            turn = ChatTurn(example.image, _fill_prompt(prompt, example.label), None)
            caption = _first_sentence(self.chat([*examples, turn]))
            if mentions(caption, example.label):
                return caption
        self._notes[example.name] = (
            f"none of {len(self.caption_prompts)} captions of the model contains '{example.label}', "
            f"the last one is '{caption}'; the template is used instead"
        )
        return self.fallback.caption(example)

    def objects(self, example: Example) -> list[str]:
        """The objects in the response, each once; if there are none, the class name, with a note."""
        response = self.chat([ChatTurn(example.image, self.objects_prompt, None)])
        nouns = [_noun(entry) for entry in re.split(r"[,;\n]|\band\b", response)]
        if objects := list(dict.fromkeys(noun for noun in nouns if noun)):
            return objects
        self._notes[example.name] = f"the model listed no objects; '{example.label}' is used instead"
        return [with_article(example.label)]


def _fill_prompt(prompt: str, label: str) -> str:
    return fill_template("captioner.caption_prompts", prompt, article=indefinite_article(label), label=label)


def _first_sentence(response: str) -> str:
    """The first sentence of a response, without quotation marks and final punctuation."""
    return re.split(r"(?<=[.!?])\s", normalize_whitespace(response), maxsplit=1)[0].strip("\"'.!? ")


def _noun(entry: str) -> str:
    """An entry of a list in lower case, without its number or bullet and its period."""
    return re.sub(r"^(\d+[.)]|[-*•])\s*", "", normalize_whitespace(entry).lower()).strip("\"'. ")


@dataclass(frozen=True)
class TransformersChatModel:
    """A transformers image-text-to-text model with its chat template and greedy decoding."""

    network: Any
    processor: Any
    max_new_tokens: int

    @torch.no_grad()
    def __call__(self, turns: Sequence[ChatTurn]) -> str:
        messages: list[dict[str, Any]] = []
        for turn in turns:
            content = [{"type": "image"}, {"type": "text", "text": turn.prompt}]
            messages.append({"role": "user", "content": content})
            if turn.response is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.response}]})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [Image.fromarray(to_uint8_array(turn.image)) for turn in turns]
        inputs = self.processor(text=[text], images=images, return_tensors="pt")
        inputs = inputs.to(self.network.device, self.network.dtype)
        tokens = self.network.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens
        )  # fmt: skip
        return self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def load(
    path: str, revision: str | None, dtype: Dtype, device: str, max_new_tokens: PerProblemCount, caption_prompts: Names,
    objects_prompt: str, examples: Sequence[Mapping[str, str]], fallback: TemplateCaptioner,
) -> VlmCaptioner:  # fmt: skip
    """A captioner with a vision-language model that has a chat template; see `VlmCaptioner` for the other settings.

    Args:
        path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`.
        examples: few-shot examples, each with `image` (a file), `label` and `caption`.

    Raises:
        UserError: weights, the chat template, a prompt or an image is missing or cannot be used.
    """
    key = f"captioner.path={path}"
    if not caption_prompts:
        raise UserError("captioner.caption_prompts: is empty; expected a list of prompts for a caption")
    torch_dtype, torch_device = parse_dtype("captioner.dtype", dtype), parse_device("captioner.device", device)
    few_shot_examples = [read_few_shot_example(example) for example in examples]
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{key}: has no chat template; expected a model that was trained to follow instructions")
    network = load_frozen(key, folder, AutoModelForImageTextToText, torch_dtype)
    chat = TransformersChatModel(network.to(torch_device), processor, max_new_tokens)
    return VlmCaptioner(chat, caption_prompts, objects_prompt, few_shot_examples, fallback)


def read_few_shot_example(example: Mapping[str, str]) -> FewShotExample:
    """An example with its image. Raises UserError if a part is missing or the caption lacks the class name."""
    key = "captioner.examples"
    if missing := {"image", "label", "caption"} - set(example):
        raise UserError(f"{key}: {', '.join(sorted(missing))} is missing in {dict(example)}")
    try:
        with Image.open(Path(example["image"]).expanduser(), formats=["JPEG", "PNG", "WEBP"]) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{key}: image={example['image']} cannot be read; expected a JPEG, PNG or WebP image"
        ) from error
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return FewShotExample(image, example["label"], check_caption(example["caption"], example["label"], key))
