"""What the benchmark times: explanations by the runner, by parts, beside the plain loop of scripts/plain_loop.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.prompt_diffusion import PromptAnchor, PromptDiffusion
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.batch import Solver
from classifier_lens.runner.configuration.compose import build, configure
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.loop import Origin, State
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import World
from classifier_lens.runner.run import Parts as RunParts
from classifier_lens.runner.run import fit, solver
from classifier_lens.runner.types import Anchor, Controls, Objective, Scene
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.timing import Parts, seconds

TIMED = 3  # optimisation steps that are timed; their median stands for all of them


@dataclass(frozen=True)
class Case:
    """A run that is ready to be timed. steps: K, of which few are run; classifiers: how many see each picture."""

    parts: RunParts
    answer: Solver
    problems: Sequence[Any]
    steps: int
    classifiers: int

    @property
    def size(self) -> int:
        return len(self.problems)

    @property
    def images(self) -> Tensor | None:
        given = [p.image for p in self.problems if p.image is not None]
        return torch.stack(given).to(self.parts.diffusion.device) if given else None

    def augment(self, scene: Scene, k: int) -> Scene:
        return self.answer.augment(scene, [p.seed for p in self.problems], k, self.parts.classifier.size)


def case(words: Sequence[str], batch: int) -> Case:
    """The first `batch` problems of `python run.py <words>`."""
    config = configure([*words, f"batch={batch}", f"limit={batch}", "logger=none", f"outputs={_FOLDER.name}"])
    parts = build(config)
    answer = solver(parts)
    problems, _ = parts.task.problems(World(parts.data, parts.classifier, parts.diffusion, config["seed"], batch))
    if parts.diffusion.recompute == "auto":
        fit(parts, answer, batch, batch)
    return Case(parts, answer, problems, parts.optimizer.steps, 1 + len(parts.task.networks))


_FOLDER = TemporaryDirectory(prefix="bench-")  # of what is cached; removed when the process ends


# --- explanations of single pictures --------------------------------------------------------------------------


def inverted(own: Case) -> float:
    """Seconds per picture of the inversion, without the cache."""
    generator = own.parts.diffusion
    assert own.images is not None
    with torch.no_grad():
        encoded = generator.networks.encode(own.images)
    prompts, seeds = [p.edit.source for p in own.problems], [p.seed for p in own.problems]
    return seconds(lambda: generator.sampler.invert(generator.networks, encoded, prompts, seeds)) / own.size


def explained(own: Case) -> Parts:
    """Seconds per picture of the runner's parts: inversion, beginning, search, an optimisation step, the end."""
    found: Parts = {"inversion": inverted(own) if own.images is not None else 0.0}
    begin, start = own.answer.contestant.begin, _Kept()
    begin.begin(own.problems, own.parts.task.schedules)  # the inversion is in the cache from here on
    found["begin"] = seconds(lambda: start.keep(begin.begin(own.problems, own.parts.task.schedules))) / own.size
    objective, origin = own.answer.objective(own.problems, start.value.anchors[0]), _Kept()
    found["search"] = seconds(lambda: origin.keep(loop.choose(begin, start.value, objective))) / own.size
    controls, anchor = loop.beginning(start.value, origin.value)
    found["step"], state = stepped(own, controls, anchor, origin.value)
    found["end"] = seconds(lambda: (own.answer.render(controls, anchor), own.answer.render(state.best, anchor)))
    found["end"] /= own.size
    return totalled(found, own.steps)


class _Kept:
    """What a timed call has made."""

    value: Any = None

    def keep(self, value: object) -> None:
        self.value = value


