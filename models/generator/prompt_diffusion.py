"""A diffusion model whose prompt is what is optimised, for any start latent (DiffExplainer, Section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.prompt_tuning import Draw, Template, Tokens, plain, read_template
from classifier_lens.models.generator.samplers import Course
from classifier_lens.models.seeded_noise import stream
from classifier_lens.runner.configuration.value_ranges import Repeats
from classifier_lens.runner.types import Anchor, Controls, Edit, Found, Problem, Scene, Schedules, Start

NO_MAPS: Schedules = {"inject": [0.0], "blend": [0.0]}


def embeddings(generator: LatentDiffusion) -> LatentDiffusion:
    """The model as it is: its own start latent and embeddings are optimised."""
    return generator


@dataclass(frozen=True, kw_only=True)
class PromptAnchor(Anchor):
    """What a batch of prompts needs besides. seeds, prompts: per problem; ids, vectors: the padded prompts' tokens
    and their embeddings; course: of m pictures per problem, "b m" flattened; random: of the tokens, None for none."""

    seeds: tuple[int, ...]
    prompts: tuple[Template, ...]
    ids: Int[Tensor, "b l"]
    vectors: Float[Tensor, "b l d"]
    course: Course
    random: Draw | None


class PromptDiffusion:
    """Pictures of prompts with free tokens. Every step meets new z, the best iterate is chosen on the same ones each
    time, its loss is measured on as many others, and what is reported is drawn from a fourth set.

    tokens: what stands in the free places; starts: how many random ones are compared, the best of which is begun with:
    equal prompts of equal `draw` share them and what they show, which is kept in the generator's cache;
    fresh, validation, report: how many z of these kinds.
    """

    def __init__(
        self, generator: LatentDiffusion, tokens: Tokens, starts: Repeats, fresh: Repeats, validation: Repeats,
        report: Repeats,
    ) -> None:  # fmt: skip
        self.starts = starts
        self.generator, self.tokens, self.networks = generator, tokens, generator.networks
        self.counts = {"fresh": fresh, "validation": validation, "final": validation, "report": report}
        self.lasting: tuple[str, ...] = (tokens.control,)
        self.reported, self.graphed = report, fresh

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([unmarked(problem) for problem in problems])
        for problem in problems:
            read_template(self.networks.tokenizer, problem.edit.source)

    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        """The prompts' tokens; everything is free, no map is injected."""
        start = self.generator.begin([unmarked(problem) for problem in problems], NO_MAPS, found)
        templates = tuple(read_template(self.networks.tokenizer, p.edit.source) for p in problems)
        seeds = tuple(p.seed for p in problems)
        ids = self.networks.padded([list(t.ids) for t in templates])
        anchor = PromptAnchor(
            **vars(start.anchors[0]), seeds=seeds, prompts=templates, ids=ids,
            vectors=self.networks.token_vectors(ids), course=self.course(seeds, "validation", 0), random=None,
        )  # fmt: skip
        draws = [p.seed if p.draw is None else p.draw for p in problems]
        begun = [
            {self.tokens.control: self.tokens.start(self.networks, templates, [stream(d, "start", j) for d in draws])}
            for j in range(self.starts)
        ]
        if all(torch.equal(b[self.tokens.control], begun[0][self.tokens.control]) for b in begun):
            begun = begun[:1]  # nothing is random about them
        scenes = partial(self.candidates, begun, anchor, draws)
        return Start(begun[0], [anchor], start.notes, begun[1:], scenes, found=start.found)

    def candidates(self, begun: Sequence[Controls], anchor: PromptAnchor, draws: Sequence[int]) -> Iterator[Scene]:
        """What every start shows. Few pictures for many prompts: of other z than those by which steps are judged, and
        no token is drawn at random."""
        keys = list(zip(anchor.prompts, draws, strict=True))
        distinct = list(dict.fromkeys(keys))
        whose = [distinct.index(key) for key in keys]
        pools = [self._pool([b[self.tokens.control][i] for b in begun], anchor, i, draws[i])
                 for i in map(keys.index, distinct)]  # fmt: skip
        for latents in zip(*pools, strict=True):
            z = torch.stack(latents)
            images = self.networks.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            yield Scene(images[whose, 0], z[whose, 0], images[whose])

    def _pool(
        self, begun: Sequence[Tensor], anchor: PromptAnchor, i: int, draw: int
    ) -> Float[Tensor, "starts m c h w"]:
        """The latents that the i-th prompt's starts lead to, on the `fresh` z of their draw; from the cache, if there.
        Always of this prompt alone and as many at once, so that they do not depend on the batch."""
        count = len(anchor.prompts[i].free)
        values, seeds = torch.stack([b[:count] for b in begun]), self.seeds(draw, "fresh", 0)
        text = self.text({self.tokens.control: values}, self._repeated(anchor, i, len(values), anchor.course), 1)
        key = self.generator.cache.key("starts", self.generator.recipe, text, seeds)
        if (found := self.generator.cache.load([key])) is None:
            parts = []
            for part in text.split(max(1, self.counts["validation"] // len(seeds))):
                course = self.drawn(seeds * len(part))
                chain = self._chain(part.repeat_interleave(len(seeds), dim=0), course)
                parts.append(chain[-1].unflatten(0, (len(part), len(seeds))))
            found = {"latents": torch.cat(parts)[None]}
            self.generator.cache.save([key], **found)
        return found["latents"][0].to(self.networks.device)

    def seeds(self, seed: int, kind: str, k: int) -> list[int]:
        """The seeds of a problem's pictures of step k, of one of the four kinds."""
        return [stream(seed, kind, k, j) for j in range(self.counts[kind])]

    def drawn(self, seeds: Sequence[int]) -> Course:
        return self.generator.sampler.draw(self.networks, seeds, self.generator.latent_side)

    def course(self, seeds: Sequence[int], kind: str, k: int) -> Course:
        """The courses of a step's pictures, those of one problem next to each other."""
        return self.drawn([own for seed in seeds for own in self.seeds(seed, kind, k)])

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        """The constants of step k: z and what is random about the tokens, from each problem's seed and the step."""
        assert isinstance(anchor, PromptAnchor)
        shape = (self.counts["fresh"], max(len(t.free) for t in anchor.prompts))
        random = self.tokens.draw(self.networks, shape, [stream(seed, "tokens", k) for seed in anchor.seeds], k)
        return replace(anchor, course=self.course(anchor.seeds, "fresh", k), random=random)

    def final(self, anchor: Anchor) -> Anchor:
        """z that no step was judged on: the best of many losses on the same few z is lower than on others."""
        assert isinstance(anchor, PromptAnchor)
        return replace(anchor, course=self.course(anchor.seeds, "final", 0))

    def text(self, controls: Controls, anchor: PromptAnchor, m: int) -> Float[Tensor, "bm l d"]:
        """The prompts' embeddings, each m times. Words that nothing is drawn for are tokenised anew, as if a user had
        typed them: the tokens that they were chosen by need not come back."""
        if self.tokens.spelled() and anchor.random is None:
            return self.networks.embed(self.worded(controls, anchor)).repeat_interleave(m, dim=0)
        free = self.tokens.vectors(self.networks, controls[self.tokens.control], anchor.random)
        free = free.expand(-1, m, -1, -1)
        rows = []
        for i, template in enumerate(anchor.prompts):
            # Position 0 is the start token.
            places = torch.tensor(template.free, device=free.device) + 1
            row = anchor.vectors[i].expand(m, -1, -1)
            rows.append(row.index_copy(1, places, free[i, :, : len(places)].to(row)))
        return self.networks.embed_vectors(anchor.ids.repeat_interleave(m, dim=0), torch.cat(rows))

    def _chain(self, text: Float[Tensor, "n l d"], course: Course) -> list[Tensor]:
        """The x0-predictions of embeddings and their courses."""
        return self.generator.chain(course["latent"], self.generator.base(text, course), course["noise"])

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes whose views are the m pictures of a prompt; `image` is the first of them."""
        assert isinstance(anchor, PromptAnchor)
        b = len(anchor.seeds)
        text = self.text(controls, anchor, len(anchor.course["latent"]) // b)
        latents = self._chain(text, anchor.course)[-self.generator.last :]
        decoded = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        folded = [
            (image.unflatten(0, (b, -1)), z.unflatten(0, (b, -1))) for image, z in zip(decoded, latents, strict=True)
        ]
        left = reversed(range(len(folded)))
        return [Scene(image[:, 0], z[:, 0], image, n) for (image, z), n in zip(folded, left, strict=True)]

    @torch.no_grad()
    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b n 3 h w"]:
        """The `report` pictures of each prompt."""
        assert isinstance(anchor, PromptAnchor)
        rows, at_once = [], self.counts["validation"]
        for i, seed in enumerate(anchor.seeds):
            seeds = self.seeds(seed, "report", 0)
            parts = [seeds[first : first + at_once] for first in range(0, len(seeds), at_once)]
            rows.append(torch.cat([self._shown(controls, anchor, i, part) for part in parts]))
        return torch.stack(rows)

    def _shown(
        self, controls: Controls, anchor: PromptAnchor, i: int, seeds: Sequence[int]
    ) -> Float[Tensor, "m 3 h w"]:
        """Pictures of the i-th prompt."""
        own = self._repeated(anchor, i, 1, self.drawn(seeds))
        return self({name: values[i : i + 1] for name, values in controls.items()}, own)[-1].views[0]

    def _repeated(self, anchor: PromptAnchor, i: int, n: int, course: Course) -> PromptAnchor:
        """The i-th prompt's constants n times, with another course and no token drawn at random."""
        return replace(
            anchor, seeds=anchor.seeds[i : i + 1] * n, prompts=anchor.prompts[i : i + 1] * n,
            ids=anchor.ids[[i] * n], vectors=anchor.vectors[[i] * n], course=course, random=None,
        )  # fmt: skip

    def worded(self, controls: Controls, anchor: Anchor) -> list[str]:
        assert isinstance(anchor, PromptAnchor)
        return self.tokens.words(self.networks, controls[self.tokens.control], anchor.prompts)


def unmarked(problem: Problem) -> Problem:
    """The problem with the fixed words of its prompt alone."""
    return replace(problem, edit=Edit.unchanged(plain(problem.edit.source), plain(problem.edit.source_words)))
