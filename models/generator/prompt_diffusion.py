"""A diffusion model whose prompt is what is optimised, for any start latent (DiffExplainer, Section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.prompt_tuning import (
    GumbelSample,
    PromptTemplate,
    PromptTokens,
    fixed_words,
    parse_prompt,
)
from classifier_lens.models.generator.samplers import SamplerInputs
from classifier_lens.models.seeded_noise import derive_seed
from classifier_lens.runner.configuration.value_ranges import PerProblemCount
from classifier_lens.runner.types import (
    CaptionEdit,
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)

NO_PROMPT_TO_PROMPT: PromptToPrompt = {"cross_replace_steps": [0.0], "background_blend_steps": [0.0]}


def embedding_controls(generator: LatentDiffusion) -> LatentDiffusion:
    """The model as it is: its own start latent and embeddings are optimised."""
    return generator


@dataclass(frozen=True, kw_only=True)
class PromptTuningContext(EditContext):
    """What a batch of prompts needs besides. image_seeds, prompt_templates: per problem; token_ids, token_embeddings:
    the padded prompts' tokens and their embeddings; step_inputs: of m pictures per problem, "b m" flattened;
    gumbel_sample: of the tokens, None for none."""

    image_seeds: tuple[int, ...]
    prompt_templates: tuple[PromptTemplate, ...]
    token_ids: Int[Tensor, "b l"]
    token_embeddings: Float[Tensor, "b l d"]
    step_inputs: SamplerInputs
    gumbel_sample: GumbelSample | None


class PromptDiffusion:
    """Pictures of prompts with free tokens. Every step meets new z, the best iterate is chosen on the same ones each
    time, its loss is measured on as many others, and what is reported is drawn from a fourth set.

    tokens: what stands in the free places; num_initializations: how many random ones are compared, the best of which is
    begun with: equal prompts of equal `init_seed` share them and what they show, which is kept in the generator's
    cache; images_per_step, validation_images, images_per_result: how many z of these kinds."""

    def __init__(
        self,
        generator: LatentDiffusion,
        tokens: PromptTokens,
        num_initializations: PerProblemCount,
        images_per_step: PerProblemCount,
        validation_images: PerProblemCount,
        images_per_result: PerProblemCount,
    ) -> None:
        self.num_initializations = num_initializations
        self.generator, self.tokens, self.networks = generator, tokens, generator.networks
        self.counts = {
            "fresh": images_per_step,
            "validation": validation_images,
            "final": validation_images,
            "report": images_per_result,
        }
        self.saved_controls: tuple[str, ...] = (tokens.control_name,)
        self.images_per_result, self.images_in_graph = images_per_result, images_per_step

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([without_free_tokens(problem) for problem in problems])
        for problem in problems:
            parse_prompt(self.networks.tokenizer, problem.edit.source)

    def initialize(
        self, problems: Sequence[Problem], schedules: PromptToPrompt, found: Precomputed | None = None
    ) -> Initialization:
        """The prompts' tokens; everything is free, no map is injected."""
        start = self.generator.initialize(
            [without_free_tokens(problem) for problem in problems], NO_PROMPT_TO_PROMPT, found
        )
        templates = tuple(parse_prompt(self.networks.tokenizer, p.edit.source) for p in problems)
        seeds = tuple(p.seed for p in problems)
        ids = self.networks.pad_tokens([list(t.token_ids) for t in templates])
        anchor = PromptTuningContext(
            **vars(start.contexts[0]),
            image_seeds=seeds,
            prompt_templates=templates,
            token_ids=ids,
            token_embeddings=self.networks.token_embeddings(ids),
            step_inputs=self.step_inputs(seeds, "validation", 0),
            gumbel_sample=None,
        )
        draws = [p.seed if p.init_seed is None else p.init_seed for p in problems]
        begun = [
            {
                self.tokens.control_name: self.tokens.initialize(
                    self.networks, templates, [derive_seed(d, "start", j) for d in draws]
                )
            }
            for j in range(self.num_initializations)
        ]
        if all(torch.equal(b[self.tokens.control_name], begun[0][self.tokens.control_name]) for b in begun):
            begun = begun[:1]  # nothing is random about them
        scenes = partial(self.candidate_scenes, begun, anchor, draws)
        return Initialization(begun[0], [anchor], start.warnings, begun[1:], scenes, precomputed=start.precomputed)

    def candidate_scenes(
        self, begun: Sequence[Controls], anchor: PromptTuningContext, draws: Sequence[int]
    ) -> Iterator[Scene]:
        """What every start shows. Few pictures for many prompts: of other z than those by which steps are judged, and
        no token is drawn at random."""
        keys = list(zip(anchor.prompt_templates, draws, strict=True))
        distinct = list(dict.fromkeys(keys))
        whose = [distinct.index(key) for key in keys]
        pools = [self._pool([b[self.tokens.control_name][i] for b in begun], anchor, i, draws[i])
                 for i in map(keys.index, distinct)]  # fmt: skip
        for latents in zip(*pools, strict=True):
            z = torch.stack(latents)
            images = self.networks.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            yield Scene(images[whose, 0], z[whose, 0], images[whose])

    def _pool(
        self, begun: Sequence[Tensor], anchor: PromptTuningContext, i: int, draw: int
    ) -> Float[Tensor, "starts m c h w"]:
        """The latents that the i-th prompt's starts lead to, on the `images_per_step` z of their draw; from the cache,
        if there. Always of this prompt alone and as many at once, so that they do not depend on the batch."""
        count = len(anchor.prompt_templates[i].free_positions)
        values, seeds = torch.stack([b[:count] for b in begun]), self.seeds(draw, "fresh", 0)
        text = self.prompt_embeddings(
            {self.tokens.control_name: values}, self._repeated(anchor, i, len(values), anchor.step_inputs), 1
        )
        key = self.generator.cache.key("starts", self.generator.fingerprint, text, seeds)
        if (found := self.generator.cache.load([key])) is None:
            parts = []
            for part in text.split(max(1, self.counts["validation"] // len(seeds))):
                course = self.sample_inputs(seeds * len(part))
                chain = self._chain(part.repeat_interleave(len(seeds), dim=0), course)
                parts.append(chain[-1].unflatten(0, (len(part), len(seeds))))
            found = {"latents": torch.cat(parts)[None]}
            self.generator.cache.save([key], **found)
        return found["latents"][0].to(self.networks.device)

    def seeds(self, seed: int, kind: str, k: int) -> list[int]:
        """The seeds of a problem's pictures of step k, of one of the four kinds."""
        return [derive_seed(seed, kind, k, j) for j in range(self.counts[kind])]

    def sample_inputs(self, seeds: Sequence[int]) -> SamplerInputs:
        return self.generator.sampler.sample_inputs(self.networks, seeds, self.generator.latent_size)

    def step_inputs(self, seeds: Sequence[int], kind: str, k: int) -> SamplerInputs:
        """The courses of a step's pictures, those of one problem next to each other."""
        return self.sample_inputs([own for seed in seeds for own in self.seeds(seed, kind, k)])

    def step_context(self, anchor: EditContext, k: int) -> EditContext:
        """The constants of step k: z and what is random about the tokens, from each problem's seed and the step."""
        assert isinstance(anchor, PromptTuningContext)
        shape = (self.counts["fresh"], max(len(t.free_positions) for t in anchor.prompt_templates))
        random = self.tokens.sample_gumbel(
            self.networks, shape, [derive_seed(seed, "tokens", k) for seed in anchor.image_seeds], k
        )
        return replace(anchor, step_inputs=self.step_inputs(anchor.image_seeds, "fresh", k), gumbel_sample=random)

    def evaluation_context(self, anchor: EditContext) -> EditContext:
        """z that no step was judged on: the best of many losses on the same few z is lower than on others."""
        assert isinstance(anchor, PromptTuningContext)
        return replace(anchor, step_inputs=self.step_inputs(anchor.image_seeds, "final", 0))

    def prompt_embeddings(self, controls: Controls, anchor: PromptTuningContext, m: int) -> Float[Tensor, "bm l d"]:
        """The prompts' embeddings, each m times. Words that nothing is drawn for are tokenised anew, as if a user had
        typed them: the tokens that they were chosen by need not come back."""
        if self.tokens.is_discrete() and anchor.gumbel_sample is None:
            return self.networks.embed(self.decode_prompts(controls, anchor)).repeat_interleave(m, dim=0)
        free = self.tokens.token_embeddings(self.networks, controls[self.tokens.control_name], anchor.gumbel_sample)
        free = free.expand(-1, m, -1, -1)
        rows = []
        for i, template in enumerate(anchor.prompt_templates):
            # Position 0 is the start token.
            places = torch.tensor(template.free_positions, device=free.device) + 1
            row = anchor.token_embeddings[i].expand(m, -1, -1)
            rows.append(row.index_copy(1, places, free[i, :, : len(places)].to(row)))
        return self.networks.encode_token_embeddings(anchor.token_ids.repeat_interleave(m, dim=0), torch.cat(rows))

    def _chain(self, text: Float[Tensor, "n l d"], course: SamplerInputs) -> list[Tensor]:
        """The x0-predictions of embeddings and their courses."""
        return self.generator.denoise(course["latent"], self.generator.step_embeddings(text, course), course["noise"])

    def __call__(self, controls: Controls, anchor: EditContext) -> list[Scene]:
        """Scenes whose views are the m pictures of a prompt; `image` is the first of them."""
        assert isinstance(anchor, PromptTuningContext)
        b = len(anchor.image_seeds)
        text = self.prompt_embeddings(controls, anchor, len(anchor.step_inputs["latent"]) // b)
        latents = self._chain(text, anchor.step_inputs)[-self.generator.last_x0_predictions :]
        decoded = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        folded = [
            (image.unflatten(0, (b, -1)), z.unflatten(0, (b, -1))) for image, z in zip(decoded, latents, strict=True)
        ]
        left = reversed(range(len(folded)))
        return [Scene(image[:, 0], z[:, 0], image, n) for (image, z), n in zip(folded, left, strict=True)]

    @torch.no_grad()
    def images(self, controls: Controls, anchor: EditContext) -> Float[Tensor, "b n 3 h w"]:
        """The `images_per_result` pictures of each prompt."""
        assert isinstance(anchor, PromptTuningContext)
        rows, at_once = [], self.counts["validation"]
        for i, seed in enumerate(anchor.image_seeds):
            seeds = self.seeds(seed, "report", 0)
            parts = [seeds[first : first + at_once] for first in range(0, len(seeds), at_once)]
            rows.append(torch.cat([self._shown(controls, anchor, i, part) for part in parts]))
        return torch.stack(rows)

    def _shown(
        self, controls: Controls, anchor: PromptTuningContext, i: int, seeds: Sequence[int]
    ) -> Float[Tensor, "m 3 h w"]:
        """Pictures of the i-th prompt."""
        own = self._repeated(anchor, i, 1, self.sample_inputs(seeds))
        return self({name: values[i : i + 1] for name, values in controls.items()}, own)[-1].views[0]

    def _repeated(self, anchor: PromptTuningContext, i: int, n: int, course: SamplerInputs) -> PromptTuningContext:
        """The i-th prompt's constants n times, with another course and no token drawn at random."""
        return replace(
            anchor,
            image_seeds=anchor.image_seeds[i : i + 1] * n,
            prompt_templates=anchor.prompt_templates[i : i + 1] * n,
            token_ids=anchor.token_ids[[i] * n],
            token_embeddings=anchor.token_embeddings[[i] * n],
            step_inputs=course,
            gumbel_sample=None,
        )

    def decode_prompts(self, controls: Controls, anchor: EditContext) -> list[str]:
        assert isinstance(anchor, PromptTuningContext)
        return self.tokens.decode(self.networks, controls[self.tokens.control_name], anchor.prompt_templates)


def without_free_tokens(problem: Problem) -> Problem:
    """The problem with the fixed words of its prompt alone."""
    return replace(
        problem, edit=CaptionEdit.unchanged(fixed_words(problem.edit.source), fixed_words(problem.edit.source_words))
    )