def stepped(own: Case, controls: Controls, anchor: Anchor, origin: Origin | None) -> tuple[float, State]:
    """Seconds per picture and optimisation step, and where they lead."""
    states = own.answer.states(own.problems, anchor, loop.begin(controls, origin))
    state, times = _Kept(), []
    for _ in range(min(TIMED, own.steps)):
        times.append(seconds(lambda: state.keep(next(states))) / own.size)
    return sorted(times)[len(times) // 2], state.value


def totalled(parts: Parts, steps: int) -> Parts:
    """With the sum of an explanation of so many steps."""
    once = sum(value for name, value in parts.items() if name != "step")
    return {**parts, "all": once + steps * parts["step"]}


def explained_plainly(own: Case) -> Parts:
    """The same of the plain loop, for the first problem."""
    plain, problem = plain_loop.reference(own.parts.diffusion), own.problems[0]
    found: Parts = {"inversion": 0.0, "begin": 0.0}
    if problem.image is not None:
        image = problem.image[None].to(own.parts.diffusion.device)
        found["inversion"] = seconds(lambda: plain_loop.invert(plain, image, problem.edit.source))
    start = own.answer.contestant.begin.begin(own.problems[:1], own.parts.task.schedules)
    controls, anchors = start.controls, start.anchors
    text = plain.networks.embed([problem.edit.source])
    # What is found in the maps costs no call of a network, and is not timed: the plain loop is not made slower by it.
    null = anchors[0].base["null"]
    if problem.image is not None:
        found["begin"] = seconds(lambda: plain_loop.record(plain, controls["latent"], text, null))
    objective = own.answer.objective(own.problems[:1], anchors[0])
    found["search"] = 0.0
    if len(anchors) > 1:
        found["search"] = seconds(lambda: plain_loop.search(plain, controls, anchors, objective))
    step = partial(
        plain_loop.descend, plain, controls, anchors[-1], objective, first_alone(own), own.answer.descent.lr,
        classifiers=own.classifiers,
    )  # fmt: skip
    step(steps=1)
    found["step"] = seconds(lambda: step(steps=TIMED)) / TIMED

    @torch.no_grad()
    def end() -> None:
        for _ in ("start", "best"):
            plain_loop.shown(plain, plain_loop.chain(plain, controls, anchors[-1])[-1])

    found["end"] = seconds(end)
    return totalled(found, own.steps)


def first_alone(own: Case) -> Callable[[Scene, int], Scene]:
    """The crops of the first problem."""
    return replace(own, problems=own.problems[:1]).augment


# --- the networks alone --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A batch before its first step."""

    own: Case
    controls: Controls
    anchor: Anchor
    objective: Objective


def ready(own: Case) -> Ready:
    start = own.answer.contestant.begin.begin(own.problems, own.parts.task.schedules)
    anchor = start.anchors[-1]
    return Ready(own, start.controls, anchor, own.answer.objective(own.problems, anchor))


def networks_alone(r: Ready, networks: Networks) -> Parts:
    """Seconds per picture of a step's calls of networks, forward and backward, each alone on fixed inputs.

    networks: the runner's, or the plain loop's copy of them.
    """
    generator, own = r.own.parts.diffusion, r.own
    z = r.controls["latent"].detach().requires_grad_()
    unet = 0.0
    for i in range(len(generator)):
        now = {name: base[:, i].detach().clone().requires_grad_() for name, base in r.anchor.base.items()}
        maps = generator.injection([r.anchor], i)
        call = partial(generator.sampler.predict, networks, z, now, i, maps)
        unet += seconds(partial(_both_ways, call, [z, *now.values()]))
    image = networks.decode(r.anchor.encoded).detach().requires_grad_()
    crops = own.augment(Scene(image, z, image.unsqueeze(1)), 0).views.flatten(0, 1).detach().requires_grad_()
    decode = generator.last * seconds(lambda: _both_ways(lambda: networks.decode(z), [z]))

    descent = own.answer.descent
    if networks is not generator.networks:
        descent = replace(descent, autocast=None)  # the plain loop has float32 throughout

    def judge(classifier: Any) -> None:
        with descent.casting(image.device):
            _both_ways(lambda: classifier(crops).logits, [crops])
        with torch.no_grad():
            classifier(image)

    judges = [own.parts.classifier, *own.parts.task.networks]
    classify = generator.last * sum(seconds(partial(judge, classifier)) for classifier in judges)
    return {"all": (unet + decode + classify) / own.size, "unet": unet / own.size}


def unet_pass(pipeline: Path, heads: int, batch: int) -> Callable[[], Parts]:
    """Seconds per picture of a sampler step in both branches, forward and backward, of a UNet with random weights: of a
    pipeline's shape but for its number of heads."""
    config = UNet2DConditionModel.load_config(pipeline, subfolder="unet")
    # Diffusers has the number of heads under this name.
    unet = UNet2DConditionModel.from_config({**config, "attention_head_dim": heads}).requires_grad_(False).eval()
    length = CLIPTextConfig.from_pretrained(pipeline, subfolder="text_encoder").max_position_embeddings
    z = torch.randn(2 * batch, unet.config.in_channels, *[unet.config.sample_size] * 2, requires_grad=True)
    text = torch.randn(2 * batch, length, unet.config.cross_attention_dim, requires_grad=True)
    step = partial(_both_ways, lambda: unet(z, torch.tensor(500), text).sample, [z, text])
    return lambda: {"all": seconds(step) / batch}


def _both_ways(call: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.grad(call().sum(), inputs)


def step_parts(r: Ready) -> Parts:
    """Seconds per picture of a step as the runner does it: chain, decoding, what classifiers see, backward pass."""
    generator, own = r.own.parts.diffusion, r.own
    leaves = {name: value.detach().clone().requires_grad_() for name, value in r.controls.items()}
    kept = [_Kept() for _ in range(3)]
    found = {
        "chain": seconds(
            lambda: kept[0].keep(generator.chain(leaves["latent"], r.anchor.base, r.anchor.noise, r.anchor, leaves)[-1])
        ),
        "decode": seconds(lambda: kept[1].keep(generator.networks.decode(kept[0].value))),
    }
    scene = Scene(kept[1].value, kept[0].value, kept[1].value.unsqueeze(1))
    with own.answer.descent.casting(scene.image.device):
        found["classify"] = seconds(lambda: kept[2].keep(evaluate(r.objective, own.augment(scene, 0)).total.sum()))
    found["backward"] = seconds(lambda: torch.autograd.grad(kept[2].value, list(leaves.values())))
    return {name: value / own.size for name, value in found.items()}


def step_time(r: Ready, plain: plain_loop.Reference | None = None) -> Parts:
    """Seconds per picture of a whole optimisation step, the runner's or the plain loop's."""
    step = partial(one_step, r) if plain is None else partial(one_plain_step, plain, r)
    return {"all": seconds(step) / r.own.size}


def states(r: Ready) -> Iterator[State]:
    """The descent, a whole optimisation step at a time."""
    return r.own.answer.states(r.own.problems, r.anchor, loop.begin(r.controls))


def one_step(r: Ready) -> None:
    """The first optimisation step."""
    next(states(r))


def one_plain_step(plain: plain_loop.Reference, r: Ready) -> None:
    """The same of the plain loop, for a batch of one."""
    plain_loop.descend(
        plain, r.controls, r.anchor, r.objective, first_alone(r.own), r.own.answer.descent.lr, 1, r.own.classifiers
    )


# --- prompts -------------------------------------------------------------------------------------------------


def prompted(own: Case) -> Parts:
    """Seconds per prompt of the runner's parts; one of the search's starts is timed per start."""
    begin = own.answer.contestant.begin
    assert isinstance(begin, PromptDiffusion)
    own.parts.diffusion.cache = TensorCache(None)  # what random starts show is computed in every repetition
    start = begin.begin(own.problems, own.parts.task.schedules)
    objective, origin = own.answer.objective(own.problems, start.anchors[0]), _Kept()
    search = seconds(lambda: origin.keep(loop.choose(begin, start, objective))) / own.size
    controls, anchor = loop.beginning(start, origin.value)
    step, state = stepped(own, controls, anchor, origin.value)
    end = seconds(lambda: own.answer.render(state.best, anchor)) / own.size
    return totalled({"search": search, "step": step, "end": end}, own.steps)


def prompted_plainly(own: Case) -> Parts:
    """The same of the plain loop: the first problem, a picture at a time; its starts are not shared."""
    begin = own.answer.contestant.begin
    assert isinstance(begin, PromptDiffusion)
    start = begin.begin(own.problems[:1], own.parts.task.schedules)
    anchor = start.anchors[0]
    assert isinstance(anchor, PromptAnchor)
    objective, name = own.answer.objective(own.problems[:1], anchor), begin.tokens.control
    fresh = begin.fresh(anchor, 0)
    assert isinstance(fresh, PromptAnchor)
    few = [start.controls, *islice(start.others, 1)]
    augment = first_alone(own)

    def cropped(scene: Callable[[], Scene]) -> Scene:
        return augment(scene(), 0)

    @torch.no_grad()
    def search() -> None:
        for controls in few:
            plain_loop.prompt_loss(plain_loop.one_by_one(begin, controls, fresh), objective)

    def step() -> None:
        leaf = start.controls[name].detach().clone().requires_grad_()
        scenes = plain_loop.one_by_one(begin, {name: leaf}, fresh)
        plain_loop.prompt_loss([partial(cropped, scene) for scene in scenes], objective)
        with torch.no_grad():
            plain_loop.prompt_loss(plain_loop.one_by_one(begin, {name: leaf}, anchor), objective)

    @torch.no_grad()
    def end() -> None:
        course = begin.course(anchor.seeds, "report", 0)
        for scene in plain_loop.one_by_one(begin, start.controls, replace(anchor, course=course)):
            scene()

    plain_loop.recomputed(begin.networks)
    try:
        found = {
            "search": seconds(search) / len(few) * (1 + len(start.others)), "step": seconds(step), "end": seconds(end)
        }  # fmt: skip
    finally:
        begin.networks.unet.disable_gradient_checkpointing()
        begin.networks.vae.disable_gradient_checkpointing()
    return totalled(found, own.steps)
