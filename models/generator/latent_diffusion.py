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

from classifier_lens.models.generator import cross_attention, prompt_tuning
from classifier_lens.models.generator.chain import GRADIENT_CHECKPOINTING_MODES, Chain
from classifier_lens.models.generator.editable_region import (
    editable_region,
    mask_warnings,
    needs_segmenter,
    object_masks,
)
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.pipeline.networks import load_networks as load_networks
from classifier_lens.models.generator.prompt_to_prompt import map_alignment_matrix, token_spans, word_token_positions
from classifier_lens.models.generator.samplers import NullTextInversion, Sampler, SamplerInputs
from classifier_lens.models.generator.schedule_comparison import compare_schedules
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.models.segmenter.segmenter import LazySegmenter, load_if_lazy
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.value_ranges import (
    ChainIndex,
    ChainSteps,
    Dtype,
    Fraction,
    Guidance,
    LearningRates,
    OneOf,
    Pixels,
    PromptToPromptSteps,
)
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import (
    CaptionEdit,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    UserError,
)


@dataclass(frozen=True)
class AttentionMapWindow:
    """Which XA maps make the mask: their side in latent pixels, and the part of the chain as shares in [0, 1].

    min_max_normalize: whether a map's minimum becomes 0. Where captions say little but the class, its words are
    attended to from everywhere, and only the differences show the object."""

    resolution: Pixels
    start: Fraction
    end: Fraction
    min_max_normalize: bool

    def steps(self, total: int) -> slice:
        """The sampler steps of the window: at least one."""
        begin = min(math.floor(self.start * total), total - 1)
        return slice(begin, max(math.ceil(self.end * total), begin + 1))


