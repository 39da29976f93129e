"""A diffusion model whose prompt is what is optimised, for any start latent (DiffExplainer, Section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.diffusion import LatentDiffusion
from models.sampler import Course
from models.tokens import Draw, Template, Tokens, plain, read_template
from runner.types import Anchor, Controls, Edit, Problem, Scene, Schedules, Start, UserError

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
    time, and what is reported is drawn from a third set.

    tokens: what stands in the free places; starts: how many random ones are compared, the best of which is begun with;
    fresh, validation, report: how many z of each kind.
    """

    def __init__(
        self, generator: LatentDiffusion, tokens: Tokens, starts: int, fresh: int, validation: int, report: int
    ) -> None:  # fmt: skip
        for key, count in {"starts": starts, "fresh": fresh, "validation": validation, "report": report}.items():
            if count < 1:
                raise UserError(f"controls.{key}={count}: allowed are 1 and above")
        self.starts = starts
        self.generator, self.tokens, self.networks = generator, tokens, generator.networks
        self.counts = {"fresh": fresh, "validation": validation, "report": report}
        self.lasting: tuple[str, ...] = (tokens.control,)
        self.reported = report

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([unmarked(problem) for problem in problems])
        for problem in problems:
            read_template(self.networks.tokenizer, problem.edit.source)

    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start:
        """The prompts' tokens; everything is free, no map is injected."""
        start = self.generator.begin([unmarked(problem) for problem in problems], NO_MAPS)
        templates = tuple(read_template(self.networks.tokenizer, p.edit.source) for p in problems)
        seeds = tuple(p.seed for p in problems)
        ids = self.networks.padded([list(t.ids) for t in templates])
        anchor = PromptAnchor(
            **vars(start.anchors[0]), seeds=seeds, prompts=templates, ids=ids,
            vectors=self.networks.token_vectors(ids), course=self.course(seeds, "validation", 0), random=None,
        )  # fmt: skip
        begun = [
            {self.tokens.control: self.tokens.start(self.networks, templates, [stream(s, "start", j) for s in seeds])}
            for j in range(self.starts)
        ]
        # Few pictures for many prompts: other z than those by which steps are judged, and no token drawn at random.
        trial = replace(anchor, course=self.course(seeds, "fresh", 0))
        return Start(begun[0], [anchor], start.notes, begun[1:], trial)

    def seeds(self, seed: int, kind: str, k: int) -> list[int]:
        """The seeds of a problem's pictures of step k, of one of the three kinds."""
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

    def text(self, controls: Controls, anchor: PromptAnchor, m: int) -> Float[Tensor, "bm l d"]:
        """The prompts' embeddings, each m times."""
        free = self.tokens.vectors(self.networks, controls[self.tokens.control], anchor.random)
        free = free.expand(-1, m, -1, -1)
        rows = []
        for i, template in enumerate(anchor.prompts):
            # Position 0 is the start token.
            places = torch.tensor(template.free, device=free.device) + 1
            row = anchor.vectors[i].expand(m, -1, -1)
            rows.append(row.index_copy(1, places, free[i, :, : len(places)].to(row)))
        return self.networks.embed_vectors(anchor.ids.repeat_interleave(m, dim=0), torch.cat(rows))

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes whose views are the m pictures of a prompt; `image` is the first of them."""
        assert isinstance(anchor, PromptAnchor)
        b = len(anchor.seeds)
        m = len(anchor.course["latent"]) // b
        embeddings = self.generator.base(self.text(controls, anchor, m), anchor.course)
        chain = self.generator.chain(anchor.course["latent"], embeddings, anchor.course["noise"])
        latents = chain[-self.generator.last :]
        decoded = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        folded = [
            (image.unflatten(0, (b, m)), z.unflatten(0, (b, m))) for image, z in zip(decoded, latents, strict=True)
        ]
        return [Scene(image[:, 0], z[:, 0], image) for image, z in folded]

    @torch.no_grad()
    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b n 3 h w"]:
        """The `report` pictures of each prompt. A prompt of words is tokenised anew, as if a user had typed it."""
        assert isinstance(anchor, PromptAnchor)
        rows, at_once = [], self.counts["validation"]
        for i, (seed, words) in enumerate(zip(anchor.seeds, self.worded(controls, anchor), strict=True)):
            seeds = self.seeds(seed, "report", 0)
            parts = [seeds[first : first + at_once] for first in range(0, len(seeds), at_once)]
            if self.tokens.spelled():
                shown = [self.generator.sample([words] * len(part), part) for part in parts]
            else:
                shown = [self._shown(controls, anchor, i, part) for part in parts]
            rows.append(torch.cat(shown))
        return torch.stack(rows)

    def _shown(
        self, controls: Controls, anchor: PromptAnchor, i: int, seeds: Sequence[int]
    ) -> Float[Tensor, "m 3 h w"]:
        """Pictures of the i-th prompt."""
        own = replace(
            anchor, seeds=anchor.seeds[i : i + 1], prompts=anchor.prompts[i : i + 1], ids=anchor.ids[i : i + 1],
            vectors=anchor.vectors[i : i + 1], course=self.drawn(seeds), random=None,
        )  # fmt: skip
        return self({name: values[i : i + 1] for name, values in controls.items()}, own)[-1].views[0]

    def worded(self, controls: Controls, anchor: Anchor) -> list[str]:
        assert isinstance(anchor, PromptAnchor)
        return self.tokens.words(self.networks, controls[self.tokens.control], anchor.prompts)


def unmarked(problem: Problem) -> Problem:
    """The problem with the fixed words of its prompt alone."""
    return replace(problem, edit=Edit.unchanged(plain(problem.edit.source), plain(problem.edit.source_words)))


def stream(seed: int, *place: object) -> int:
    """A seed of its own for every use of a problem's seed; equal uses give equal ones."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:7], "big")
