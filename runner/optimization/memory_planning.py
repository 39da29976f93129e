"""How much memory a batch takes, predicted from one picture, and the batch and the recomputation that fit."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.no_generator import ImageSpace
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import Scene, Schedules

MOST = 8  # pictures at once that `auto` asks for: more are hardly faster
ENOUGH = 4  # of them without recomputation are faster than `MOST` with it
SHARE = 0.8  # of the free memory that a batch may take
FAST_FIRST = ("none", "step", "block")
GIB = 1024**3


@dataclass(frozen=True)
class Footprint:
    """Bytes that one picture keeps for the backward pass. plain, mapped: in a sampler step without and with injected
    maps; blocks: in a step whose UNet's blocks are computed again; end: in decoding and in what classifiers see of it;
    maps: what one recorded step leaves."""

    plain: int
    mapped: int
    blocks: int
    end: int
    maps: int

    def graph(self, mode: str, steps: int, injected: int, recorded: int) -> int:
        """Bytes of a picture's chain of so many steps and its end, at its highest, with its constants."""
        chain = {
            "none": injected * self.mapped + (steps - injected) * self.plain,
            "step": self.mapped,
            "block": steps * self.blocks + self.mapped // 2,
        }[mode]
        return chain + self.end + (recorded + injected) * self.maps


@dataclass(frozen=True)
class Plan:
    """How a run is computed. batch: problems at once; recompute: see `models.generator.chain`; predicted, free: in
    bytes."""

    batch: int
    recompute: str
    predicted: int
    free: int

    def __str__(self) -> str:
        fits = "" if self.predicted <= self.free else ", which may not be enough"
        return (
            f"{self.batch} at once, recompute={self.recompute}: {self.predicted / GIB:.1f} GiB predicted of "
            f"{self.free / GIB:.1f} GiB free{fits}"
        )


def plan(
    generator: LatentDiffusion | ImageSpace, classifiers: Sequence[Classifier], augment: RandomCrops,
    schedules: Schedules, pictures: int, batch: int | None, problems: int,
) -> Plan:  # fmt: skip
    """The batch, where None is given, and the recomputation, where the generator leaves it to memory.

    schedules: the task's of Prompt-to-Prompt, in the place of the generator's; pictures: of a problem in one step's
    graph; problems: how many there are. The first of `FAST_FIRST` that has room
    for the batch, or for `ENOUGH` problems of one that is to be chosen; where none has, the one that takes least.
    """
    if isinstance(generator, ImageSpace):
        own, steps, injected, recorded = seen(generator, classifiers, augment), 0, 0, 0
    else:
        own, steps = footprint(generator, classifiers, augment), len(generator)
        injected = math.ceil(max({**generator.schedules, **schedules}["inject"]) * steps)
        recorded = max(generator.maps.steps(steps).stop, injected)
    modes = FAST_FIRST if generator.recompute == "auto" else (generator.recompute,)
    need = {mode: pictures * own.graph(mode, steps, injected, recorded) for mode in modes}
    free = free_memory(generator.device)
    fitting = {mode: int(SHARE * free // max(bytes_, 1)) for mode, bytes_ in need.items()}
    wanted = batch or min(problems, MOST)
    enough = batch or min(problems, ENOUGH)
    least = min(need, key=lambda mode: need[mode])
    mode = next((mode for mode in modes if fitting[mode] >= enough), least)
    chosen = batch or max(1, min(wanted, fitting[mode]))
    return Plan(chosen, mode, chosen * need[mode], free)


def footprint(generator: LatentDiffusion, classifiers: Sequence[Classifier], augment: RandomCrops) -> Footprint:
    """Measured on one drawn picture, by what autograd keeps."""
    networks = generator.networks
    course = generator.sampler.draw(networks, [0], generator.latent_side)
    embeddings = generator.base(networks.embed([""]), course)
    now = {name: values[:, 0].clone().requires_grad_() for name, values in embeddings.items()}
    modules = [networks.unet, networks.vae, *(c for c in classifiers if isinstance(c, torch.nn.Module))]
    weights = weights_of(modules)

    def step(record: dict[str, Tensor] | None = None) -> Tensor:
        return generator.step(course["latent"], now, course["noise"][:, 0], 0, record=record)[0]

    def end() -> list[Tensor]:
        image = networks.decode(course["latent"].clone().requires_grad_())
        return judged(image, course["latent"], classifiers, augment)

    maps: dict[str, Tensor] = {}
    mode = generator.recompute
    try:
        generator.recompute_as("block")
        blocks = kept(step, weights)
        generator.recompute_as("none")
        plain, mapped = kept(step, weights), kept(lambda: step(maps), weights)
    finally:
        generator.recompute_as(mode)
    recorded = sum(m.nbytes for m in maps.values())
    return Footprint(plain, mapped, blocks, generator.last * kept(end, weights), recorded)


def seen(generator: ImageSpace, classifiers: Sequence[Classifier], augment: RandomCrops) -> Footprint:
    """The same without a generator: what classifiers see of an image."""
    side = generator.resolution
    image = torch.full((1, 3, side, side), 0.5, device=generator.device, requires_grad=True)
    modules = [classifier for classifier in classifiers if isinstance(classifier, torch.nn.Module)]
    weights = weights_of(modules)
    return Footprint(0, 0, 0, kept(lambda: judged(image, generator.encode(image), classifiers, augment), weights), 0)


def judged(image: Tensor, latent: Tensor, classifiers: Sequence[Classifier], augment: RandomCrops) -> list[Tensor]:
    """The logits of every classifier for the augmented views of one image."""
    shown = augment(Scene(image, latent, image.unsqueeze(1)), [0], 0, classifiers[0].size)
    return [classifier(shown.views_at(classifier.size).flatten(0, 1)).logits for classifier in classifiers]


def weights_of(modules: Sequence[torch.nn.Module]) -> set[int]:
    """The addresses of networks' parameters and buffers, which no graph keeps anew."""
    return {p.untyped_storage().data_ptr() for m in modules for p in [*m.parameters(), *m.buffers()]}


def kept(compute: Callable[[], object], weights: set[int]) -> int:
    """Bytes that autograd keeps of a computation: each storage once, `weights` (by their addresses) not at all."""
    found: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        result = compute()  # held, so that no address is used twice
    del result
    return sum(found.values())


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the GPU, or of the machine, the control group and `ulimit -v`,
    whichever has least."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    left = [_machine(), *_control_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(left))


def _machine() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _control_groups(root: Path, own: Path) -> list[int]:
    """What the limits of this process's group and of those above it leave; pages of files give way and do not count."""
    left = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        new = controllers == ""
        names = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        top = root if new else root / "memory"
        folder = top / place.strip("/")
        for group in (folder, *folder.parents):
            limit, used = (group / name for name in names)
            if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
                left.append(int(text) - int(used.read_text()) + _of_files(group / "memory.stat"))
            if group == top:
                break
    return left


def _of_files(stat: Path) -> int:
    """Bytes of a group that hold pages of files which were not used lately."""
    lines = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
