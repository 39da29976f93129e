"""Which models the benchmark times: the planted world's, and Stable Diffusion 1.5's architecture at its own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from diffusers import LCMScheduler, PNDMScheduler

from classifier_lens.data.imagenet_hierarchy import class_names
from classifier_lens.runner.results.run_folder import write_png
from classifier_lens.scripts.weights.random_pipeline import ModelSize, write_pipeline

UVCE = ("task=uvce",)
APPROXIMATIONS = ("generator.guidance_interval=[0.0,0.6]", "generator.backprop_steps=10", "generator.backprop_steps=5")
SCHEDULER_CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class BenchmarkedModel:
    """What is timed. ddim_overrides, lcm_overrides: the words of a run of counterfactuals, by DDIM and by a consistency
    model; batch_sizes: of the runner, the one first that stands for it; variants: words of which a step is timed;
    thresholds: of ratios to the plain loop, by the names of lines; min_utilization: the wanted share of the machine's
    ceiling in percent, None for any."""

    ddim_overrides: tuple[str, ...]
    lcm_overrides: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    variants: tuple[str, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    min_utilization: float | None = None


PLANTED = BenchmarkedModel(
    UVCE,
    (*UVCE, "sampler=lcm"),
    (8, 1),
    (
        "generator.gradient_checkpointing=step",
        "generator.gradient_checkpointing=block",
        "generator.last_x0_predictions=3",
        *APPROXIMATIONS,
        "generator.steps=10",
        "generator.channels_last=true",
        "generator.compile=true",
    ),
    {"uvce batch 8": 3.0, "uvce batch 1": 1.4, "uvce lcm-4 batch 8": 12.0, "inversion batch 8": 2.5},
)


@contextmanager
def stable_diffusion(
    size: ModelSize, batches: tuple[int, ...], dtype: str, *words: str, inner_steps: int = 10
) -> Iterator[BenchmarkedModel]:
    """Stable Diffusion 1.5 and a consistency model of it with random weights, and ViT-B/16 at 384 px, asked about
    pictures of noise; words: further ones of every run.

    The inversion has all of its inner steps: what random weights make of a picture tells nothing about when to stop.
    """
    with TemporaryDirectory(prefix="bench-") as folder:
        plain, consistency = Path(folder) / "sd15", Path(folder) / "lcm"
        number = getattr(torch, dtype)
        write_pipeline(plain, size, PNDMScheduler(**SCHEDULER_CONFIG, skip_prk_steps=True), number)
        told = replace(size, unet_kwargs={**size.unet_kwargs, "time_cond_proj_dim": 256})
        write_pipeline(consistency, told, LCMScheduler(**SCHEDULER_CONFIG), number)
        write_images(Path(folder) / "pictures", max(batches))
        common = (
            *UVCE, "classifier=vit_b", "classifier.pretrained=false", "segmenter=attention", "data=imagenet",
            f"data.path={folder}/pictures", "task.target=random", f"generator.dtype={dtype}",
            f"optimizer.autocast={'null' if dtype == 'float32' else dtype}",
        )  # fmt: skip
        exact = (
            f"generator.null_text.inner_steps={inner_steps}", "generator.null_text.early_stop_epsilon=0.0",
            "generator.null_text.early_stop_epsilon_growth=0.0",
        )  # fmt: skip
        yield BenchmarkedModel(
            (*common, f"generator.path={plain}", *exact, *words),
            (*common, "sampler=lcm", f"generator.path={consistency}", *words), batches,
            (
                "optimizer.autocast=null", "generator.channels_last=true", "generator.gradient_checkpointing=step",
                "generator.gradient_checkpointing=block", "generator.compile=true",
            ),
            {f"uvce batch {batches[0]}": 15.0}, 60.0,
        )  # fmt: skip


def write_images(folder: Path, count: int, side: int = 512) -> None:
    """Smooth noise under the names of ImageNet's first classes."""
    coarse = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    for picture, number in zip(pictures, class_names(), strict=False):
        (folder / number).mkdir(parents=True)
        write_png(folder / number / "a.png", picture)
