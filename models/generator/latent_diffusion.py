"""A latent diffusion model from questions to the beginning of a descent (DiG-IN, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator import cross_attention, prompt_to_prompt, prompt_tuning
from classifier_lens.models.generator.chain import RECOMPUTE, Chain
from classifier_lens.models.generator.editable_region import described, free, masks_of, needs_mask
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.pipeline.networks import load as load_networks
from classifier_lens.models.generator.samplers import Course, NullText, Sampler
from classifier_lens.models.generator.schedule_comparison import compare
from classifier_lens.models.segmenter.segmenter import Deferred, Softening, loaded
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.value_ranges import (
    ChainIndex,
    ChainSteps,
    Dtype,
    Fraction,
    Guidance,
    OneOf,
    Pixels,
    Rates,
    Schedule,
)
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import Anchor, Found, Problem, Schedules, Start, UserError


@dataclass(frozen=True)
class MapWindow:
    """Which XA maps make the mask: their side in latent pixels, and the part of the chain as shares in [0, 1].

    stretch: whether a map's minimum becomes 0. Where captions say little but the class, its words are attended to from
    everywhere, and only the differences show the object.
    """

    side: Pixels
    first: Fraction
    last: Fraction
    stretch: bool

    def steps(self, total: int) -> slice:
        """The sampler steps of the window: at least one."""
        begin = min(math.floor(self.first * total), total - 1)
        return slice(begin, max(math.ceil(self.last * total), begin + 1))


class LatentDiffusion(Chain):
    """A latent diffusion model that is asked about pictures: `begin` inverts them, finds what is free and exchanges
    words."""

    def __init__(
        self, networks: Networks, sampler: Sampler, resolution: Pixels, last: ChainSteps,
        recompute: Annotated[str, OneOf(RECOMPUTE)], backward: ChainSteps | None, blend_from: ChainIndex,
        maps: MapWindow, softening: dict[str, Softening], schedules: Schedule, segmenter: Segmenter | Deferred,
        cache: TensorCache, lr_scale: Rates, draws: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(networks, sampler, resolution, last, recompute, backward, blend_from)
        self.maps, self.softening, self.schedules = maps, softening, schedules
        self.segmenter, self.cache, self.lr_scale, self.draws = segmenter, cache, lr_scale, draws

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a mask has to be found. Raise UserError for what can be seen to fail."""
        tokenizer = self.networks.tokenizer
        if any(map(needs_mask, problems)):
            self.segmenter = loaded(self.segmenter)
        if any(p.load is not None for p in problems):
            self.sampler.check_inversion()
        if self.maps.side not in (sides := self.networks.map_sides(self.latent_side)):
            raise UserError(f"generator.maps.side={self.maps.side}: allowed are {', '.join(map(str, sides))}")
        for problem in problems:
            edit = problem.edit
            for prompt in (edit.source, edit.target):
                if prompt_tuning.MARK.search(prompt):
                    raise UserError(f"prompt '{prompt}': only controls=soft_prompt and hard_prompt have free tokens")
                prompt_to_prompt.token_spans(tokenizer, prompt)
            if needs_mask(problem):
                prompt_to_prompt.word_tokens(tokenizer, edit.source, problem.region)
            if edit.source != edit.target:
                prompt_to_prompt.word_tokens(tokenizer, edit.source, edit.source_words)
                prompt_to_prompt.word_tokens(tokenizer, edit.target, edit.target_words)

    def invert(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], seeds: Sequence[int]) -> Course:
        """The courses that lead back to pictures, see `Sampler.invert`; kept per picture in the cache.

        A batch is computed whole unless the cache has every picture of it: its numbers then never depend on
        what an earlier run left behind.
        """
        setting = [self.digest, self.sampler.setting, len(images), torch.get_num_threads()]
        keys = [
            self.cache.key(image, prompt, self.sampler.inversion(seed), *setting)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True)
        ]
        if (found := self.cache.load(keys)) is None:
            with torch.no_grad():
                encoded = self.networks.encode(images)
            found = self.sampler.invert(self.networks, encoded, prompts, seeds)
            self.cache.save(keys, **found)
        drawn = self.sampler.draw(self.networks, seeds, self.latent_side)
        return drawn | {name: values.to(self.device) for name, values in found.items()}

    @torch.no_grad()
    def record(
        self, course: Course, text: Float[Tensor, "b l d"], needed: int, steps: int | None = None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b t c y x"], Float[Tensor, "b c y x"]]:
        """One pass with the original prompt, of which the first `steps` are made, None for all -> XA maps per layer
        (b, needed, heads, q, l) of the `needed` first steps, latents before each step, and the last x0-prediction."""
        z, recorded, templates = course["latent"], [], []
        x0, embeddings = z, self.base(text, course)
        for i in range(len(self) if steps is None else steps):
            maps: dict[str, Tensor] = {}
            now = {name: values[:, i] for name, values in embeddings.items()}
            templates.append(z)
            z, x0 = self.step(z, now, course["noise"][:, i], i, record=maps if i < needed else None)
            if maps:
                recorded.append(maps)
        stacked = {layer: torch.stack([m[layer] for m in recorded], dim=1) for layer in recorded[0]} if recorded else {}
        return stacked, torch.stack(templates, dim=1), x0

    @torch.no_grad()
    def word_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """Where a picture, inverted and rendered again, attends to each word of its prompt, and to a phrase of it.

        Maps of side `maps.side`, averaged over heads, layers and the steps of `maps`, each divided by its maximum;
        the phrase's is the one that a mask of it is made from. The picture is a batch of its own, so that its maps do
        not depend on neighbours: where `begin` had it alone, too, its inversion comes from the cache.
        """
        course = self.invert(image[None].to(self.device), [prompt], [seed])
        window, tokenizer = self.maps.steps(len(self)), self.networks.tokenizer
        recorded, _, _ = self.record(course, self.networks.embed([prompt]), window.stop)
        spans = [
            *prompt_to_prompt.token_spans(tokenizer, prompt),
            prompt_to_prompt.word_tokens(tokenizer, prompt, phrase),
        ]
        maps = torch.cat([cross_attention.word_map(recorded, [span], self.maps.side, window) for span in spans])[:, 0]
        return maps[:-1], maps[-1]

    def segment(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks of what the problems' words name, before they are softened."""
        positions = [prompt_to_prompt.word_tokens(self.networks.tokenizer, p.edit.source, p.region) for p in problems]
        maps = cross_attention.word_map(recorded, positions, self.maps.side, self.maps.steps(len(self)))
        maps = cross_attention.stretched(maps) if self.maps.stretch else maps
        return loaded(self.segmenter)(images, maps, [p.region for p in problems], [p.picture for p in problems])

    def masks(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """Where each problem's words are: the mask that it brings, or the segmenter's; 0 where none is needed."""

        def segment(
            some: Float[Tensor, "r 3 h w"], asked: Sequence[Problem], rows: Sequence[int]
        ) -> Float[Tensor, "r 1 h w"]:
            return self.segment(some, {layer: maps[list(rows)] for layer, maps in recorded.items()}, asked)

        return masks_of(images, problems, segment)

    @torch.no_grad()
    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        """Invert the pictures or draw them, find the free region, exchange the words (DiG-IN, Algorithm 2, before the
        loop)."""
        edits = [p.edit for p in problems]
        schedules = {**self.schedules, **schedules}
        source_text, target_text = (
            self.networks.embed([getattr(e, side) for e in edits]) for side in ("source", "target")
        )
        drawn = self.sampler.draw(self.networks, [p.seed for p in problems], self.latent_side)
        course = self.courses(problems, drawn)
        kept = math.ceil(max(schedules["inject"]) * len(self))
        if found is None:
            recorded, found = self.find(problems, course, source_text, kept)
        else:
            recorded = self.record(course, source_text, kept, steps=kept)[0] if kept else {}
        masks, keeps = found["masks"], [p.keep for p in problems]
        region = {kind: free(soften(masks), masks, keeps) for kind, soften in self.softening.items()}
        latent_mask = F.interpolate(region["latents"], size=drawn["latent"].shape[-2:], mode="area")
        if again := [i for i, problem in enumerate(problems) if problem.redrawn]:
            # Square roots of the shares, so that a mixture of two noises is as long as either.
            new, old = latent_mask[again].sqrt(), (1 - latent_mask[again]).sqrt()
            course["latent"][again] = new * drawn["latent"][again] + old * course["latent"][again]
            course["noise"][again] = new[:, None] * drawn["noise"][again] + old[:, None] * course["noise"][again]
        matrices = torch.stack([
            prompt_to_prompt.alignment(
                self.networks.tokenizer, e.source, e.target, e.source_words, e.target_words, old, new
            )
            if e.source != e.target else torch.eye(len(old))
            for e, old, new in zip(edits, source_text, target_text, strict=True)
        ]).to(self.device)  # fmt: skip
        # Step by step: how a product is rounded may depend on how many are made at once.
        injected = {
            layer: torch.stack([torch.einsum("bhqk,bkl->bhql", m[:, i], matrices.to(m)) for i in range(kept)], dim=1)
            for layer, m in recorded.items() if kept
        }  # fmt: skip
        base = Anchor(
            base=self.base(target_text, course), noise=course["noise"], norm=course["latent"].flatten(1).norm(dim=1),
            mask=region["pixels"], latent_mask=latent_mask,
            original=found["images"], encoded=found["encoded"], templates=found["templates"], maps=injected,
            inject=torch.zeros(len(problems), device=self.device), blend=torch.zeros(len(problems), device=self.device),
        )  # fmt: skip
        anchors = [
            replace(base, inject=torch.full_like(base.inject, share), blend=torch.full_like(base.blend, held))
            for share, held in product(schedules["inject"], schedules["blend"])
        ]
        offsets = {name: torch.zeros_like(values) for name, values in base.base.items()}
        start, notes = {"latent": course["latent"], **offsets}, described(masks, problems)
        return Start(start, anchors, notes, compared=partial(compare, self, anchors), found=found)

    def courses(self, problems: Sequence[Problem], drawn: Course) -> Course:
        """The courses of pictures: those that lead back to them where they are given, else as they are drawn."""
        course = {name: values.clone() for name, values in drawn.items()}
        if given := [i for i, problem in enumerate(problems) if problem.load is not None]:
            asked = [problems[i] for i in given]
            found = self.invert(_given(asked).to(self.device), [p.edit.source for p in asked], [p.seed for p in asked])
            for name, values in found.items():
                course[name][given] = values
        return course

    def find(
        self, problems: Sequence[Problem], course: Course, text: Float[Tensor, "b l d"], kept: int
    ) -> tuple[dict[str, Tensor], Found]:
        """One pass with the original prompts -> XA maps of at least the `kept` first steps, see `record`; and the
        pictures (`images`, `encoded`), the latents before each step (`templates`) and where the words are (`masks`)."""
        mapped = self.maps.steps(len(self)).stop if any(map(needs_mask, problems)) else 0
        recorded, templates, encoded = self.record(course, text, max(mapped, kept))
        images = self.networks.decode(encoded)
        if given := [i for i, problem in enumerate(problems) if problem.load is not None]:
            images[given] = pictures = _given([problems[i] for i in given]).to(self.device)
            encoded[given] = self.networks.encode(pictures)
        masks = self.masks(images, recorded, problems)
        found = {"images": images, "encoded": encoded, "templates": templates, "masks": masks}
        # As they come back from a checkpoint: sums would otherwise run in another order after a resume.
        return recorded, {name: values.contiguous() for name, values in found.items()}


def _given(problems: Sequence[Problem]) -> Float[Tensor, "b 3 h w"]:
    """The pictures of problems that all bring one."""
    return torch.stack([problem.load() for problem in problems if problem.load is not None])


def load(
    path: str, unet: str | None, lora: str | None, revision: str | None, variant: str | None, dtype: Dtype, device: str,
    needs: str, compile: bool, channels_last: bool, clamp_gradient: bool,
    sampler: Callable[[Networks, int, float, NullText | None, Sequence[float]], Sampler], steps: ChainSteps,
    guidance: Guidance, null_text: NullText | None, guided: Annotated[Sequence[Fraction], Len(2, 2)],
    **settings: object,
) -> LatentDiffusion:  # fmt: skip
    """A pipeline's networks (see `models.generator.pipeline.networks.load`) with a sampler of `steps` steps at a
    guidance scale.

    compile: whether UNet and decoder are compiled when they are first called; channels_last, clamp_gradient: see
    `Networks`; guided: see `models.generator.samplers.ddim`; settings: the further arguments of `LatentDiffusion`.
    """
    loaded = load_networks(path, unet, lora, revision, variant, dtype, device, needs)
    loaded.clamp_gradient = clamp_gradient
    if channels_last:
        loaded.channels_last()
    if compile:
        loaded.compile()
    return LatentDiffusion(loaded, sampler(loaded, steps, guidance, null_text, guided), **settings)  # type: ignore[arg-type]
