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

from classifier_lens.models.captioner.captioner import Template, checked, filled, mentions, tidy, with_article
from classifier_lens.models.devices import device_of, dtype_of
from classifier_lens.models.hub import load_frozen, local_folder, one_line
from classifier_lens.runner.configuration.value_ranges import Dtype, Names, Repeats
from classifier_lens.runner.types import Example, UserError, article


@dataclass(frozen=True)
class Turn:
    """A picture in [0, 1], what is asked of it, and the answer; None where it is wanted."""

    picture: Float[Tensor, "3 h w"]
    demand: str
    answer: str | None


class Chat(Protocol):
    """Answers the last of some turns; those before are examples of how."""

    def __call__(self, turns: Sequence[Turn]) -> str: ...


@dataclass(frozen=True)
class Shot:
    """An example for the model: a picture in [0, 1], the class that it shows, and a caption that names it."""

    picture: Float[Tensor, "3 h w"]
    label: str
    answer: str


class Vlm:
    """Asks for a caption until one names the class; `fallback` captions what never got one, and a note says so.

    demands: the ways to ask, in their order, with `{article}` and `{label}`, one try each; inventory: the question for
    objects, to be answered in a list; shots: examples that go before every demand.
    """

    def __init__(
        self, chat: Chat, demands: Sequence[str], inventory: str, shots: Sequence[Shot], fallback: Template
    ) -> None:  # fmt: skip
        self.chat, self.demands, self.inventory = chat, demands, inventory
        self.shots, self.fallback = shots, fallback
        self._notes: dict[str, str] = {}
        self.notes: Mapping[str, str] = self._notes

    def caption(self, example: Example) -> str:
        """The first sentence of the first answer that names the class, without its full stop."""
        answer = ""
        for demand in self.demands:
            examples = [Turn(shot.picture, _asked(demand, shot.label), shot.answer) for shot in self.shots]
            answer = _sentence(self.chat([*examples, Turn(example.image, _asked(demand, example.label), None)]))
            if mentions(answer, example.label):
                return answer
        self._notes[example.name] = (
            f"the captioner did not name '{example.label}' in {len(self.demands)} tries, at last it said '{answer}': "
            "the template took its place"
        )
        return self.fallback.caption(example)

    def objects(self, example: Example) -> list[str]:
        """What the answer lists, each once; the class, and a note, where it lists nothing."""
        answer = self.chat([Turn(example.image, self.inventory, None)])
        parts = [_noun(part) for part in re.split(r"[,;\n]|\band\b", answer)]
        if found := list(dict.fromkeys(part for part in parts if part)):
            return found
        self._notes[example.name] = f"the captioner listed no objects: '{example.label}' took their place"
        return [with_article(example.label)]


def _asked(demand: str, label: str) -> str:
    return filled("captioner.demands", demand, article=article(label), label=label)


def _sentence(answer: str) -> str:
    """The first sentence of an answer, without quotes around it and without its full stop."""
    return re.split(r"(?<=[.!?])\s", tidy(answer), maxsplit=1)[0].strip("\"'.!? ")


def _noun(part: str) -> str:
    """An entry of a list, without its number and the full stop."""
    return re.sub(r"^(\d+[.)]|[-*•])\s*", "", tidy(part).lower()).strip("\"'. ")


# --- the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransformersChat:
    """A transformers image-text-to-text model behind its own chat template; the likeliest token is always taken."""

    network: Any
    processor: Any
    max_new_tokens: int

    @torch.no_grad()
    def __call__(self, turns: Sequence[Turn]) -> str:
        messages: list[dict[str, Any]] = []
        for turn in turns:
            asked = [{"type": "image"}, {"type": "text", "text": turn.demand}]
            messages.append({"role": "user", "content": asked})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
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
    path: str, revision: str | None, dtype: Dtype, device: str, max_new_tokens: Repeats, demands: Names,
    inventory: str, examples: Sequence[Mapping[str, str]], fallback: Template,
) -> Vlm:  # fmt: skip
    """A captioner over a vision-language model with a chat template; see `Vlm` for the other settings.

    path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`;
    examples: each with `picture` (a file), `label` and `answer`. Raises UserError if anything of it is missing or
    cannot be used.
    """
    key = f"captioner.path={path}"
    if not demands:
        raise UserError("captioner.demands: holds nothing; wanted is a list of ways to ask for a caption")
    number, place = dtype_of("captioner.dtype", dtype), device_of("captioner.device", device)
    shots = [read_shot(example) for example in examples]
    folder = local_folder(key, path, revision)
    with one_line(key):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{key}: has no chat template; wanted is a model that was trained to follow instructions")
    network = load_frozen(key, folder, AutoModelForImageTextToText, number)
    return Vlm(TransformersChat(network.to(place), processor, max_new_tokens), demands, inventory, shots, fallback)


def read_shot(example: Mapping[str, str]) -> Shot:
    """An example with its picture. Raises UserError if a part is missing or the answer does not name the class."""
    key = "captioner.examples"
    if missing := {"picture", "label", "answer"} - set(example):
        raise UserError(f"{key}: {', '.join(sorted(missing))} is missing in {dict(example)}")
    try:
        with Image.open(Path(example["picture"]).expanduser(), formats=["JPEG", "PNG", "WEBP"]) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{key}: picture={example['picture']} cannot be read; wanted is a picture") from error
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return Shot(picture, example["label"], checked(example["answer"], example["label"], key))
