"""Models of the benchmark: that of the planted world, and Stable Diffusion 1.5's architecture at full size."""

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
    """A model to time. ddim_overrides, lcm_overrides: of a run of counterfactuals, with DDIM and with a consistency
    model; batch_sizes: of the runner, the main one first; variants: settings whose steps are timed; thresholds: of
    ratios to the plain loop, by names of lines; min_utilization: threshold of the share of the machine's throughput in
    percent, None for none."""

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
    size: ModelSize, batches: tuple[int, ...], dtype: str, *overrides: str, inner_steps: int = 10
) -> Iterator[BenchmarkedModel]:
    """Stable Diffusion 1.5 and a consistency model with random weights, and ViT-B/16 at 384 px, on images of noise.
    overrides: further ones of every run.

    The inversion takes all inner steps, since its stopping criterion has no meaning for random weights.
    """
    with TemporaryDirectory(prefix="bench-") as folder:
        plain, consistency = Path(folder) / "sd15", Path(folder) / "lcm"
        torch_dtype = getattr(torch, dtype)
        write_pipeline(plain, size, PNDMScheduler(**SCHEDULER_CONFIG, skip_prk_steps=True), torch_dtype)
        lcm_size = replace(size, unet_kwargs={**size.unet_kwargs, "time_cond_proj_dim": 256})
        write_pipeline(consistency, lcm_size, LCMScheduler(**SCHEDULER_CONFIG), torch_dtype)
        write_images(Path(folder) / "images", max(batches))
        common = (
            *UVCE, "classifier=vit_b", "classifier.pretrained=false", "segmenter=attention", "data=imagenet",
            f"data.path={folder}/images", "task.target=random", f"generator.dtype={dtype}",
            f"optimizer.autocast={'null' if dtype == 'float32' else dtype}",
        )  # fmt: skip
        inversion_overrides = (
            f"generator.null_text.inner_steps={inner_steps}", "generator.null_text.early_stop_epsilon=0.0",
            "generator.null_text.early_stop_epsilon_growth=0.0",
        )  # fmt: skip
        yield BenchmarkedModel(
            (*common, f"generator.path={plain}", *inversion_overrides, *overrides),
            (*common, "sampler=lcm", f"generator.path={consistency}", *overrides), batches,
            (
                "optimizer.autocast=null", "generator.channels_last=true", "generator.gradient_checkpointing=step",
                "generator.gradient_checkpointing=block", "generator.compile=true",
            ),
            {f"uvce batch {batches[0]}": 15.0}, 60.0,
        )  # fmt: skip


def write_images(folder: Path, count: int, side: int = 512) -> None:
    """Write images of smooth noise, labeled as the first classes of ImageNet."""
    coarse = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    for image, class_name in zip(images, class_names(), strict=False):
        (folder / class_name).mkdir(parents=True)
        write_png(folder / class_name / "a.png", image)
