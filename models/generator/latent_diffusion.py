"""A latent diffusion model that is initialized for problems: inversion, editable region, Prompt-to-Prompt (DiG-IN,
Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator import cross_attention, prompt_tuning
from classifier_lens.models.generator.chain import Chain, ChainSettings, DiffusionContext
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
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.value_ranges import (
    ChainSteps,
    Dtype,
    Fraction,
    Guidance,
    LearningRates,
    Pixels,
    PromptToPromptSteps,
)
from classifier_lens.runner.lazy_part import LazyPart, load_if_lazy
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import (
    CaptionEdit,
    Controls,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Reference,
    Scene,
    UserError,
)


@dataclass(frozen=True)
class AttentionMapWindow:
    """Which cross-attention maps make the mask.

    resolution: side of the maps in latent pixels; start, end: part of the chain, as shares in [0, 1];
    min_max_normalize: whether a map's minimum becomes 0. Where captions consist of little but the class name, every
    pixel attends to it, and only the differences show the object."""

    resolution: Pixels
    start: Fraction
    end: Fraction
    min_max_normalize: bool

    def steps(self, total: int) -> slice:
        """The sampler steps of the window among `total` ones: at least one."""
        first = min(math.floor(self.start * total), total - 1)
        return slice(first, max(math.ceil(self.end * total), first + 1))


@dataclass(frozen=True, kw_only=True)
class LatentDiffusionSettings(ChainSettings):
    """attention_maps, segmenter: of the mask; mask_postprocess: of the mask for `latents` and for `pixels`;
    prompt_to_prompt: where a task sets none; cache: of inversions; lr_scale: factor of the learning rate, by control;
    known_classes: see `TextToImage`."""

    attention_maps: AttentionMapWindow
    mask_postprocess: dict[str, MaskPostprocess]
    prompt_to_prompt: PromptToPromptSteps
    segmenter: Segmenter | LazyPart[Segmenter]
    cache: TensorCache
    lr_scale: LearningRates
    known_classes: Sequence[str] | None = None


class LatentDiffusion(Chain):
    """A latent diffusion model that edits images: `initialize` inverts them, finds the editable region and replaces
    words of their captions."""

    def __init__(self, networks: Networks, sampler: Sampler, settings: LatentDiffusionSettings) -> None:
        super().__init__(networks, sampler, settings)
        self.attention_maps, self.mask_postprocess = settings.attention_maps, settings.mask_postprocess
        self.prompt_to_prompt = PromptToPrompt(**settings.prompt_to_prompt)
        self.segmenter, self.cache = settings.segmenter, settings.cache
        self.lr_scale, self.known_classes = settings.lr_scale, settings.known_classes

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a problem needs it. Raise UserError for problems that cannot be initialized."""
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
        """The sampler's inputs that reproduce images, see `Sampler.invert`; cached per image.

        A batch is computed whole unless the cache has all its images, so that its numbers do not depend on what earlier
        runs have left in the cache.
        """
        settings = [self.digest, self.sampler.fingerprint, len(images), torch.get_num_threads()]
        keys = [
            self.cache.key(image, prompt, self.sampler.inversion_fingerprint(seed), *settings)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True)
        ]
        if (inverted := self.cache.load(keys)) is None:
            with torch.no_grad():
                latents = self.networks.encode(images)
            inverted = self.sampler.invert(self.networks, latents, prompts, seeds)
            self.cache.save(keys, **inverted)
        sampled = self.sampler.sample_inputs(self.networks, seeds, self.latent_size)
        return sampled | {name: values.to(self.device) for name, values in inverted.items()}

    @torch.no_grad()
    def record_attention(
        self, inputs: SamplerInputs, text: Float[Tensor, "b l d"], recorded_steps: int, steps: int | None = None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b t c y x"], Float[Tensor, "b c y x"]]:
        """The first `steps` sampler steps with the original prompt, None for all -> cross-attention maps by layer
        (b, recorded_steps, heads, q, l), latents before each step, and the last x0-prediction.

        recorded_steps: how many of the first steps' maps are returned.
        """
        z, maps_by_step, trajectory = inputs["latent"], [], []
        x0, embeddings = z, self.step_embeddings(text, inputs)
        for i in range(len(self) if steps is None else steps):
            maps: dict[str, Tensor] = {}
            now = {name: values[:, i] for name, values in embeddings.items()}
            trajectory.append(z)
            z, x0 = self.step(z, now, inputs["noise"][:, i], i, recorded_maps=maps if i < recorded_steps else None)
            if maps:
                maps_by_step.append(maps)
        layers = maps_by_step[0] if maps_by_step else {}
        recorded = {layer: torch.stack([maps[layer] for maps in maps_by_step], dim=1) for layer in layers}
        return recorded, torch.stack(trajectory, dim=1), x0

    @torch.no_grad()
    def word_attention_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """The attention map of each word of an image's prompt, and of a phrase in it, during the reconstruction of the
        inverted image.

        Averages over heads, layers and the steps of `attention_maps`, each divided by its maximum; the phrase's map is
        the one that its mask is made from. The image is a batch by itself, so that the maps do not depend on other
        images; if `initialize` had it alone as well, the inversion comes from the cache."""
        inputs = self.invert(image[None].to(self.device), [prompt], [seed])
        window, tokenizer = self.attention_maps.steps(len(self)), self.networks.tokenizer
        recorded, _, _ = self.record_attention(inputs, self.networks.embed([prompt]), window.stop)
        positions = [*token_spans(tokenizer, prompt), word_token_positions(tokenizer, prompt, phrase)]
        side = self.attention_maps.resolution
        maps = torch.cat([cross_attention.word_attention_map(recorded, [p], side, window) for p in positions])[:, 0]
        return maps[:-1], maps[-1]

    def segment(
        self, images: Float[Tensor, "b 3 h w"], recorded: Mapping[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks of the problems' words, before postprocessing."""
        positions = [word_token_positions(self.networks.tokenizer, p.edit.source, p.words_to_segment) for p in problems]
        maps = cross_attention.word_attention_map(
            recorded, positions, self.attention_maps.resolution, self.attention_maps.steps(len(self))
        )
        maps = cross_attention.min_max_normalize(maps) if self.attention_maps.min_max_normalize else maps
        return load_if_lazy(self.segmenter)(
            images, maps, [p.words_to_segment for p in problems], [p.image_name for p in problems]
        )

    def object_masks(
        self, images: Float[Tensor, "b 3 h w"], recorded: Mapping[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The masks of the problems' words: a problem's own, else the segmenter's; 0 where no mask is needed."""

        def segment(
            images: Float[Tensor, "r 3 h w"], problems: Sequence[Problem], rows: Sequence[int]
        ) -> Float[Tensor, "r 1 h w"]:
            return self.segment(images, {layer: maps[list(rows)] for layer, maps in recorded.items()}, problems)

        return object_masks(images, problems, segment)

    @torch.no_grad()
    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[DiffusionContext]:
        """Invert or generate the images, find the editable region, replace the words (DiG-IN, Algorithm 2, before the
        loop)."""
        edits = [p.edit for p in problems]
        source_text, target_text = (
            self.networks.embed([getattr(e, side) for e in edits]) for side in ("source", "target")
        )
        sampled = self.sampler.sample_inputs(self.networks, [p.seed for p in problems], self.latent_size)
        inputs = self.sampler_inputs(problems, sampled)
        injected_steps = math.ceil(prompt_to_prompt.max_cross_replace_steps * len(self))
        if precomputed is None:
            recorded, precomputed = self.record_originals(problems, inputs, source_text, injected_steps)
        else:
            recorded = self._record_first_maps(inputs, source_text, injected_steps)
        masks, preserve = _channels_last(precomputed["masks"]), [p.preserve for p in problems]
        region = {
            kind: editable_region(postprocess(masks), masks, preserve)
            for kind, postprocess in self.mask_postprocess.items()
        }
        latent_mask = F.interpolate(region["latents"], size=sampled["latent"].shape[-2:], mode="area")
        if rows := [i for i, problem in enumerate(problems) if problem.editable_from_noise]:
            # Square roots of the shares, so that the mixture of two noises has the standard deviation of either.
            new, old = latent_mask[rows].sqrt(), (1 - latent_mask[rows]).sqrt()
            inputs["latent"][rows] = new * sampled["latent"][rows] + old * inputs["latent"][rows]
            inputs["noise"][rows] = new[:, None] * sampled["noise"][rows] + old[:, None] * inputs["noise"][rows]
        candidates = prompt_to_prompt.candidates
        context = DiffusionContext(
            embeddings=self.step_embeddings(target_text, inputs),
            variance_noise=inputs["noise"],
            latent_mask=latent_mask,
            original_trajectory=precomputed["trajectory"],
            attention_maps=self._aligned_maps(
                recorded, injected_steps, self._alignment_matrices(edits, source_text, target_text)
            ),
            cross_replace_steps=torch.full((len(problems),), candidates[0].cross_replace_steps, device=self.device),
            background_blend_steps=torch.full(
                (len(problems),), candidates[0].background_blend_steps, device=self.device
            ),
        )
        offsets = {name: torch.zeros_like(values) for name, values in context.embeddings.items()}
        controls = {"latent": inputs["latent"], **offsets}
        reference = Reference(precomputed["images"], precomputed["latents"], region["pixels"], latent_mask)
        return Initialization(controls, context, reference, candidates, mask_warnings(masks, problems), precomputed)

    def select(
        self, initialization: Initialization[DiffusionContext], indices: Sequence[int]
    ) -> tuple[Controls, DiffusionContext]:
        """The controls, which all candidates share, and the context with the shares of each sample's candidate."""
        chosen, context = [initialization.candidates[j] for j in indices], initialization.context
        return initialization.controls, replace(
            context,
            cross_replace_steps=context.cross_replace_steps.new_tensor([c.cross_replace_steps for c in chosen]),
            background_blend_steps=context.background_blend_steps.new_tensor(
                [c.background_blend_steps for c in chosen]
            ),
        )

    def render_candidates(self, initialization: Initialization[DiffusionContext]) -> list[Scene]:
        count = len(initialization.warnings)
        contexts = [self.select(initialization, [j] * count)[1] for j in range(len(initialization.candidates))]
        return compare_schedules(self, contexts, initialization.controls)

    @staticmethod
    def _aligned_maps(
        recorded: Mapping[str, Tensor], steps: int, matrices: Float[Tensor, "b l l"]
    ) -> dict[str, Float[Tensor, "b t h q l"]]:
        """The recorded maps of the first steps, aligned with the tokens of the target prompts."""
        # Step by step: rounding may depend on how many products are computed at once.
        return {
            layer: torch.stack([torch.einsum("bhqk,bkl->bhql", m[:, i], matrices.to(m)) for i in range(steps)], dim=1)
            for layer, m in recorded.items() if steps
        }  # fmt: skip

    def _alignment_matrices(
        self, edits: Sequence[CaptionEdit], source_text: Float[Tensor, "b l d"], target_text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b l l"]:
        """The matrices that move the attention maps of the source prompts to the tokens of the target prompts."""
        matrices = [
            map_alignment_matrix(
                self.networks.tokenizer, e.source, e.target, e.source_words, e.target_words, old, new
            )
            if e.source != e.target else torch.eye(len(old))
            for e, old, new in zip(edits, source_text, target_text, strict=True)
        ]  # fmt: skip
        return torch.stack(matrices).to(self.device)

    def sampler_inputs(self, problems: Sequence[Problem], sampled: SamplerInputs) -> SamplerInputs:
        """The sampler's inputs of the original images: those of the inversion for given images, the sampled ones for
        images that are generated."""
        inputs = {name: values.clone() for name, values in sampled.items()}
        if rows := [i for i, problem in enumerate(problems) if problem.load is not None]:
            with_image = [problems[i] for i in rows]
            images, prompts = _load_images(with_image).to(self.device), [p.edit.source for p in with_image]
            for name, values in self.invert(images, prompts, [p.seed for p in with_image]).items():
                inputs[name][rows] = values
        return inputs

    def record_originals(
        self, problems: Sequence[Problem], inputs: SamplerInputs, text: Float[Tensor, "b l d"], injected_steps: int
    ) -> tuple[dict[str, Tensor], Precomputed]:
        """One pass with the original prompts -> cross-attention maps of at least the first `injected_steps` steps, see
        `record_attention`; and the original `images`, their `latents`, the `trajectory` of latents before each step and
        the `masks` of the words."""
        mask_steps = self.attention_maps.steps(len(self)).stop if any(map(needs_segmenter, problems)) else 0
        recorded, trajectory, latents = self.record_attention(inputs, text, max(mask_steps, injected_steps))
        images = self.networks.decode(latents)
        if rows := [i for i, problem in enumerate(problems) if problem.load is not None]:
            originals = _load_images([problems[i] for i in rows]).to(self.device)
            images[rows], latents[rows] = originals, self.networks.encode(originals)
        masks = self.object_masks(images, recorded, problems)
        precomputed = {"images": images, "latents": latents, "trajectory": trajectory, "masks": masks}
        # Contiguous, as they are after a resume: sums would otherwise run in another order.
        return recorded, {name: values.contiguous() for name, values in precomputed.items()}

    def _record_first_maps(self, inputs: SamplerInputs, text: Float[Tensor, "b l d"], steps: int) -> dict[str, Tensor]:
        """The cross-attention maps of the first steps with the original prompt; none for no steps."""
        return self.record_attention(inputs, text, steps, steps)[0] if steps else {}


def _channels_last(masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The masks in the layout that decoders return. A checkpoint does not keep the stride of the channel dimension, by
    which convolutions choose kernels that round differently."""
    return torch.empty_like(masks, memory_format=torch.channels_last).copy_(masks)


def _load_images(problems: Sequence[Problem]) -> Float[Tensor, "b 3 h w"]:
    """The images of problems that all have one."""
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
    """A pipeline's networks (see `models.generator.pipeline.networks.load_networks`) with a sampler of `steps` steps at
    a guidance scale.

    compile: whether UNet and decoder are compiled at their first call; channels_last, straight_through_clamp: see
    `Networks`; guidance_interval: see `models.generator.samplers.ddim`; settings: see `LatentDiffusionSettings`."""
    networks = load_networks(path, unet, lora, revision, variant, dtype, device, download_hint)
    networks.straight_through_clamp = straight_through_clamp
    if channels_last:
        networks.to_channels_last()
    if compile:
        networks.compile()
    return LatentDiffusion(
        networks,
        sampler(networks, steps, guidance_scale, null_text, guidance_interval),
        LatentDiffusionSettings(**settings),  # type: ignore[arg-type]
    )
