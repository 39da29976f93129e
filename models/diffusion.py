"""A latent diffusion model as a differentiable function of its start latent and embeddings (DiG-IN, Section 3,
Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models import attention, tokens, words
from models.networks import Networks
from models.networks import load as load_networks
from models.region import described, free
from models.sampler import Course, NullText, Sampler
from models.segment import Softening
from models.single_picture import SinglePicture
from models.tensor_cache import TensorCache
from runner.protocols import Segmenter
from runner.types import Anchor, Controls, Problem, Scene, Schedules, Start, UserError

RECOMPUTE = ("none", "step", "block", "auto")
AT_ONCE = 8  # pictures of one call of the UNet beyond which more are no faster


# Which latents a noise is predicted for, by position, and which of its samples are given maps.
Asked = tuple[int, tuple[bool, ...]]


@dataclass(frozen=True)
class MapWindow:
    """Which XA maps make the mask: their side in latent pixels, and the part of the chain as shares in [0, 1].

    stretch: whether a map's minimum becomes 0. Where captions say little but the class, its words are attended to from
    everywhere, and only the differences show the object.
    """

    side: int
    first: float
    last: float
    stretch: bool

    def steps(self, total: int) -> slice:
        """The sampler steps of the window: at least one."""
        begin = min(math.floor(self.first * total), total - 1)
        return slice(begin, max(math.ceil(self.last * total), begin + 1))


class LatentDiffusion(SinglePicture):
    """A frozen latent diffusion model and its sampler; calling it renders controls, `begin` inverts pictures."""

    def __init__(
        self, networks: Networks, sampler: Sampler, resolution: int, last: int, recompute: str, backward: int | None,
        maps: MapWindow, softening: dict[str, Softening], schedules: Schedules, segmenter: Segmenter,
        cache: TensorCache, lr_scale: dict[str, float],
    ) -> None:  # fmt: skip
        if recompute not in RECOMPUTE:
            raise UserError(f"generator.recompute={recompute}: allowed are {', '.join(RECOMPUTE)}")
        if resolution % networks.shrink:
            raise UserError(f"generator.resolution={resolution}: allowed are multiples of {networks.shrink}")
        if backward is not None and not 1 <= backward <= len(sampler.schedule):
            raise UserError(f"generator.backward={backward}: allowed are 1 … {len(sampler.schedule)}, or null for all")
        self.networks, self.sampler, self.device = networks, sampler, networks.device
        self.latent_side, self.resolution, self.digest = resolution // networks.shrink, resolution, networks.digest
        self.recipe = repr((networks.digest, resolution, sampler.setting))
        self.last, self.backward = last, backward
        self.recompute_as(recompute)
        self.maps, self.softening, self.schedules = maps, softening, schedules
        self.segmenter, self.cache, self.lr_scale = segmenter, cache, lr_scale

    def __len__(self) -> int:
        """T, the sampler's steps."""
        return len(self.sampler.schedule)

    def recompute_as(self, mode: str) -> None:
        """Choose what the backward pass computes again, one of `RECOMPUTE`; the gradient is the same. `auto` is `step`
        until memory is looked at (`runner.memory`)."""
        self.recompute = mode
        if mode == "block":
            self.networks.unet.enable_gradient_checkpointing()
        else:
            self.networks.unet.disable_gradient_checkpointing()

    # --- the chain --------------------------------------------------------------------------------------------

    def predict(
        self, z: Tensor, embeddings: Mapping[str, Tensor], i: int, anchor: Anchor | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """The noise prediction of step i, with the anchor's injected maps; embeddings "b l d" by name."""
        maps = None
        if record is not None:
            maps = attention.MapControl(record=record, rows=len(z))
        elif anchor is not None:
            maps = self.injection([anchor], i)
        return self.sampler.predict(self.networks, z, embeddings, i, maps)

    def injection(self, anchors: Sequence[Anchor], i: int) -> attention.MapControl | None:
        """The maps that the samples of anchors, one anchor's behind the other's, are given in step i; None for none."""
        active = _joined([anchor.inject for anchor in anchors]) > i / len(self)
        if not bool(active.any()):
            return None
        layers = [layer for layer, maps in anchors[0].maps.items() if i < maps.shape[1]]
        return attention.MapControl(
            {layer: _joined([a.maps[layer][:, i] for a in anchors]) for layer in layers}, active
        )

    def advance(
        self, z: Tensor, eps: Tensor, noise: Tensor, i: int, anchor: Anchor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Step i with a predicted noise -> (next latent, x0-prediction), with the anchor's blending."""
        z, x0 = self.sampler.advance(z, eps, noise, i)
        if anchor is not None and bool((held := anchor.blend > i / len(self)).any()):
            free = torch.where(held[:, None, None, None], anchor.latent_mask, torch.ones_like(anchor.latent_mask))
            z = free * z + (1 - free) * anchor.templates[:, i]
        return z, x0

    def step(
        self, z: Tensor, embeddings: Mapping[str, Tensor], noise: Tensor, i: int, anchor: Anchor | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sampler step i -> (next latent, x0-prediction)."""
        return self.advance(z, self.predict(z, embeddings, i, anchor, record), noise, i, anchor)

    def chain(
        self, latent: Float[Tensor, "b c y x"], embeddings: Mapping[str, Tensor], noise: Float[Tensor, "b t c y x"],
        anchor: Anchor | None = None,
    ) -> list[Float[Tensor, "b c y x"]]:  # fmt: skip
        """The x0-predictions of all steps; embeddings "b t l d" by name. Gradients pass the last `backward` steps."""
        z, predictions, graph = latent, [], torch.is_grad_enabled()
        for i in range(len(self)):
            now = {name: values[:, i] for name, values in embeddings.items()}
            with torch.set_grad_enabled(graph and i >= len(self) - (self.backward or len(self))):
                if self.recompute in ("step", "auto") and torch.is_grad_enabled():
                    z, x0 = checkpoint(self.step, z, now, noise[:, i], i, anchor, use_reentrant=False)
                else:
                    z, x0 = self.step(z, now, noise[:, i], i, anchor)
            predictions.append(x0)
        return predictions

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes of the last `last` x0-predictions; the last one is the picture that counts."""
        embeddings = {name: base + controls[name] for name, base in anchor.base.items()}
        latents = self.chain(controls["latent"], embeddings, anchor.noise, anchor)[-self.last :]
        images = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        return [Scene(image, z, image.unsqueeze(1)) for image, z in zip(images, latents, strict=True)]

    @torch.no_grad()
    def compare(self, anchors: Sequence[Anchor], controls: Controls) -> list[Scene]:
        """What the same controls show under anchors that differ in their schedules alone.

        Steps in which some of them agree are computed once, the others' as many together as `AT_ONCE` pictures are.
        """
        embeddings = {name: base + controls[name] for name, base in anchors[0].base.items()}
        steps = torch.arange(len(self)) / len(self)
        plans = [[(a[:, None].cpu() > steps).T.tolist() for a in (anchor.inject, anchor.blend)] for anchor in anchors]
        # Of the latents that differ so far, which one each anchor's chain is at.
        latents, at, ends = [controls["latent"]], [0] * len(anchors), [controls["latent"]]
        for i, noise in enumerate(anchors[0].noise.unbind(1)):
            asked = [(j, tuple(inject[i])) for j, (inject, _) in zip(at, plans, strict=True)]
            now = {name: values[:, i] for name, values in embeddings.items()}
            eps = self._predictions(latents, now, i, dict(zip(asked, anchors, strict=True)))
            moved: dict[object, tuple[Tensor, Tensor]] = {}
            branches = [(own, tuple(blend[i])) for own, (_, blend) in zip(asked, plans, strict=True)]
            for own, branch, anchor in zip(asked, branches, anchors, strict=True):
                if branch not in moved:
                    moved[branch] = self.advance(latents[own[0]], eps[own], noise, i, anchor)
            at = [list(moved).index(branch) for branch in branches]
            latents, ends = map(list, zip(*moved.values(), strict=True))
        images = [self.networks.decode(z) for z in ends]
        return [Scene(images[j], ends[j], images[j].unsqueeze(1)) for j in at]

    def _predictions(
        self, latents: Sequence[Tensor], embeddings: Mapping[str, Tensor], i: int, asked: Mapping[Asked, Anchor]
    ) -> dict[Asked, Tensor]:
        """The noise predictions of step i for latents by their positions, each with the maps of an anchor."""
        keys, found = list(asked), dict[Asked, Tensor]()
        together = max(1, AT_ONCE // len(latents[0]))
        for part in (keys[first : first + together] for first in range(0, len(keys), together)):
            z = torch.cat([latents[position] for position, _ in part])
            repeated = {name: values.repeat(len(part), 1, 1) for name, values in embeddings.items()}
            maps = self.injection([asked[key] for key in part], i)
            eps = self.sampler.predict(self.networks, z, repeated, i, maps)
            found |= dict(zip(part, eps.chunk(len(part)), strict=True))
        return found

    # --- pictures of prompts -----------------------------------------------------------------------------------

    def base(self, text: Float[Tensor, "b l d"], course: Course) -> dict[str, Float[Tensor, "b t l d"]]:
        """The embeddings of every step by name: the text, and what the course brings."""
        given = {"text": text[:, None].expand(-1, len(self), -1, -1), **course}
        return {name: given[name] for name in self.sampler.embeddings}

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, without any edit; each start latent is drawn from its own seed."""
        course = self.sampler.draw(self.networks, seeds, self.latent_side)
        embeddings = self.base(self.networks.embed(prompts), course)
        return self.networks.decode(self.chain(course["latent"], embeddings, course["noise"])[-1])

    # --- from questions to a start -----------------------------------------------------------------------------

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""
        tokenizer = self.networks.tokenizer
        if any(p.image is not None for p in problems):
            self.sampler.check_inversion()
        if self.maps.side not in (sides := self.networks.map_sides(self.latent_side)):
            raise UserError(f"generator.maps.side={self.maps.side}: allowed are {', '.join(map(str, sides))}")
        for problem in problems:
            edit = problem.edit
            for prompt in (edit.source, edit.target):
                if tokens.MARK.search(prompt):
                    raise UserError(f"prompt '{prompt}': only controls=soft_prompt and hard_prompt have free tokens")
                words.token_spans(tokenizer, prompt)
            if needs_mask(problem):
                words.word_tokens(tokenizer, edit.source, problem.region)
            if edit.source != edit.target:
                words.word_tokens(tokenizer, edit.source, edit.source_words)
                words.word_tokens(tokenizer, edit.target, edit.target_words)

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
        self, course: Course, text: Float[Tensor, "b l d"], needed: int
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b t c y x"], Float[Tensor, "b c y x"]]:
        """One pass with the original prompt -> XA maps per layer (b, needed, heads, q, l) of the `needed` first steps,
        latents after each step, and the last x0-prediction."""
        z, steps, templates = course["latent"], [], []
        x0, embeddings = z, self.base(text, course)
        for i in range(len(self)):
            maps: dict[str, Tensor] = {}
            now = {name: values[:, i] for name, values in embeddings.items()}
            z, x0 = self.step(z, now, course["noise"][:, i], i, record=maps if i < needed else None)
            if maps:
                steps.append(maps)
            templates.append(z)
        stacked = {layer: torch.stack([m[layer] for m in steps], dim=1) for layer in steps[0]} if steps else {}
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
        spans = [*words.token_spans(tokenizer, prompt), words.word_tokens(tokenizer, prompt, phrase)]
        maps = torch.cat([attention.word_map(recorded, [span], self.maps.side, window) for span in spans])[:, 0]
        return maps[:-1], maps[-1]

    def segment(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks of what the problems' words name, before they are softened."""
        positions = [words.word_tokens(self.networks.tokenizer, p.edit.source, p.region) for p in problems]
        maps = attention.word_map(recorded, positions, self.maps.side, self.maps.steps(len(self)))
        maps = attention.stretched(maps) if self.maps.stretch else maps
        return self.segmenter(images, maps, [p.region for p in problems], [p.picture for p in problems])

    def masks(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """Where each problem's words are: the mask that it brings, or the segmenter's; 0 where none is needed."""
        masks = torch.zeros_like(images[:, :1])
        if rows := [i for i, problem in enumerate(problems) if needs_mask(problem)]:
            some = {layer: maps[rows] for layer, maps in recorded.items()}
            masks[rows] = self.segment(images[rows], some, [problems[i] for i in rows])
        for mask, problem in zip(masks, problems, strict=True):
            if problem.mask is not None:
                mask.copy_(problem.mask)
        return masks

    @torch.no_grad()
    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start:
        """Invert the pictures or draw them, find the free region, exchange the words (DiG-IN, Algorithm 2, before the
        loop)."""
        edits = [p.edit for p in problems]
        schedules = {**self.schedules, **schedules}
        source_text, target_text = (
            self.networks.embed([getattr(e, side) for e in edits]) for side in ("source", "target")
        )
        seeds, steps = [p.seed for p in problems], len(self)
        drawn = self.sampler.draw(self.networks, seeds, self.latent_side)
        course = {name: values.clone() for name, values in drawn.items()}
        given = [i for i, problem in enumerate(problems) if problem.image is not None]
        pictures = torch.stack([p.image for p in problems if p.image is not None]).to(self.device) if given else None
        if pictures is not None:
            found = self.invert(pictures, [edits[i].source for i in given], [seeds[i] for i in given])
            for name, values in found.items():
                course[name][given] = values
        mapped = self.maps.steps(steps).stop if any(map(needs_mask, problems)) else 0
        kept = math.ceil(max(schedules["inject"]) * steps)
        recorded, templates, encoded = self.record(course, source_text, max(mapped, kept))
        images = self.networks.decode(encoded)
        if pictures is not None:
            images[given], encoded[given] = pictures, self.networks.encode(pictures)
        masks, keeps = self.masks(images, recorded, problems), [p.keep for p in problems]
        region = {kind: free(soften(masks), masks, keeps) for kind, soften in self.softening.items()}
        latent_mask = F.interpolate(region["latents"], size=encoded.shape[-2:], mode="area")
        if again := [i for i, problem in enumerate(problems) if problem.redrawn]:
            # Square roots of the shares, so that a mixture of two noises is as long as either.
            new, old = latent_mask[again].sqrt(), (1 - latent_mask[again]).sqrt()
            course["latent"][again] = new * drawn["latent"][again] + old * course["latent"][again]
            course["noise"][again] = new[:, None] * drawn["noise"][again] + old[:, None] * course["noise"][again]
        matrices = torch.stack([
            words.alignment(self.networks.tokenizer, e.source, e.target, e.source_words, e.target_words, old, new)
            if e.source != e.target else torch.eye(len(old))
            for e, old, new in zip(edits, source_text, target_text, strict=True)
        ]).to(self.device)  # fmt: skip
        injected = {
            layer: torch.einsum("bthqk,bkl->bthql", m[:, :kept], matrices.to(m))
            for layer, m in recorded.items() if kept
        }  # fmt: skip
        base = Anchor(
            base=self.base(target_text, course), noise=course["noise"], norm=course["latent"].flatten(1).norm(dim=1),
            mask=region["pixels"], latent_mask=latent_mask,
            original=images, encoded=encoded, templates=templates, maps=injected,
            inject=torch.zeros(len(problems), device=self.device), blend=torch.zeros(len(problems), device=self.device),
        )  # fmt: skip
        anchors = [
            replace(base, inject=torch.full_like(base.inject, share), blend=torch.full_like(base.blend, held))
            for share, held in product(schedules["inject"], schedules["blend"])
        ]
        offsets = {name: torch.zeros_like(values) for name, values in base.base.items()}
        start, notes = {"latent": course["latent"], **offsets}, described(masks, problems)
        return Start(start, anchors, notes, compared=partial(self.compare, anchors))


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Rows behind each other; those of one tensor are not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def needs_mask(problem: Problem) -> bool:
    """Whether the segmenter has to find where a problem's words are."""
    return problem.keep in ("background", "foreground") and problem.mask is None


def load(
    path: str, unet: str | None, lora: str | None, revision: str | None, variant: str | None, dtype: str, device: str,
    needs: str, compile: bool,
    sampler: Callable[[Networks, int, float, NullText | None, Sequence[float]], Sampler], steps: int, guidance: float,
    null_text: NullText | None, guided: Sequence[float], **settings: object,
) -> LatentDiffusion:  # fmt: skip
    """A pipeline's networks (see `models.networks.load`) with a sampler of `steps` steps at a guidance scale.

    compile: whether UNet and decoder are compiled when they are first called; guided: see `models.sampler.ddim`;
    settings: the further arguments of `LatentDiffusion`.
    """
    loaded = load_networks(path, unet, lora, revision, variant, dtype, device, needs)
    if compile:
        loaded.compile()
    return LatentDiffusion(loaded, sampler(loaded, steps, guidance, null_text, guided), **settings)  # type: ignore[arg-type]
