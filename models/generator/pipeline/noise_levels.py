"""The noise levels that a UNet was trained with, from the settings of its pipeline's scheduler."""

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
# Settings that determine the levels. Schedulers have different defaults.
NOISE_LEVEL_SETTINGS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip
UNSUPPORTED_SETTINGS = ("thresholding", "clip_sample")  # clipping of x0-predictions, for pixels and not for latents


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
    """The levels, timesteps and kind of prediction of any scheduler, as a DDIM scheduler.

    key: configuration key, for errors. Raises UserError for a scheduler without such levels, such as one of flow
    matching, and for unsupported settings.
    """
    config: Mapping[str, Any] = scheduler.config
    kind = type(scheduler).__name__
    if not isinstance(alphas_cumprod := getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise UserError(f"{key}: its scheduler is a {kind}, without noise levels ᾱ; allowed are those of DDIM's kind")
    if (prediction := config.get("prediction_type", "epsilon")) not in PREDICTION_TYPES:
        raise UserError(
            f"{key}: prediction_type={prediction} in its scheduler: allowed are {', '.join(PREDICTION_TYPES)}"
        )
    # Defaults do not count: pipelines of latents set these settings to false themselves.
    defaults = config.get("_use_default_values", ())
    if unsupported := [name for name in UNSUPPORTED_SETTINGS if config.get(name) and name not in defaults]:
        raise UserError(f"{key}: {unsupported[0]}=true in its scheduler: only false is supported")
    settings = {name: config[name] for name in NOISE_LEVEL_SETTINGS if name in config}
    try:
        levels = DDIMScheduler.from_config(config, **settings, clip_sample=False)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{key}: its {kind} cannot be read as DDIM's ({first_line(error)})") from error
    _check_levels(key, levels, alphas_cumprod)
    return levels


def _check_levels(key: str, levels: DDIMScheduler, expected: torch.Tensor) -> None:
    """Raise UserError for levels that are invalid, or different from those of the pipeline's own scheduler."""
    alphas, count = levels.alphas_cumprod, levels.config.num_train_timesteps
    if len(alphas) != count:
        raise UserError(f"{key}: trained_betas has {len(alphas)} values in its scheduler, num_train_timesteps={count}")
    falling = ((levels.betas >= 0) & (levels.betas <= 1)).all()
    equal = alphas.shape == expected.shape and torch.allclose(alphas, expected.to(alphas), rtol=0, atol=1e-6)
    if not falling or not equal:
        raise UserError(f"{key}: the betas of its scheduler give no falling ᾱ in 0 … 1, or none that DDIM has")
    if (spacing := levels.config.timestep_spacing) not in TIMESTEP_SPACINGS:
        raise UserError(
            f"{key}: timestep_spacing={spacing} in its scheduler: allowed are {', '.join(TIMESTEP_SPACINGS)}"
        )


def check_nonzero_snr(schedule: NoiseSchedule) -> None:
    """Raise UserError for a step at ᾱ = 0 with a prediction of ε: no x0-prediction follows from it there. From v one
    does."""
    if (time := schedule.zero_snr_timestep) is not None and not schedule.v_prediction:
        raise UserError(
            f"generator.path: its scheduler has no signal left at time {time} (rescale_betas_zero_snr, ᾱ = 0), where "
            "no x0 follows from a predicted ε; allowed are prediction_type=v_prediction of a UNet that learned it, "
            "timestep_spacing=leading with sampler=ddim, or levels above 0"
        )
