"""Captions by a vision-language model that is asked, and asked again where it does not name the class."""

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
from classifier_lens.runner.configuration.value_ranges import Dtype, Names, PerProblemCount
from classifier_lens.runner.types import Example, UserError, indefinite_article


@dataclass(frozen=True)
class ChatTurn:
    """A picture in [0, 1], what is asked of it, and the answer; None where it is wanted."""

    picture: Float[Tensor, "3 h w"]
    prompt: str
    response: str | None


class ChatModel(Protocol):
    """Answers the last of some turns; those before are examples of how."""

    def __call__(self, turns: Sequence[ChatTurn]) -> str: ...


@dataclass(frozen=True)
class FewShotExample:
    """An example for the model: a picture in [0, 1], the class that it shows, and a caption that names it."""

    image: Float[Tensor, "3 h w"]
    label: str
    caption: str


class VlmCaptioner:
    """Asks for a caption until one names the class; `fallback` captions what never got one, and a note says so.

    caption_prompts: the ways to ask, in their order, with `{article}` and `{label}`, one try each; objects_prompt: the
    question for objects, to be answered in a list; few_shot_examples: examples that go before every demand."""

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
        """The first sentence of the first answer that names the class, without its full stop."""
        answer = ""
        for demand in self.caption_prompts:
            examples = [
                ChatTurn(shot.image, _fill_prompt(demand, shot.label), shot.caption) for shot in self.few_shot_examples
            ]
            answer = _sentence(
                self.chat([*examples, ChatTurn(example.image, _fill_prompt(demand, example.label), None)])
            )
            if mentions(answer, example.label):
                return answer
        self._notes[example.name] = (
            f"the captioner did not name '{example.label}' in {len(self.caption_prompts)} tries, "
            f"at last it said '{answer}': "
            "the template took its place"
        )
        return self.fallback.caption(example)

    def objects(self, example: Example) -> list[str]:
        """What the answer lists, each once; the class, and a note, where it lists nothing."""
        answer = self.chat([ChatTurn(example.image, self.objects_prompt, None)])
        parts = [_noun(part) for part in re.split(r"[,;\n]|\band\b", answer)]
        if found := list(dict.fromkeys(part for part in parts if part)):
            return found
        self._notes[example.name] = f"the captioner listed no objects: '{example.label}' took their place"
        return [with_article(example.label)]


def _fill_prompt(prompt: str, label: str) -> str:
    return fill_template("captioner.caption_prompts", prompt, article=indefinite_article(label), label=label)


def _sentence(response: str) -> str:
    """The first sentence of an answer, without quotes around it and without its full stop."""
    return re.split(r"(?<=[.!?])\s", normalize_whitespace(response), maxsplit=1)[0].strip("\"'.!? ")


def _noun(part: str) -> str:
    """An entry of a list, without its number and the full stop."""
    return re.sub(r"^(\d+[.)]|[-*•])\s*", "", normalize_whitespace(part).lower()).strip("\"'. ")


# --- the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransformersChatModel:
    """A transformers image-text-to-text model behind its own chat template; the likeliest token is always taken."""

    network: Any
    processor: Any
    max_new_tokens: int

    @torch.no_grad()
    def __call__(self, turns: Sequence[ChatTurn]) -> str:
        messages: list[dict[str, Any]] = []
        for turn in turns:
            asked = [{"type": "image"}, {"type": "text", "text": turn.prompt}]
            messages.append({"role": "user", "content": asked})
            if turn.response is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.response}]})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        pictures = [_to_pillow(turn.picture) for turn in turns]
        given = self.processor(text=[text], images=pictures, return_tensors="pt")
        given = given.to(self.network.device, self.network.dtype)
        tokens = self.network.generate(
            **given, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens
        )  # fmt: skip
        return self.processor.decode(tokens[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def _to_pillow(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def load(
    path: str, revision: str | None, dtype: Dtype, device: str, max_new_tokens: PerProblemCount, caption_prompts: Names,
    objects_prompt: str, examples: Sequence[Mapping[str, str]], fallback: TemplateCaptioner,
) -> VlmCaptioner:  # fmt: skip
    """A captioner over a vision-language model with a chat template; see `VlmCaptioner` for the other settings.

    path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`;
    examples: each with `image` (a file), `label` and `caption`. Raises UserError if anything of it is missing or
    cannot be used.
    """
    key = f"captioner.path={path}"
    if not caption_prompts:
        raise UserError("captioner.caption_prompts: holds nothing; wanted is a list of ways to ask for a caption")
    number, place = parse_dtype("captioner.dtype", dtype), parse_device("captioner.device", device)
    shots = [read_few_shot_example(example) for example in examples]
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{key}: has no chat template; wanted is a model that was trained to follow instructions")
    network = load_frozen(key, folder, AutoModelForImageTextToText, number)
    return VlmCaptioner(
        TransformersChatModel(network.to(place), processor, max_new_tokens),
        caption_prompts,
        objects_prompt,
        shots,
        fallback,
    )


def read_few_shot_example(example: Mapping[str, str]) -> FewShotExample:
    """An example with its picture. Raises UserError if a part is missing or the answer does not name the class."""
    key = "captioner.examples"
    if missing := {"image", "label", "caption"} - set(example):
        raise UserError(f"{key}: {', '.join(sorted(missing))} is missing in {dict(example)}")
    try:
        with Image.open(Path(example["image"]).expanduser(), formats=["JPEG", "PNG", "WEBP"]) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{key}: image={example['image']} cannot be read; wanted is a picture") from error
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return FewShotExample(picture, example["label"], check_caption(example["caption"], example["label"], key))