class LatentDiffusion(Chain):
    """A latent diffusion model that is asked about pictures: `initialize` inverts them, finds what is free and
    exchanges words."""

    def __init__(
        self,
        networks: Networks,
        sampler: Sampler,
        resolution: Pixels,
        last_x0_predictions: ChainSteps,
        gradient_checkpointing: Annotated[str, OneOf(GRADIENT_CHECKPOINTING_MODES)],
        backprop_steps: ChainSteps | None,
        background_blend_start: ChainIndex,
        attention_maps: AttentionMapWindow,
        mask_postprocess: dict[str, MaskPostprocess],
        prompt_to_prompt: PromptToPromptSteps,
        segmenter: Segmenter | LazySegmenter,
        cache: TensorCache,
        lr_scale: LearningRates,
        known_classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            networks,
            sampler,
            resolution,
            last_x0_predictions,
            gradient_checkpointing,
            backprop_steps,
            background_blend_start,
        )
        self.attention_maps, self.mask_postprocess, self.prompt_to_prompt = (
            attention_maps,
            mask_postprocess,
            prompt_to_prompt,
        )
        self.segmenter, self.cache, self.lr_scale, self.known_classes = segmenter, cache, lr_scale, known_classes

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a mask has to be found. Raise UserError for what can be seen to fail."""
        tokenizer = self.networks.tokenizer
        if any(map(needs_segmenter, problems)):
            self.segmenter = load_if_lazy(self.segmenter)
        if any(p.load is not None for p in problems):
            self.sampler.check_inversion()
        if self.attention_maps.resolution not in (sides := self.networks.attention_map_sides(self.latent_size)):
            raise UserError(
                f"generator.attention_maps.resolution={self.attention_maps.resolution}: allowed are "
                f"{', '.join(map(str, sides))}"
            )
        for problem in problems:
            edit = problem.edit
            for prompt in (edit.source, edit.target):
                if prompt_tuning.FREE_TOKENS.search(prompt):
                    raise UserError(
                        f"prompt '{prompt}': only parametrization=soft_prompt and hard_prompt have free tokens"
                    )
                token_spans(tokenizer, prompt)
            if needs_segmenter(problem):
                word_token_positions(tokenizer, edit.source, problem.words_to_segment)
            if edit.source != edit.target:
                word_token_positions(tokenizer, edit.source, edit.source_words)
                word_token_positions(tokenizer, edit.target, edit.target_words)

    def invert(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], seeds: Sequence[int]) -> SamplerInputs:
        """The courses that lead back to pictures, see `Sampler.invert`; kept per picture in the cache.

        A batch is computed whole unless the cache has every picture of it: its numbers then never depend on
        what an earlier run left behind.
        """
        setting = [self.digest, self.sampler.fingerprint, len(images), torch.get_num_threads()]
        keys = [
            self.cache.key(image, prompt, self.sampler.inversion_fingerprint(seed), *setting)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True)
        ]
        if (found := self.cache.load(keys)) is None:
            with torch.no_grad():
                encoded = self.networks.encode(images)
            found = self.sampler.invert(self.networks, encoded, prompts, seeds)
            self.cache.save(keys, **found)
        drawn = self.sampler.sample_inputs(self.networks, seeds, self.latent_size)
        return drawn | {name: values.to(self.device) for name, values in found.items()}

    @torch.no_grad()
    def record_attention(
        self, course: SamplerInputs, text: Float[Tensor, "b l d"], needed: int, steps: int | None = None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b t c y x"], Float[Tensor, "b c y x"]]:
        """One pass with the original prompt, of which the first `steps` are made, None for all -> XA maps per layer
        (b, needed, heads, q, l) of the `needed` first steps, latents before each step, and the last x0-prediction."""
        z, recorded, templates = course["latent"], [], []
        x0, embeddings = z, self.step_embeddings(text, course)
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
    def word_attention_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """Where a picture, inverted and rendered again, attends to each word of its prompt, and to a phrase of it.

        Maps of side `maps.side`, averaged over heads, layers and the steps of `attention_maps`, each divided by its
        maximum; the phrase's is the one that a mask of it is made from. The picture is a batch of its own, so that its
        maps do not depend on neighbours: where `begin` had it alone, too, its inversion comes from the cache."""
        course = self.invert(image[None].to(self.device), [prompt], [seed])
        window, tokenizer = self.attention_maps.steps(len(self)), self.networks.tokenizer
        recorded, _, _ = self.record_attention(course, self.networks.embed([prompt]), window.stop)
        spans = [
            *token_spans(tokenizer, prompt),
            word_token_positions(tokenizer, prompt, phrase),
        ]
        maps = torch.cat(
            [
                cross_attention.word_attention_map(recorded, [span], self.attention_maps.resolution, window)
                for span in spans
            ]
        )[:, 0]
        return maps[:-1], maps[-1]

    def segment(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks of what the problems' words name, before they are softened."""
        positions = [word_token_positions(self.networks.tokenizer, p.edit.source, p.words_to_segment) for p in problems]
        maps = cross_attention.word_attention_map(
            recorded, positions, self.attention_maps.resolution, self.attention_maps.steps(len(self))
        )
        maps = cross_attention.min_max_normalize(maps) if self.attention_maps.min_max_normalize else maps
        return load_if_lazy(self.segmenter)(
            images, maps, [p.words_to_segment for p in problems], [p.image_name for p in problems]
        )

    def object_masks(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """Where each problem's words are: the mask that it brings, or the segmenter's; 0 where none is needed."""

        def segment(
            some: Float[Tensor, "r 3 h w"], asked: Sequence[Problem], rows: Sequence[int]
        ) -> Float[Tensor, "r 1 h w"]:
            return self.segment(some, {layer: maps[list(rows)] for layer, maps in recorded.items()}, asked)

        return object_masks(images, problems, segment)

    @torch.no_grad()
    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, found: Precomputed | None = None
    ) -> Initialization:
        """Invert the pictures or draw them, find the free region, exchange the words (DiG-IN, Algorithm 2, before the
        loop)."""
        edits = [p.edit for p in problems]
        prompt_to_prompt = {**self.prompt_to_prompt, **prompt_to_prompt}
        source_text, target_text = (
            self.networks.embed([getattr(e, side) for e in edits]) for side in ("source", "target")
        )
        drawn = self.sampler.sample_inputs(self.networks, [p.seed for p in problems], self.latent_size)
        course = self.sampler_inputs(problems, drawn)
        kept = math.ceil(max(prompt_to_prompt["cross_replace_steps"]) * len(self))
        if found is None:
            recorded, found = self.record_originals(problems, course, source_text, kept)
        else:
            recorded = self.record_attention(course, source_text, kept, steps=kept)[0] if kept else {}
        masks, keeps = found["masks"], [p.preserve for p in problems]
        region = {kind: editable_region(soften(masks), masks, keeps) for kind, soften in self.mask_postprocess.items()}
        latent_mask = F.interpolate(region["latents"], size=drawn["latent"].shape[-2:], mode="area")
        if again := [i for i, problem in enumerate(problems) if problem.editable_from_noise]:
            # Square roots of the shares, so that a mixture of two noises is as long as either.
            new, old = latent_mask[again].sqrt(), (1 - latent_mask[again]).sqrt()
            course["latent"][again] = new * drawn["latent"][again] + old * course["latent"][again]
            course["noise"][again] = new[:, None] * drawn["noise"][again] + old[:, None] * course["noise"][again]
        matrices = self._alignment_matrices(edits, source_text, target_text)
        # Step by step: how a product is rounded may depend on how many are made at once.
        injected = {
            layer: torch.stack([torch.einsum("bhqk,bkl->bhql", m[:, i], matrices.to(m)) for i in range(kept)], dim=1)
            for layer, m in recorded.items() if kept
        }  # fmt: skip
        base = EditContext(
            embeddings=self.step_embeddings(target_text, course),
            variance_noise=course["noise"],
            latent_norm=course["latent"].flatten(1).norm(dim=1),
            mask=region["pixels"],
            latent_mask=latent_mask,
            original=found["images"],
            original_latent=found["encoded"],
            original_trajectory=found["templates"],
            attention_maps=injected,
            cross_replace_steps=torch.zeros(len(problems), device=self.device),
            background_blend_steps=torch.zeros(len(problems), device=self.device),
        )
        anchors = [
            replace(
                base,
                cross_replace_steps=torch.full_like(base.cross_replace_steps, share),
                background_blend_steps=torch.full_like(base.background_blend_steps, held),
            )
            for share, held in product(
                prompt_to_prompt["cross_replace_steps"], prompt_to_prompt["background_blend_steps"]
            )
        ]
        offsets = {name: torch.zeros_like(values) for name, values in base.embeddings.items()}
        start, notes = {"latent": course["latent"], **offsets}, mask_warnings(masks, problems)
        return Initialization(
            start, anchors, notes, context_scenes=partial(compare_schedules, self, anchors), precomputed=found
        )

    def _alignment_matrices(
        self, edits: Sequence[CaptionEdit], source_text: Float[Tensor, "b l d"], target_text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b l l"]:
        """How the attention maps of each source prompt move to the tokens of its target prompt."""
        matrices = [
            map_alignment_matrix(
                self.networks.tokenizer, e.source, e.target, e.source_words, e.target_words, old, new
            )
            if e.source != e.target else torch.eye(len(old))
            for e, old, new in zip(edits, source_text, target_text, strict=True)
        ]  # fmt: skip
        return torch.stack(matrices).to(self.device)

    def sampler_inputs(self, problems: Sequence[Problem], drawn: SamplerInputs) -> SamplerInputs:
        """The courses of pictures: those that lead back to them where they are given, else as they are drawn."""
        course = {name: values.clone() for name, values in drawn.items()}
        if given := [i for i, problem in enumerate(problems) if problem.load is not None]:
            asked = [problems[i] for i in given]
            found = self.invert(_given(asked).to(self.device), [p.edit.source for p in asked], [p.seed for p in asked])
            for name, values in found.items():
                course[name][given] = values
        return course

    def record_originals(
        self, problems: Sequence[Problem], course: SamplerInputs, text: Float[Tensor, "b l d"], kept: int
    ) -> tuple[dict[str, Tensor], Precomputed]:
        """One pass with the original prompts -> XA maps of at least the `kept` first steps, see `record`; and the
        pictures (`images`, `encoded`), the latents before each step (`templates`) and where the words are (`masks`)."""
        mapped = self.attention_maps.steps(len(self)).stop if any(map(needs_segmenter, problems)) else 0
        recorded, templates, encoded = self.record_attention(course, text, max(mapped, kept))
        images = self.networks.decode(encoded)
        if given := [i for i, problem in enumerate(problems) if problem.load is not None]:
            images[given] = pictures = _given([problems[i] for i in given]).to(self.device)
            encoded[given] = self.networks.encode(pictures)
        masks = self.object_masks(images, recorded, problems)
        found = {"images": images, "encoded": encoded, "templates": templates, "masks": masks}
        # As they come back from a checkpoint: sums would otherwise run in another order after a resume.
        return recorded, {name: values.contiguous() for name, values in found.items()}


def _given(problems: Sequence[Problem]) -> Float[Tensor, "b 3 h w"]:
    """The pictures of problems that all bring one."""
    return torch.stack([problem.load() for problem in problems if problem.load is not None])


def load(
    path: str,
    unet: str | None,
    lora: str | None,
    revision: str | None,
    variant: str | None,
    dtype: Dtype,
    device: str,
    download_hint: str,
    compile: bool,
    channels_last: bool,
    straight_through_clamp: bool,
    sampler: Callable[[Networks, int, float, NullTextInversion | None, Sequence[float]], Sampler],
    steps: ChainSteps,
    guidance_scale: Guidance,
    null_text: NullTextInversion | None,
    guidance_interval: Annotated[Sequence[Fraction], Len(2, 2)],
    **settings: object,
) -> LatentDiffusion:
    """A pipeline's networks (see `models.generator.pipeline.networks.load`) with a sampler of `steps` steps at a
    guidance scale.

    compile: whether UNet and decoder are compiled when they are first called; channels_last, straight_through_clamp:
    see `Networks`; guidance_interval: see `models.generator.samplers.ddim`; settings: the further arguments of
    `LatentDiffusion`."""
    loaded = load_networks(path, unet, lora, revision, variant, dtype, device, download_hint)
    loaded.straight_through_clamp = straight_through_clamp
    if channels_last:
        loaded.to_channels_last()
    if compile:
        loaded.compile()
    return LatentDiffusion(loaded, sampler(loaded, steps, guidance_scale, null_text, guidance_interval), **settings)  # type: ignore[arg-type]
