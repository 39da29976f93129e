"""What generators have in common whose answer is one picture, found with the same constants at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Controls, EditContext, Scene


class SingleImageGenerator:
    """No random numbers but the anchor's, no prompt that is optimised, no control that is kept."""

    saved_controls: tuple[str, ...] = ()
    images_per_result = 1
    images_in_graph = 1
    known_classes: Sequence[str] | None = None
    can_generate = True

    @abstractmethod
    def __call__(self, controls: Controls, anchor: EditContext) -> list[Scene]:
        """The last x0-predictions as scenes; the last of them is the picture that counts."""

    def step_context(self, anchor: EditContext, k: int) -> EditContext:
        return anchor

    def evaluation_context(self, anchor: EditContext) -> EditContext:
        return anchor

    @torch.no_grad()
    def images(self, controls: Controls, anchor: EditContext) -> Float[Tensor, "b 1 3 h w"]:
        return self(controls, anchor)[-1].image[:, None]

    def decode_prompts(self, controls: Controls, anchor: EditContext) -> list[str] | None:
        """No prompt is optimised."""
        return None
