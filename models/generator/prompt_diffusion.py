"""A diffusion model whose prompt is optimized, for any start latent (DiffExplainer, Section 3.2)."""

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
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)


def embedding_controls(generator: LatentDiffusion) -> LatentDiffusion:
    """The model as it is: its start latent and embeddings are optimized."""
    return generator


@dataclass(frozen=True)
class PromptTuningContext:
    """The constants of a batch of prompts.

    image_seeds, prompt_templates: per problem; init_seeds: of the random initial prompts, per problem; initial_values:
    of the free tokens, by initial prompt; token_ids, token_embeddings: of the padded prompts; step_inputs: of m images
    per problem, "b m" flattened; gumbel_sample: of the tokens, None for none."""

    image_seeds: tuple[int, ...]
    init_seeds: tuple[int, ...]
    initial_values: Float[Tensor, "s b n d"]
    prompt_templates: tuple[PromptTemplate, ...]
    token_ids: Int[Tensor, "b l"]
    token_embeddings: Float[Tensor, "b l d"]
    step_inputs: SamplerInputs
    gumbel_sample: GumbelSample | None


class PromptDiffusion:
    """Images of prompts with free tokens. Every step samples new z; the best iterate is chosen on a fixed set of z, its
    loss is measured on a second one of the same size, and the images of the result are generated from a third one.

    tokens: what is optimized in the free places; num_initializations: how many random initial prompts are compared;
    problems of equal prompt and `init_seed` share them and their images, which are cached; images_per_step,
    validation_images, images_per_result: the sizes of the sets of z."""

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
        # The names are part of the images' seeds.
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
    ) -> Initialization[PromptTuningContext]:
        """The initial tokens of the prompts. Everything is editable, no map is injected."""
        start = self.generator.initialize(
            [without_free_tokens(problem) for problem in problems],
            PromptToPrompt(**DISABLED_PROMPT_TO_PROMPT),
            precomputed,
        )
        templates = tuple(parse_prompt(self.networks.tokenizer, p.edit.source) for p in problems)
        image_seeds = tuple(p.seed for p in problems)
        init_seeds = tuple(p.seed if p.init_seed is None else p.init_seed for p in problems)
        initial_values = self._initial_values(templates, init_seeds)
        token_ids = self.networks.pad_tokens([list(t.token_ids) for t in templates])
        context = PromptTuningContext(
            image_seeds=image_seeds,
            init_seeds=init_seeds,
            initial_values=initial_values,
            prompt_templates=templates,
            token_ids=token_ids,
            token_embeddings=self.networks.token_embeddings(token_ids),
            step_inputs=self.step_inputs(image_seeds, "validation", 0),
            gumbel_sample=None,
        )
        return replace(
            start.with_context(context),
            controls={self.tokens.control_name: initial_values[0]},
            candidates=[Candidate(initial_prompt=j) for j in range(len(initial_values))],
        )

    def _initial_values(
        self, templates: Sequence[PromptTemplate], init_seeds: Sequence[int]
    ) -> Float[Tensor, "s b n d"]:
        """The values of the free tokens in each random initial prompt; one where nothing in them is random."""
        values = [
            self.tokens.initialize(self.networks, templates, [derive_seed(seed, "start", j) for seed in init_seeds])
            for j in range(self.num_initializations)
        ]
        return torch.stack(values[:1] if all(torch.equal(v, values[0]) for v in values) else values)

    def select(
        self, initialization: Initialization[PromptTuningContext], indices: Sequence[int]
    ) -> tuple[Controls, PromptTuningContext]:
        """The initial tokens of each sample's candidate, and the context, which all candidates share."""
        context = initialization.context
        chosen = [initialization.candidates[j].initial_prompt for j in indices]
        return {self.tokens.control_name: context.initial_values[chosen, list(range(len(chosen)))]}, context

    def render_candidates(self, initialization: Initialization[PromptTuningContext]) -> Iterator[Scene]:
        """Few images for many prompts: of other z than those that iterates are chosen by; no token is sampled."""
        context = initialization.context
        prompts = list(zip(context.prompt_templates, context.init_seeds, strict=True))
        distinct = list(dict.fromkeys(prompts))
        positions = [distinct.index(prompt) for prompt in prompts]
        latents = [self._candidate_latents(context, i) for i in map(prompts.index, distinct)]
        for of_candidate in zip(*latents, strict=True):
            z = torch.stack(of_candidate)
            images = self.networks.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            yield Scene(images[positions, 0], z[positions, 0], images[positions])

    def _candidate_latents(self, context: PromptTuningContext, i: int) -> Float[Tensor, "s m c y x"]:
        """The latents of the i-th problem's initial prompts, on the `images_per_step` z of their seed; from the cache,
        if there. They are computed without other problems and always as many together, so that they do not depend on
        the batch."""
        count = len(context.prompt_templates[i].free_positions)
        values, seeds = context.initial_values[:, i, :count], self.seeds(context.init_seeds[i], "fresh", 0)
        text = self.prompt_embeddings(
            {self.tokens.control_name: values}, self._repeated(context, i, len(values), context.step_inputs), 1
        )
        key = self.generator.cache.key("starts", self.generator.fingerprint, text, seeds)
        if (cached := self.generator.cache.load([key])) is None:
            parts = []
            for part in text.split(max(1, self.counts["validation"] // len(seeds))):
                inputs = self.sample_inputs(seeds * len(part))
                predictions = self._denoise(part.repeat_interleave(len(seeds), dim=0), inputs)
                parts.append(predictions[-1].unflatten(0, (len(part), len(seeds))))
            cached = {"latents": torch.cat(parts)[None]}
            self.generator.cache.save([key], **cached)
        return cached["latents"][0].to(self.networks.device)

    def seeds(self, seed: int, kind: str, k: int) -> list[int]:
        """The seeds of the images of a problem's seed at step k, of one of the kinds in `counts`."""
        return [derive_seed(seed, kind, k, j) for j in range(self.counts[kind])]

    def sample_inputs(self, seeds: Sequence[int]) -> SamplerInputs:
        return self.generator.sampler.sample_inputs(self.networks, seeds, self.generator.latent_size)

    def step_inputs(self, seeds: Sequence[int], kind: str, k: int) -> SamplerInputs:
        """The sampler's inputs for the images of step k, those of one problem next to each other."""
        return self.sample_inputs([image_seed for seed in seeds for image_seed in self.seeds(seed, kind, k)])

    def step_context(self, context: PromptTuningContext, k: int) -> PromptTuningContext:
        """The constants of step k: z and the random part of the tokens, from each problem's seed and the step."""
        shape = (self.counts["fresh"], max(len(t.free_positions) for t in context.prompt_templates))
        gumbel_sample = self.tokens.sample_gumbel(
            self.networks, shape, [derive_seed(seed, "tokens", k) for seed in context.image_seeds], k
        )
        step_inputs = self.step_inputs(context.image_seeds, "fresh", k)
        return replace(context, step_inputs=step_inputs, gumbel_sample=gumbel_sample)

    def evaluation_context(self, context: PromptTuningContext) -> PromptTuningContext:
        """With z that no iterate was chosen by: the lowest of many losses on the same few z is biased."""
        return replace(context, step_inputs=self.step_inputs(context.image_seeds, "final", 0))

    def prompt_embeddings(self, controls: Controls, context: PromptTuningContext, m: int) -> Float[Tensor, "bm l d"]:
        """The embeddings of the prompts, each m times. Discrete prompts without a sample are tokenized from their
        words, as if a user had typed them: this need not give the tokens that were optimized."""
        if self.tokens.is_discrete() and context.gumbel_sample is None:
            return self.networks.embed(self.decode_prompts(controls, context)).repeat_interleave(m, dim=0)
        free = self.tokens.token_embeddings(self.networks, controls[self.tokens.control_name], context.gumbel_sample)
        free = free.expand(-1, m, -1, -1)
        rows = []
        for i, template in enumerate(context.prompt_templates):
            # Position 0 is the start token.
            positions = torch.tensor(template.free_positions, device=free.device) + 1
            row = context.token_embeddings[i].expand(m, -1, -1)
            rows.append(row.index_copy(1, positions, free[i, :, : len(positions)].to(row)))
        return self.networks.encode_token_embeddings(context.token_ids.repeat_interleave(m, dim=0), torch.cat(rows))

    def _denoise(self, text: Float[Tensor, "n l d"], inputs: SamplerInputs) -> list[Float[Tensor, "n c y x"]]:
        """The x0-predictions of all steps."""
        return self.generator.denoise(inputs["latent"], self.generator.step_embeddings(text, inputs), inputs["noise"])

    def __call__(self, controls: Controls, context: PromptTuningContext) -> list[Scene]:
        """Scenes whose views are the m images of a prompt; `image` is the first one."""
        b = len(context.image_seeds)
        text = self.prompt_embeddings(controls, context, len(context.step_inputs["latent"]) // b)
        latents = self._denoise(text, context.step_inputs)[-self.generator.last_x0_predictions :]
        decoded = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        by_problem = [
            (images.unflatten(0, (b, -1)), z.unflatten(0, (b, -1))) for images, z in zip(decoded, latents, strict=True)
        ]
        steps_left = reversed(range(len(by_problem)))
        return [Scene(images[:, 0], z[:, 0], images, n) for (images, z), n in zip(by_problem, steps_left, strict=True)]

    @torch.no_grad()
    def images(self, controls: Controls, context: PromptTuningContext) -> Float[Tensor, "b n 3 h w"]:
        """The `images_per_result` images of each prompt."""
        rows, images_per_call = [], self.counts["validation"]
        for i, seed in enumerate(context.image_seeds):
            seeds = self.seeds(seed, "report", 0)
            parts = [seeds[first : first + images_per_call] for first in range(0, len(seeds), images_per_call)]
            rows.append(torch.cat([self._images_of(controls, context, i, part) for part in parts]))
        return torch.stack(rows)

    def _images_of(
        self, controls: Controls, context: PromptTuningContext, i: int, seeds: Sequence[int]
    ) -> Float[Tensor, "m 3 h w"]:
        """The images of the i-th prompt for the seeds."""
        single = self._repeated(context, i, 1, self.sample_inputs(seeds))
        return self({name: values[i : i + 1] for name, values in controls.items()}, single)[-1].views[0]

    def _repeated(
        self, context: PromptTuningContext, i: int, n: int, step_inputs: SamplerInputs
    ) -> PromptTuningContext:
        """The i-th prompt's constants n times, with other inputs of the sampler and without a sample of tokens."""
        return PromptTuningContext(
            image_seeds=context.image_seeds[i : i + 1] * n,
            init_seeds=context.init_seeds[i : i + 1] * n,
            initial_values=context.initial_values[:, [i] * n],
            prompt_templates=context.prompt_templates[i : i + 1] * n,
            token_ids=context.token_ids[[i] * n],
            token_embeddings=context.token_embeddings[[i] * n],
            step_inputs=step_inputs,
            gumbel_sample=None,
        )

    def decode_prompts(self, controls: Controls, context: PromptTuningContext) -> list[str]:
        return self.tokens.decode(self.networks, controls[self.tokens.control_name], context.prompt_templates)


def without_free_tokens(problem: Problem) -> Problem:
    """The problem with the fixed words of its prompt alone."""
    return replace(
        problem, edit=CaptionEdit.unchanged(fixed_words(problem.edit.source), fixed_words(problem.edit.source_words))
    )
