"""The noise levels that a UNet was trained with, out of the settings of its pipeline's scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler

from classifier_lens.models.generator.noise_schedule import TIMESTEP_SPACINGS, NoiseSchedule
from classifier_lens.runner.types import UserError, first_line

PREDICTION_TYPES = ("epsilon", "v_prediction")  # what a UNet may have learned to predict
# Settings that the levels follow from. Schedulers differ in what they mean by leaving one out.
NOISE_LEVEL_SETTINGS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip
UNSUPPORTED_SETTINGS = ("thresholding", "clip_sample")  # they cut x0-predictions, as suits pixels and not latents


def read_scheduler(key: str, folder: Path) -> DDIMScheduler:
    """The noise levels of the scheduler in a pipeline's folder, see `to_ddim_scheduler`."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = getattr(diffusers, config["_class_name"])
        scheduler = kind.from_config(config)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{key}: its scheduler cannot be read ({file}: {first_line(error)})") from error
    return to_ddim_scheduler(key, scheduler)


def to_ddim_scheduler(key: str, scheduler: Any) -> DDIMScheduler:
    """A scheduler's levels, times and kind of prediction as DDIM has them, whatever solver it is itself.

    key: what errors begin with. Raises UserError for a scheduler without such levels, such as one of flow matching, and
    for settings that the steps here do not have.
    """
    config: Mapping[str, Any] = scheduler.config
    kind = type(scheduler).__name__
    if not isinstance(own := getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise UserError(f"{key}: its scheduler is a {kind}, without noise levels ᾱ; allowed are those of DDIM's kind")
    if (said := config.get("prediction_type", "epsilon")) not in PREDICTION_TYPES:
        raise UserError(f"{key}: prediction_type={said} in its scheduler: allowed are {', '.join(PREDICTION_TYPES)}")
    # A setting that is left out is no wish: pipelines of latents set these to false themselves.
    unsaid = config.get("_use_default_values", ())
    if wanted := [name for name in UNSUPPORTED_SETTINGS if config.get(name) and name not in unsaid]:
        raise UserError(f"{key}: {wanted[0]}=true in its scheduler: only false is supported")
    told = {name: config[name] for name in NOISE_LEVEL_SETTINGS if name in config}
    try:
        levels = DDIMScheduler.from_config(config, **told, clip_sample=False)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{key}: its {kind} cannot be read as DDIM's ({first_line(error)})") from error
    _check(key, levels, own)
    return levels


def _check(key: str, levels: DDIMScheduler, own: torch.Tensor) -> None:
    """Raise UserError for levels that are none, or not those that the pipeline's own scheduler has."""
    found, count = levels.alphas_cumprod, levels.config.num_train_timesteps
    if len(found) != count:
        raise UserError(f"{key}: trained_betas has {len(found)} values in its scheduler, num_train_timesteps={count}")
    falling = ((levels.betas >= 0) & (levels.betas <= 1)).all()
    if not falling or found.shape != own.shape or not torch.allclose(found, own.to(found), rtol=0, atol=1e-6):
        raise UserError(f"{key}: the betas of its scheduler give no falling ᾱ in 0 … 1, or none that DDIM has")
    if (spacing := levels.config.timestep_spacing) not in TIMESTEP_SPACINGS:
        raise UserError(
            f"{key}: timestep_spacing={spacing} in its scheduler: allowed are {', '.join(TIMESTEP_SPACINGS)}"
        )


def check_nonzero_snr(schedule: NoiseSchedule) -> None:
    """Raise UserError for a step that begins at ᾱ = 0 with a prediction of ε: that can be made there without a look at
    the picture, and no x0 follows from it. From v one does."""
    if (time := schedule.zero_snr_timestep) is not None and not schedule.v_prediction:
        raise UserError(
            f"generator.path: its scheduler has no signal left at time {time} (rescale_betas_zero_snr, ᾱ = 0), where "
            "no x0 follows from a predicted ε; allowed are prediction_type=v_prediction of a UNet that learned it, "
            "timestep_spacing=leading with sampler=ddim, or levels above 0"
        )
