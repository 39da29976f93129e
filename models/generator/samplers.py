"""How a chain goes from noise to a picture, and where the chain of a given picture begins: DDIM and the LCM's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator import inversion
from classifier_lens.models.generator.cross_attention import MapControl
from classifier_lens.models.generator.noise_schedule import (
    Schedule,
    ddim_schedule,
    ddim_step,
    guide,
    lcm_schedule,
    lcm_step,
)
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.pipeline.noise_levels import check_signal
from classifier_lens.runner.configuration.value_ranges import ChainSteps, NonNegative, Rate, Steps
from classifier_lens.runner.types import UserError

# What a chain follows from beside its text, batch first: `latent` "b c y x", z_T; `noise` "b t c y x", what each step
# adds; `null` "b t l d", N_t of samplers with a null branch.
Course = dict[str, Tensor]


@dataclass(frozen=True)
class NullText:
    """Settings of null-text inversion: see `models.generator.inversion.null_text`."""

    rate: Rate
    inner_steps: Steps
    tolerance: NonNegative
    tolerance_growth: NonNegative
    last_update: bool


class Sampler(Protocol):
    """T steps from noise to a picture. embeddings: what the UNet is called with at every step, by name; setting:
    everything beside the networks that a chain follows from."""

    embeddings: ClassVar[tuple[str, ...]]

    @property
    def schedule(self) -> Schedule: ...

    @property
    def setting(self) -> object: ...

    def inversion(self, seed: int) -> object:
        """Everything beside the networks and `setting` that a picture's course follows from."""

    def check_inversion(self) -> None:
        """Raise UserError where pictures cannot be inverted."""

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: MapControl | None
    ) -> Float[Tensor, "b c y x"]:
        """What step i takes, ε or v as the schedule says; embeddings "b l d" by name."""

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Step i with a prediction -> (next latent, x0-prediction). noise: what this step adds."""

    def draw(self, networks: Networks, seeds: Sequence[int], side: int) -> Course:
        """The courses of drawn pictures, each from its own seed."""

    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Course:
        """The parts of courses whose chains return to the latents z0 of pictures with these prompts; what is missing is
        as drawn."""


@dataclass(frozen=True)
class Ddim:
    """DDIM with classifier-free guidance, in the other steps by the text branch alone; pictures are found by null-text
    inversion. guided: the steps that are guided."""

    schedule: Schedule
    guidance: float
    null_text: NullText | None
    guided: range
    embeddings: ClassVar[tuple[str, ...]] = ("text", "null")

    @property
    def setting(self) -> object:
        return (*self.schedule.told(), self.guidance, self.guided)

    def inversion(self, seed: int) -> object:
        return self.null_text

    def check_inversion(self) -> None:
        if self.guidance == 1:
            raise UserError("generator.guidance=1: null-text inversion does nothing there, choose a value above 1")
        if self.null_text is None:
            raise UserError("generator.null_text=null: DDIM inverts pictures by null-text inversion, give its settings")

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: MapControl | None
    ) -> Float[Tensor, "b c y x"]:
        if i not in self.guided:
            return networks.predict(z, self.schedule.timesteps[i], embeddings["text"], maps)
        both = torch.cat([embeddings["null"], embeddings["text"]])
        null, text = networks.predict(torch.cat([z, z]), self.schedule.timesteps[i], both, maps).chunk(2)
        return guide(null, text, self.guidance)

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        s = self.schedule
        return ddim_step(z, predicted, s.alphas[i], s.alphas_next[i], s.velocity)

    def draw(self, networks: Networks, seeds: Sequence[int], side: int) -> Course:
        latent = networks.noise(seeds, side, 1)[:, 0]
        steps = len(self.schedule)
        null = networks.embed([""])[:, None].repeat(len(seeds), steps, 1, 1)
        return {
            "latent": latent,
            "noise": torch.zeros_like(latent)[:, None].expand(-1, steps, -1, -1, -1),
            "null": null,
        }

    @torch.enable_grad()
    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Course:
        assert self.null_text is not None
        settings = self.null_text
        text, null = networks.embed(prompts), networks.embed([""] * len(prompts))
        trajectory = inversion.ddim_invert(networks.predict, z0, text, self.schedule)
        nulls = inversion.null_text(
            networks.predict, trajectory, text, null, self.schedule, self.guidance, settings.rate,
            settings.inner_steps, settings.tolerance, settings.tolerance_growth, self.guided, settings.last_update,
        )  # fmt: skip
        # Contiguous, as what a cache gives back: kernels may round by a tensor's layout.
        return {"latent": trajectory[:, 0].contiguous(), "null": nulls}


@dataclass(frozen=True)
class Lcm:
    """Multistep consistency sampling, one branch (Luo et al., 2023): the noise of every step belongs to the course, and
    that of the last one is an offset. guidance: what the UNet is told, None for one that is not told any."""

    schedule: Schedule
    guidance: float | None
    embeddings: ClassVar[tuple[str, ...]] = ("text",)

    @property
    def setting(self) -> object:
        return (*self.schedule.told(), self.guidance)

    def inversion(self, seed: int) -> object:
        return ("edit-friendly", seed)

    def check_inversion(self) -> None:
        """Every picture can be inverted."""

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: MapControl | None
    ) -> Float[Tensor, "b c y x"]:
        return networks.predict(z, self.schedule.timesteps[i], embeddings["text"], maps, self.guidance)

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        s = self.schedule
        following, x0 = lcm_step(z, predicted, noise, s.timesteps[i], s.alphas[i], s.alphas_next[i], s.velocity)
        return (following, x0) if i < len(s) - 1 else (x0 + noise, x0 + noise)

    def draw(self, networks: Networks, seeds: Sequence[int], side: int) -> Course:
        drawn = networks.noise(seeds, side, len(self.schedule))
        return {"latent": drawn[:, 0], "noise": torch.cat([drawn[:, 1:], torch.zeros_like(drawn[:, :1])], dim=1)}

    @torch.no_grad()
    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Course:
        text = networks.embed(prompts)
        noise = networks.noise(seeds, z0.shape[-1], len(self.schedule)).to(z0)

        def end(z: Tensor, i: int) -> Tensor:
            predicted = self.predict(networks, z, {"text": text}, i, None)
            return self.advance(z, predicted, torch.zeros_like(z), i)[1]

        latent, constants = inversion.edit_friendly(end, z0, noise, self.schedule)
        return {"latent": latent, "noise": constants}


def ddim(
    networks: Networks, steps: int, guidance: float, null_text: NullText | None, guided: Sequence[float]
) -> Ddim:  # fmt: skip
    """DDIM with the noise levels and times of the pipeline's scheduler. guided: from which share of the chain to which
    it is guided (Kynkäänniemi et al., 2024). Raises UserError for shares that are none, and see `check_signal`."""
    first, last = guided
    if not 0 <= first < last <= 1:
        raise UserError(f"generator.guided={list(guided)}: allowed are two growing shares of the chain, in 0 … 1")
    levels = networks.scheduler
    schedule = ddim_schedule(
        levels.alphas_cumprod, steps, levels.config.steps_offset, float(levels.final_alpha_cumprod),
        levels.config.timestep_spacing,
    )  # fmt: skip
    schedule = replace(schedule, velocity=networks.velocity)
    check_signal(schedule)
    return Ddim(schedule, guidance, null_text, range(math.floor(first * steps), math.ceil(last * steps)))


def lcm(
    networks: Networks, steps: int, guidance: float, null_text: NullText | None, guided: Sequence[float],
    original_steps: ChainSteps,
) -> Lcm:  # fmt: skip
    """Consistency sampling; original_steps: of the solver that the model was distilled from.

    Raises UserError for settings that have no effect with it.
    """
    if null_text is not None:
        raise UserError("generator.null_text: has no effect with a consistency model, set it to null")
    if list(guided) != [0, 1]:
        raise UserError("generator.guided: has no effect with a consistency model, set it to [0.0, 1.0]")
    if guidance != 1 and not networks.tells_guidance:
        raise UserError(f"generator.guidance={guidance}: this UNet is not told any guidance scale, allowed is 1")
    schedule = replace(
        lcm_schedule(networks.scheduler.alphas_cumprod, steps, original_steps), velocity=networks.velocity
    )
    check_signal(schedule)
    return Lcm(schedule, guidance if networks.tells_guidance else None)
