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
from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import PromptToPrompt, Scene

MAX_BATCH_SIZE = 8  # pictures at once that `auto` asks for: more are hardly faster
MIN_FAST_BATCH_SIZE = 4  # of them without recomputation are faster than `MAX_BATCH_SIZE` with it
MEMORY_FRACTION = 0.8  # of the free memory that a batch may take
CHECKPOINTING_MODES = ("none", "step", "block")
GIB = 1024**3


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes that one picture keeps for the backward pass. step, step_with_injection: in a sampler step without and with
    injected maps; step_recomputed: in a step whose UNet's blocks are computed again; decoding: in decoding and in what
    classifiers see of it; attention_maps: what one recorded step leaves."""

    step: int
    step_with_injection: int
    step_recomputed: int
    decoding: int
    attention_maps: int

    def peak_bytes(self, mode: str, steps: int, injected: int, recorded: int) -> int:
        """Bytes of a picture's chain of so many steps and its end, at its highest, with its constants."""
        chain = {
            "none": injected * self.step_with_injection + (steps - injected) * self.step,
            "step": self.step_with_injection,
            "block": steps * self.step_recomputed + self.step_with_injection // 2,
        }[mode]
        return chain + self.decoding + (recorded + injected) * self.attention_maps


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is computed. batch_size: problems at once; gradient_checkpointing: see `models.generator.chain`;
    predicted_bytes, free_bytes: in bytes."""

    batch_size: int
    gradient_checkpointing: str
    predicted_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        fits = "" if self.predicted_bytes <= self.free_bytes else ", which may not be enough"
        return (
            f"{self.batch_size} at once, gradient_checkpointing={self.gradient_checkpointing}: "
            f"{self.predicted_bytes / GIB:.1f} GiB predicted of {self.free_bytes / GIB:.1f} GiB free{fits}"
        )


def plan_memory(
    generator: LatentDiffusion | NoGenerator, classifiers: Sequence[Classifier], augment: RandomCrops,
    prompt_to_prompt: PromptToPrompt, pictures: int, batch: int | None, problems: int,
) -> MemoryPlan:  # fmt: skip
    """The batch, where None is given, and the recomputation, where the generator leaves it to memory.

    prompt_to_prompt: of the run; pictures: of a problem in one step's graph; problems: how many there are. The first of
    `CHECKPOINTING_MODES` that has room for the batch, or for `MIN_FAST_BATCH_SIZE` problems of one that is to be
    chosen; where none has, the one that takes least.
    """
    if isinstance(generator, NoGenerator):
        own, steps, injected, recorded = measure_classifier_footprint(generator, classifiers, augment), 0, 0, 0
    else:
        own, steps = measure_footprint(generator, classifiers, augment), len(generator)
        injected = math.ceil(prompt_to_prompt.max_cross_replace_steps * steps)
        recorded = max(generator.attention_maps.steps(steps).stop, injected)
    modes = CHECKPOINTING_MODES if generator.gradient_checkpointing == "auto" else (generator.gradient_checkpointing,)
    need = {mode: pictures * own.peak_bytes(mode, steps, injected, recorded) for mode in modes}
    free = free_memory(generator.device)
    fitting = {mode: int(MEMORY_FRACTION * free // max(bytes_, 1)) for mode, bytes_ in need.items()}
    wanted = batch or min(problems, MAX_BATCH_SIZE)
    enough = batch or min(problems, MIN_FAST_BATCH_SIZE)
    least = min(need, key=lambda mode: need[mode])
    mode = next((mode for mode in modes if fitting[mode] >= enough), least)
    chosen = batch or max(1, min(wanted, fitting[mode]))
    return MemoryPlan(chosen, mode, chosen * need[mode], free)


def measure_footprint(
    generator: LatentDiffusion, classifiers: Sequence[Classifier], augment: RandomCrops
) -> MemoryFootprint:
    """Measured on one drawn picture, by what autograd keeps."""
    networks = generator.networks
    course = generator.sampler.sample_inputs(networks, [0], generator.latent_size)
    embeddings = generator.step_embeddings(networks.embed([""]), course)
    now = {name: values[:, 0].clone().requires_grad_() for name, values in embeddings.items()}
    modules = [networks.unet, networks.vae, *(c for c in classifiers if isinstance(c, torch.nn.Module))]
    weights = weight_addresses(modules)

    def step(record: dict[str, Tensor] | None = None) -> Tensor:
        return generator.step(course["latent"], now, course["noise"][:, 0], 0, recorded_maps=record)[0]

    def end() -> list[Tensor]:
        image = networks.decode(course["latent"].clone().requires_grad_())
        return augmented_logits(image, course["latent"], classifiers, augment)

    maps: dict[str, Tensor] = {}
    mode = generator.gradient_checkpointing
    try:
        generator.set_gradient_checkpointing("block")
        blocks = saved_tensor_bytes(step, weights)
        generator.set_gradient_checkpointing("none")
        plain, mapped = saved_tensor_bytes(step, weights), saved_tensor_bytes(lambda: step(maps), weights)
    finally:
        generator.set_gradient_checkpointing(mode)
    recorded = sum(m.nbytes for m in maps.values())
    return MemoryFootprint(
        plain, mapped, blocks, generator.last_x0_predictions * saved_tensor_bytes(end, weights), recorded
    )


def measure_classifier_footprint(
    generator: NoGenerator, classifiers: Sequence[Classifier], augment: RandomCrops
) -> MemoryFootprint:
    """The same without a generator: what classifiers see of an image."""
    side = generator.resolution
    image = torch.full((1, 3, side, side), 0.5, device=generator.device, requires_grad=True)
    modules = [classifier for classifier in classifiers if isinstance(classifier, torch.nn.Module)]
    weights = weight_addresses(modules)
    return MemoryFootprint(
        0,
        0,
        0,
        saved_tensor_bytes(lambda: augmented_logits(image, generator.encode(image), classifiers, augment), weights),
        0,
    )


def augmented_logits(
    image: Tensor, latent: Tensor, classifiers: Sequence[Classifier], augment: RandomCrops
) -> list[Tensor]:
    """The logits of every classifier for the augmented views of one image."""
    shown = augment(Scene(image, latent, image.unsqueeze(1)), [0], 0, classifiers[0].size)
    return [classifier(shown.views_at(classifier.size).flatten(0, 1)).logits for classifier in classifiers]


def weight_addresses(modules: Sequence[torch.nn.Module]) -> set[int]:
    """The addresses of networks' parameters and buffers, which no graph keeps anew."""
    return {p.untyped_storage().data_ptr() for m in modules for p in [*m.parameters(), *m.buffers()]}


def saved_tensor_bytes(compute: Callable[[], object], weights: set[int]) -> int:
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
