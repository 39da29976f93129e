"""Samplers: the steps of a chain from noise to an image, and its inversion; DDIM and consistency sampling (LCM)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator import inversion
from classifier_lens.models.generator.cross_attention import AttentionControl
from classifier_lens.models.generator.noise_schedule import (
    NoiseSchedule,
    classifier_free_guidance,
    ddim_schedule,
    ddim_step,
    lcm_schedule,
    lcm_step,
)
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.pipeline.noise_levels import check_nonzero_snr
from classifier_lens.runner.configuration.value_ranges import ChainSteps, LearningRate, NonNegative, Steps
from classifier_lens.runner.types import UserError

# The inputs of a chain beside its text, batch first: `latent` "b c y x", z_T; `noise` "b t c y x", added by each step;
# `null` "b t l d", N_t of samplers with a null branch.
SamplerInputs = dict[str, Tensor]


@dataclass(frozen=True)
class NullTextInversion:
    """Settings of null-text inversion, see `models.generator.inversion.null_text_inversion`."""

    lr: LearningRate
    inner_steps: Steps
    early_stop_epsilon: NonNegative
    early_stop_epsilon_growth: NonNegative
    update_before_stop: bool


class Sampler(Protocol):
    """T steps from noise to an image. embedding_names: names of the embeddings that the UNet gets at every step;
    fingerprint: all settings that the chain depends on, beside the networks."""

    embedding_names: ClassVar[tuple[str, ...]]

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def fingerprint(self) -> object: ...

    def inversion_fingerprint(self, seed: int) -> object:
        """All settings that an image's inversion depends on, beside the networks and `fingerprint`."""

    def check_inversion(self) -> None:
        """Raise UserError if images cannot be inverted."""

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: AttentionControl | None
    ) -> Float[Tensor, "b c y x"]:
        """The prediction of step i, ε or v as the schedule says; embeddings: "b l d" by name; maps: None for none."""

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Step i with a prediction -> (next latent, x0-prediction). noise: that this step adds."""

    def sample_inputs(self, networks: Networks, seeds: Sequence[int], side: int) -> SamplerInputs:
        """The inputs of chains that generate images, each sampled from its own seed. side: of the latents."""

    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> SamplerInputs:
        """Inputs with which the chains of these prompts return to the latents z0; missing ones are the sampled ones."""


@dataclass(frozen=True)
class DdimSampler:
    """DDIM with classifier-free guidance, and null-text inversion. guidance_interval: the steps with guidance; other
    steps have the text branch alone."""

    schedule: NoiseSchedule
    guidance_scale: float
    null_text: NullTextInversion | None
    guidance_interval: range
    embedding_names: ClassVar[tuple[str, ...]] = ("text", "null")

    @property
    def fingerprint(self) -> object:
        return (*self.schedule.as_plain_values(), self.guidance_scale, self.guidance_interval)

    def inversion_fingerprint(self, seed: int) -> object:
        return self.null_text

    def check_inversion(self) -> None:
        if self.guidance_scale == 1:
            raise UserError(
                "generator.guidance_scale=1: null-text inversion does nothing there, choose a value above 1"
            )
        if self.null_text is None:
            raise UserError("generator.null_text=null: DDIM inverts images by null-text inversion, give its settings")

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: AttentionControl | None
    ) -> Float[Tensor, "b c y x"]:
        if i not in self.guidance_interval:
            return networks.predict(z, self.schedule.timesteps[i], embeddings["text"], maps)
        both = torch.cat([embeddings["null"], embeddings["text"]])
        null, text = networks.predict(torch.cat([z, z]), self.schedule.timesteps[i], both, maps).chunk(2)
        return classifier_free_guidance(null, text, self.guidance_scale)

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        s = self.schedule
        return ddim_step(z, predicted, s.alphas_cumprod[i], s.alphas_cumprod_next[i], s.v_prediction)

    def sample_inputs(self, networks: Networks, seeds: Sequence[int], side: int) -> SamplerInputs:
        latent = networks.sample_noise(seeds, side, 1)[:, 0]
        steps = len(self.schedule)
        null = networks.embed([""])[:, None].repeat(len(seeds), steps, 1, 1)
        return {
            "latent": latent,
            "noise": torch.zeros_like(latent)[:, None].expand(-1, steps, -1, -1, -1),
            "null": null,
        }

    @torch.enable_grad()
    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> SamplerInputs:
        assert self.null_text is not None
        settings = self.null_text
        text, null = networks.embed(prompts), networks.embed([""] * len(prompts))
        trajectory = inversion.ddim_invert(networks.predict, z0, text, self.schedule)
        nulls = inversion.null_text_inversion(
            networks.predict,
            trajectory,
            text,
            null,
            self.schedule,
            self.guidance_scale,
            settings.lr,
            settings.inner_steps,
            settings.early_stop_epsilon,
            settings.early_stop_epsilon_growth,
            self.guidance_interval,
            settings.update_before_stop,
        )
        # Contiguous, as the cache returns it: kernels may round by the layout of a tensor.
        return {"latent": trajectory[:, 0].contiguous(), "null": nulls}


@dataclass(frozen=True)
class LcmSampler:
    """Multistep consistency sampling with one branch (Luo et al., 2023): the noise of every step is an input, that of
    the last step an offset. guidance_scale: input of the UNet, None for a UNet without it."""

    schedule: NoiseSchedule
    guidance_scale: float | None
    embedding_names: ClassVar[tuple[str, ...]] = ("text",)

    @property
    def fingerprint(self) -> object:
        return (*self.schedule.as_plain_values(), self.guidance_scale)

    def inversion_fingerprint(self, seed: int) -> object:
        return ("edit-friendly", seed)

    def check_inversion(self) -> None:
        """Every image can be inverted."""

    def predict(
        self, networks: Networks, z: Tensor, embeddings: Mapping[str, Tensor], i: int, maps: AttentionControl | None
    ) -> Float[Tensor, "b c y x"]:
        return networks.predict(z, self.schedule.timesteps[i], embeddings["text"], maps, self.guidance_scale)

    def advance(self, z: Tensor, predicted: Tensor, noise: Tensor, i: int) -> tuple[Tensor, Tensor]:
        s = self.schedule
        z_next, x0 = lcm_step(
            z, predicted, noise, s.timesteps[i], s.alphas_cumprod[i], s.alphas_cumprod_next[i], s.v_prediction
        )
        return (z_next, x0) if i < len(s) - 1 else (x0 + noise, x0 + noise)

    def sample_inputs(self, networks: Networks, seeds: Sequence[int], side: int) -> SamplerInputs:
        noise = networks.sample_noise(seeds, side, len(self.schedule))
        return {"latent": noise[:, 0], "noise": torch.cat([noise[:, 1:], torch.zeros_like(noise[:, :1])], dim=1)}

    @torch.no_grad()
    def invert(self, networks: Networks, z0: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> SamplerInputs:
        text = networks.embed(prompts)
        noise = networks.sample_noise(seeds, z0.shape[-1], len(self.schedule)).to(z0)

        def predict_x0(z: Tensor, i: int) -> Tensor:
            predicted = self.predict(networks, z, {"text": text}, i, None)
            return self.advance(z, predicted, torch.zeros_like(z), i)[1]

        latent, step_noise = inversion.edit_friendly_inversion(predict_x0, z0, noise, self.schedule)
        return {"latent": latent, "noise": step_noise}


def ddim(
    networks: Networks,
    steps: int,
    guidance_scale: float,
    null_text: NullTextInversion | None,
    guidance_interval: Sequence[float],
) -> DdimSampler:
    """DDIM with the noise levels and timesteps of the pipeline's scheduler. guidance_interval: start and end of the
    guidance as shares of the chain (Kynkäänniemi et al., 2024). Raises UserError for other numbers, and see
    `check_nonzero_snr`."""
    first, last = guidance_interval
    if not 0 <= first < last <= 1:
        raise UserError(
            f"generator.guidance_interval={list(guidance_interval)}: allowed are two growing shares of the "
            "chain, in 0 … 1"
        )
    levels = networks.scheduler
    schedule = ddim_schedule(
        levels.alphas_cumprod, steps, levels.config.steps_offset, float(levels.final_alpha_cumprod),
        levels.config.timestep_spacing,
    )  # fmt: skip
    schedule = replace(schedule, v_prediction=networks.v_prediction)
    check_nonzero_snr(schedule)
    return DdimSampler(schedule, guidance_scale, null_text, range(math.floor(first * steps), math.ceil(last * steps)))


def lcm(
    networks: Networks,
    steps: int,
    guidance_scale: float,
    null_text: NullTextInversion | None,
    guidance_interval: Sequence[float],
    original_inference_steps: ChainSteps,
) -> LcmSampler:
    """Consistency sampling; original_inference_steps: of the solver that the model was distilled from.

    Raises UserError for settings that have no effect.
    """
    if null_text is not None:
        raise UserError("generator.null_text: has no effect with a consistency model, set it to null")
    if list(guidance_interval) != [0, 1]:
        raise UserError("generator.guidance_interval: has no effect with a consistency model, set it to [0.0, 1.0]")
    if guidance_scale != 1 and not networks.has_guidance_embedding:
        raise UserError(
            f"generator.guidance_scale={guidance_scale}: this UNet has no guidance scale as input, allowed is 1"
        )
    schedule = replace(
        lcm_schedule(networks.scheduler.alphas_cumprod, steps, original_inference_steps),
        v_prediction=networks.v_prediction,
    )
    check_nonzero_snr(schedule)
    return LcmSampler(schedule, guidance_scale if networks.has_guidance_embedding else None)
