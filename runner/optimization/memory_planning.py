"""The memory that a batch needs, predicted from one image, and the batch size and the recomputation that fit."""

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

MAX_BATCH_SIZE = 8  # of batch=auto: larger batches are hardly faster per image
MIN_FAST_BATCH_SIZE = 4  # without recomputation, faster per image than `MAX_BATCH_SIZE` with it
MEMORY_FRACTION = 0.8  # share of the free memory that a batch may use
CHECKPOINTING_MODES = ("none", "step", "block")
GIB = 1024**3


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes that one image needs for the backward pass.

    step, step_with_injection: of a sampler step without and with injected maps; step_recomputed: of a step whose UNet
    blocks are recomputed; decoding: of the decoder, the augmentation and the classifiers; attention_maps: of the maps
    of one recorded step."""

    step: int
    step_with_injection: int
    step_recomputed: int
    decoding: int
    attention_maps: int

    def peak_bytes(self, mode: str, steps: int, injected: int, recorded: int) -> int:
        """The largest number of bytes at once for one image, with its constants: of the chain, the decoder and the
        classifiers."""
        chain = {
            "none": injected * self.step_with_injection + (steps - injected) * self.step,
            "step": self.step_with_injection,
            "block": steps * self.step_recomputed + self.step_with_injection // 2,
        }[mode]
        return chain + self.decoding + (recorded + injected) * self.attention_maps


@dataclass(frozen=True)
class MemoryPlan:
    """batch_size: problems at once; gradient_checkpointing: see `models.generator.chain`; predicted_bytes: that the
    batch needs; free_bytes: at the start."""

    batch_size: int
    gradient_checkpointing: str
    predicted_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        hint = "" if self.predicted_bytes <= self.free_bytes else ", which may not be enough"
        return (
            f"{self.batch_size} at once, gradient_checkpointing={self.gradient_checkpointing}: "
            f"{self.predicted_bytes / GIB:.1f} GiB predicted of {self.free_bytes / GIB:.1f} GiB free{hint}"
        )


def plan_memory(
    generator: LatentDiffusion | NoGenerator, classifiers: Sequence[Classifier], augment: RandomCrops,
    prompt_to_prompt: PromptToPrompt, images_in_graph: int, batch: int | None, problems: int,
) -> MemoryPlan:  # fmt: skip
    """The batch size, unless `batch` sets it, and the recomputation, if the generator leaves it to the memory.

    prompt_to_prompt: of the run; images_in_graph: of a problem in the graph of one step; problems: how many there are.
    The recomputation is the first of `CHECKPOINTING_MODES` that has room for the batch, or for `MIN_FAST_BATCH_SIZE`
    problems if the batch size is not set; where none has, the one that needs least memory.
    """
    if isinstance(generator, NoGenerator):
        footprint, steps, injected, recorded = measure_classifier_footprint(generator, classifiers, augment), 0, 0, 0
    else:
        footprint, steps = measure_footprint(generator, classifiers, augment), len(generator)
        injected = math.ceil(prompt_to_prompt.max_cross_replace_steps * steps)
        recorded = max(generator.attention_maps.steps(steps).stop, injected)
    modes = CHECKPOINTING_MODES if generator.gradient_checkpointing == "auto" else (generator.gradient_checkpointing,)
    needed = {mode: images_in_graph * footprint.peak_bytes(mode, steps, injected, recorded) for mode in modes}
    free = free_memory(generator.device)
    fitting = {mode: int(MEMORY_FRACTION * free // max(bytes_, 1)) for mode, bytes_ in needed.items()}
    largest = batch or min(problems, MAX_BATCH_SIZE)
    sufficient = batch or min(problems, MIN_FAST_BATCH_SIZE)
    smallest_mode = min(needed, key=lambda mode: needed[mode])
    mode = next((mode for mode in modes if fitting[mode] >= sufficient), smallest_mode)
    batch_size = batch or max(1, min(largest, fitting[mode]))
    return MemoryPlan(batch_size, mode, batch_size * needed[mode], free)


def measure_footprint(
    generator: LatentDiffusion, classifiers: Sequence[Classifier], augment: RandomCrops
) -> MemoryFootprint:
    """Measured on one generated image, from the tensors that autograd saves."""
    networks = generator.networks
    inputs = generator.sampler.sample_inputs(networks, [0], generator.latent_size)
    embeddings = generator.step_embeddings(networks.embed([""]), inputs)
    step_embeddings = {name: values[:, 0].clone().requires_grad_() for name, values in embeddings.items()}
    modules = [networks.unet, networks.vae, *(c for c in classifiers if isinstance(c, torch.nn.Module))]
    weights = weight_addresses(modules)

    def step(recorded_maps: dict[str, Tensor] | None = None) -> Tensor:
        noise = inputs["noise"][:, 0]
        return generator.step(inputs["latent"], step_embeddings, noise, 0, recorded_maps=recorded_maps)[0]

    def decoding() -> list[Tensor]:
        image = networks.decode(inputs["latent"].clone().requires_grad_())
        return augmented_logits(image, inputs["latent"], classifiers, augment)

    maps: dict[str, Tensor] = {}
    mode = generator.gradient_checkpointing
    try:
        generator.set_gradient_checkpointing("block")
        step_recomputed = saved_tensor_bytes(step, weights)
        generator.set_gradient_checkpointing("none")
        plain, with_maps = saved_tensor_bytes(step, weights), saved_tensor_bytes(lambda: step(maps), weights)
    finally:
        generator.set_gradient_checkpointing(mode)
    return MemoryFootprint(
        step=plain,
        step_with_injection=with_maps,
        step_recomputed=step_recomputed,
        decoding=generator.last_x0_predictions * saved_tensor_bytes(decoding, weights),
        attention_maps=sum(m.nbytes for m in maps.values()),
    )


def measure_classifier_footprint(
    generator: NoGenerator, classifiers: Sequence[Classifier], augment: RandomCrops
) -> MemoryFootprint:
    """The same without a generator: the classifiers' part for one image."""
    side = generator.resolution
    image = torch.full((1, 3, side, side), 0.5, device=generator.device, requires_grad=True)
    weights = weight_addresses([classifier for classifier in classifiers if isinstance(classifier, torch.nn.Module)])
    decoding = saved_tensor_bytes(
        lambda: augmented_logits(image, generator.encode(image), classifiers, augment), weights
    )
    return MemoryFootprint(step=0, step_with_injection=0, step_recomputed=0, decoding=decoding, attention_maps=0)


