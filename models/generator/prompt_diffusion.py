"""A diffusion model whose prompt is what is optimised, for any start latent (DiffExplainer, Section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    DISABLED_PROMPT_TO_PROMPT,
    Candidate,
    CaptionEdit,
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)


def embedding_controls(generator: LatentDiffusion) -> LatentDiffusion:
    """The model as it is: its own start latent and embeddings are optimised."""
    return generator


@dataclass(frozen=True, kw_only=True)
class PromptTuningContext(EditContext):
    """image_seeds, prompt_templates: per problem; init_seeds: of the random initial prompts, per problem;
    initial_values: of the free tokens, by initial prompt; token_ids, token_embeddings: of the padded prompts;
    step_inputs: of m images per problem, "b m" flattened; gumbel_sample: of the tokens, None for none."""

    image_seeds: tuple[int, ...]
    init_seeds: tuple[int, ...]
    initial_values: Float[Tensor, "s b n d"]
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
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization:
        """The prompts' tokens; everything is free, no map is injected."""
        start = self.generator.initialize(
            [without_free_tokens(problem) for problem in problems],
            PromptToPrompt(**DISABLED_PROMPT_TO_PROMPT),
            precomputed,
        )
        templates = tuple(parse_prompt(self.networks.tokenizer, p.edit.source) for p in problems)
        seeds = tuple(p.seed for p in problems)
        ids = self.networks.pad_tokens([list(t.token_ids) for t in templates])
        init_seeds = tuple(p.seed if p.init_seed is None else p.init_seed for p in problems)
        initial_values = [
            self.tokens.initialize(self.networks, templates, [derive_seed(seed, "start", j) for seed in init_seeds])
            for j in range(self.num_initializations)
        ]
        if all(torch.equal(values, initial_values[0]) for values in initial_values):
            initial_values = initial_values[:1]  # they have no random tokens
        context = PromptTuningContext(
            **vars(start.context),
            image_seeds=seeds,
            init_seeds=init_seeds,
            initial_values=torch.stack(initial_values),
            prompt_templates=templates,
            token_ids=ids,
            token_embeddings=self.networks.token_embeddings(ids),
            step_inputs=self.step_inputs(seeds, "validation", 0),
            gumbel_sample=None,
        )
        return replace(
            start,
            controls={self.tokens.control_name: initial_values[0]},
            context=context,
            candidates=[Candidate(initial_prompt=j) for j in range(len(initial_values))],
        )

    def select(self, initialization: Initialization, indices: Sequence[int]) -> tuple[Controls, EditContext]:
        """The initial tokens of each sample's candidate."""
        context = initialization.context
        assert isinstance(context, PromptTuningContext)
        chosen = [initialization.candidates[j].initial_prompt for j in indices]
        return {self.tokens.control_name: context.initial_values[chosen, list(range(len(chosen)))]}, context

    def render_candidates(self, initialization: Initialization) -> Iterator[Scene]:
        """Few images for many prompts: of other z than those that steps are judged by; no token is sampled."""
        context = initialization.context
        assert isinstance(context, PromptTuningContext)
        keys = list(zip(context.prompt_templates, context.init_seeds, strict=True))
        distinct = list(dict.fromkeys(keys))
        whose = [distinct.index(key) for key in keys]
        pools = [self._pool(context, i) for i in map(keys.index, distinct)]
        for latents in zip(*pools, strict=True):
            z = torch.stack(latents)
            images = self.networks.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            yield Scene(images[whose, 0], z[whose, 0], images[whose])

    def _pool(self, context: PromptTuningContext, i: int) -> Float[Tensor, "s m c y x"]:
        """The latents that the i-th prompt's starts lead to, on the `images_per_step` z of their draw; from the cache,
        if there. Always of this prompt alone and as many at once, so that they do not depend on the batch."""
        count = len(context.prompt_templates[i].free_positions)
        values, seeds = context.initial_values[:, i, :count], self.seeds(context.init_seeds[i], "fresh", 0)
        text = self.prompt_embeddings(
            {self.tokens.control_name: values}, self._repeated(context, i, len(values), context.step_inputs), 1
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

    def step_context(self, context: EditContext, k: int) -> EditContext:
        """The constants of step k: z and what is random about the tokens, from each problem's seed and the step."""
        assert isinstance(context, PromptTuningContext)
        shape = (self.counts["fresh"], max(len(t.free_positions) for t in context.prompt_templates))
        random = self.tokens.sample_gumbel(
            self.networks, shape, [derive_seed(seed, "tokens", k) for seed in context.image_seeds], k
        )
        return replace(context, step_inputs=self.step_inputs(context.image_seeds, "fresh", k), gumbel_sample=random)

    def evaluation_context(self, context: EditContext) -> EditContext:
        """z that no step was judged on: the best of many losses on the same few z is lower than on others."""
        assert isinstance(context, PromptTuningContext)
        return replace(context, step_inputs=self.step_inputs(context.image_seeds, "final", 0))

    def prompt_embeddings(self, controls: Controls, context: PromptTuningContext, m: int) -> Float[Tensor, "bm l d"]:
        """The prompts' embeddings, each m times. Words that nothing is drawn for are tokenised anew, as if a user had
        typed them: the tokens that they were chosen by need not come back."""
        if self.tokens.is_discrete() and context.gumbel_sample is None:
            return self.networks.embed(self.decode_prompts(controls, context)).repeat_interleave(m, dim=0)
        free = self.tokens.token_embeddings(self.networks, controls[self.tokens.control_name], context.gumbel_sample)
        free = free.expand(-1, m, -1, -1)
        rows = []
        for i, template in enumerate(context.prompt_templates):
            # Position 0 is the start token.
            places = torch.tensor(template.free_positions, device=free.device) + 1
            row = context.token_embeddings[i].expand(m, -1, -1)
            rows.append(row.index_copy(1, places, free[i, :, : len(places)].to(row)))
        return self.networks.encode_token_embeddings(context.token_ids.repeat_interleave(m, dim=0), torch.cat(rows))

    def _chain(self, text: Float[Tensor, "n l d"], course: SamplerInputs) -> list[Tensor]:
        """The x0-predictions of embeddings and their courses."""
        return self.generator.denoise(course["latent"], self.generator.step_embeddings(text, course), course["noise"])

    def __call__(self, controls: Controls, context: EditContext) -> list[Scene]:
        """Scenes whose views are the m pictures of a prompt; `image` is the first of them."""
        assert isinstance(context, PromptTuningContext)
        b = len(context.image_seeds)
        text = self.prompt_embeddings(controls, context, len(context.step_inputs["latent"]) // b)
        latents = self._chain(text, context.step_inputs)[-self.generator.last_x0_predictions :]
        decoded = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        folded = [
            (image.unflatten(0, (b, -1)), z.unflatten(0, (b, -1))) for image, z in zip(decoded, latents, strict=True)
        ]
        left = reversed(range(len(folded)))
        return [Scene(image[:, 0], z[:, 0], image, n) for (image, z), n in zip(folded, left, strict=True)]

    @torch.no_grad()
    def images(self, controls: Controls, context: EditContext) -> Float[Tensor, "b n 3 h w"]:
        """The `images_per_result` pictures of each prompt."""
        assert isinstance(context, PromptTuningContext)
        rows, at_once = [], self.counts["validation"]
        for i, seed in enumerate(context.image_seeds):
            seeds = self.seeds(seed, "report", 0)
            parts = [seeds[first : first + at_once] for first in range(0, len(seeds), at_once)]
            rows.append(torch.cat([self._shown(controls, context, i, part) for part in parts]))
        return torch.stack(rows)

    def _shown(
        self, controls: Controls, context: PromptTuningContext, i: int, seeds: Sequence[int]
    ) -> Float[Tensor, "m 3 h w"]:
        """Pictures of the i-th prompt."""
        own = self._repeated(context, i, 1, self.sample_inputs(seeds))
        return self({name: values[i : i + 1] for name, values in controls.items()}, own)[-1].views[0]

    def _repeated(self, context: PromptTuningContext, i: int, n: int, course: SamplerInputs) -> PromptTuningContext:
        """The i-th prompt's constants n times, with another course and no token drawn at random."""
        return replace(
            context,
            image_seeds=context.image_seeds[i : i + 1] * n,
            prompt_templates=context.prompt_templates[i : i + 1] * n,
            token_ids=context.token_ids[[i] * n],
            token_embeddings=context.token_embeddings[[i] * n],
            step_inputs=course,
            gumbel_sample=None,
        )

    def decode_prompts(self, controls: Controls, context: EditContext) -> list[str]:
        assert isinstance(context, PromptTuningContext)
        return self.tokens.decode(self.networks, controls[self.tokens.control_name], context.prompt_templates)


def without_free_tokens(problem: Problem) -> Problem:
    """The problem with the fixed words of its prompt alone."""
    return replace(
        problem, edit=CaptionEdit.unchanged(fixed_words(problem.edit.source), fixed_words(problem.edit.source_words))
    )
