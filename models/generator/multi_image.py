"""Several pictures as one answer, each from a start of its own: for baselines whose answer is one picture where the
method's is a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.single_image import SinglePicture
from classifier_lens.models.seeded_noise import stream
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import Anchor, Controls, Found, Problem, Scene, Schedules, Start


@dataclass(frozen=True, kw_only=True)
class SeveralAnchor(Anchor):
    """own: the constants of all pictures, those of a problem next to each other. What stands beside it is that of each
    problem's first picture; norm is of all of them, "b n"."""

    own: Anchor


class Several(SinglePicture):
    """`count` pictures per problem by a generator whose answer is one, each from a seed of its own: the views of a
    scene. Controls are the generator's, "b n …"."""

    def __init__(self, generator: Generator, count: int) -> None:
        self.generator, self.count, self.graphed = generator, count, count

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check(problems)

    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        every = [replace(p, seed=stream(p.seed, "several", j)) for p in problems for j in range(self.count)]
        start = self.generator.begin(every, schedules, found)
        assert len(start.anchors) == 1 and not start.others, "nothing is chosen among starts"
        controls, anchor = self._folded(start.controls), self._outer(start.anchors[0])
        return Start(controls, [anchor], start.notes[:: self.count], found=start.found)

    def _folded(self, controls: Controls) -> Controls:
        return {name: values.unflatten(0, (-1, self.count)) for name, values in controls.items()}

    def _outer(self, own: Anchor) -> Anchor:
        def first(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {name: first(value) for name, value in values.items()}
            return values[:: self.count]

        shared = {field.name: first(getattr(own, field.name)) for field in fields(Anchor)}
        return SeveralAnchor(**shared | {"norm": own.norm.unflatten(0, (-1, self.count))}, own=own)

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        assert isinstance(anchor, SeveralAnchor)
        own = self.generator.fresh(anchor.own, k)
        return anchor if own is anchor.own else replace(anchor, own=own)

    def final(self, anchor: Anchor) -> Anchor:
        return anchor

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes whose views are a problem's pictures; `image` is the first of them."""
        assert isinstance(anchor, SeveralAnchor)
        scenes = self.generator({name: values.flatten(0, 1) for name, values in controls.items()}, anchor.own)
        folded = [[v.unflatten(0, (-1, self.count)) for v in (s.image, s.latent, s.views[:, 0])] for s in scenes]
        return [Scene(images[:, 0], latents[:, 0], views) for images, latents, views in folded]

    @torch.no_grad()
    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b n 3 h w"]:
        return self(controls, anchor)[-1].views

    def worded(self, controls: Controls, anchor: Anchor) -> list[str] | None:
        assert isinstance(anchor, SeveralAnchor)
        words = self.generator.worded(controls, anchor.own)
        return None if words is None else words[:: self.count]
