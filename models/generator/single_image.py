"""What generators have in common whose answer is one picture, found with the same constants at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Anchor, Controls, Scene


class SinglePicture:
    """No random numbers but the anchor's, no prompt that is optimised, no control that is kept."""

    lasting: tuple[str, ...] = ()
    reported = 1
    graphed = 1
    draws: Sequence[str] | None = None
    can_draw = True

    @abstractmethod
    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """The last x0-predictions as scenes; the last of them is the picture that counts."""

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        return anchor

    def final(self, anchor: Anchor) -> Anchor:
        return anchor

    @torch.no_grad()
    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b 1 3 h w"]:
        return self(controls, anchor)[-1].image[:, None]

    def worded(self, controls: Controls, anchor: Anchor) -> list[str] | None:
        """No prompt is optimised."""
        return None