def augmented_logits(
    image: Tensor, latent: Tensor, classifiers: Sequence[Classifier], augment: RandomCrops
) -> list[Tensor]:
    """The logits of every classifier for the augmented views of one image."""
    scene = augment(Scene(image, latent, image.unsqueeze(1)), [0], 0, classifiers[0].size)
    return [classifier(scene.views_at(classifier.size).flatten(0, 1)).logits for classifier in classifiers]


def weight_addresses(modules: Sequence[torch.nn.Module]) -> set[int]:
    """The addresses of the networks' parameters and buffers, which a graph does not copy."""
    return {p.untyped_storage().data_ptr() for m in modules for p in [*m.parameters(), *m.buffers()]}


def saved_tensor_bytes(compute: Callable[[], object], weights: set[int]) -> int:
    """Bytes that autograd saves in a computation: each storage once, without `weights` (their addresses)."""
    saved: dict[int, int] = {}

    def save(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
        result = compute()  # held, so that no address is used twice
    del result
    return sum(saved.values())


def free_memory(device: torch.device) -> int:
    """Bytes that are free for this process: of the GPU, or the smallest number of the machine, the control groups and
    `ulimit -v`."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    free = [_machine(), *_control_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(free))


def _machine() -> int:
    """Bytes of the machine's available memory."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _control_groups(root: Path, process_groups: Path) -> list[int]:
    """Bytes below the limits of this process's control group and of its parents. The page cache of files can be freed
    and counts as free. root: of the file system of control groups; process_groups: file of the process's groups."""
    free = []
    for line in process_groups.read_text().splitlines() if process_groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version_2 = controllers == ""
        names = ("memory.max", "memory.current") if version_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        top = root if version_2 else root / "memory"
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            limit, used = (group / name for name in names)
            if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
                free.append(int(text) - int(used.read_text()) + _inactive_file_bytes(group / "memory.stat"))
            if group == top:
                break
    return free


def _inactive_file_bytes(stat: Path) -> int:
    """Bytes of a control group in the inactive page cache of files."""
    lines = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
