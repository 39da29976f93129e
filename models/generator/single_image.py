"""What generators have in common whose result is one image and whose constants are the same at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Context, Controls, Initialization, Scene


class SingleImageGenerator(Generic[Context]):
    """One candidate, no random numbers but those of the context, no optimized prompt, no saved control."""

    saved_controls: tuple[str, ...] = ()
    images_per_result = 1
    images_in_graph = 1
    known_classes: Sequence[str] | None = None
    can_generate = True

    @abstractmethod
    def __call__(self, controls: Controls, context: Context) -> list[Scene]:
        """The last x0-predictions as scenes; the last one is the image of the result."""

    def render_candidates(self, initialization: Initialization[Context]) -> Iterable[Scene]:
        for j in range(len(initialization.candidates)):
            controls, context = self.select(initialization, [j] * len(initialization.warnings))
            yield self(controls, context)[-1]

    def select(self, initialization: Initialization[Context], indices: Sequence[int]) -> tuple[Controls, Context]:
        assert not any(indices), "the only candidate"
        return initialization.controls, initialization.context

    def step_context(self, context: Context, k: int) -> Context:
        return context

    def evaluation_context(self, context: Context) -> Context:
        return context

    @torch.no_grad()
    def images(self, controls: Controls, context: Context) -> Float[Tensor, "b 1 3 h w"]:
        return self(controls, context)[-1].image[:, None]

    def decode_prompts(self, controls: Controls, context: Context) -> list[str] | None:
        return None
