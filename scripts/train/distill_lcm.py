"""Distill a small latent diffusion model into a latent consistency model of 1 to 8 steps.

    python scripts/train/distill_lcm.py data=planted part=trajectories minutes=40
    python scripts/train/distill_lcm.py data=planted part=student minutes=90
    python scripts/train/distill_lcm.py data=cifar10

A consistency function maps every point of a sampling trajectory to the trajectory's end (Song et al., 2023,
Definition 1). Published distillations learn it from one solver step at a time, since whole trajectories of a large
model are expensive (Luo et al., 2023). Those of a small model are cheap, so here the ends are the student's targets.
`part=trajectories` solves trajectories from noise, and a second time from ends with noise of another level, which are
the student's input from its second step on. Each call continues where the previous one stopped.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save
from torch import Tensor, nn

from classifier_lens.data import planted
from classifier_lens.models.generator.noise_schedule import (
    classifier_free_guidance,
    consistency_function,
    guidance_embedding,
    lcm_schedule,
)
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.train.captioned_images import cifar10_caption
from classifier_lens.scripts.train.loop import fit, load_settings
from classifier_lens.scripts.train.pipeline_folder import save_network
from classifier_lens.scripts.train.settings import check_student


def training_captions(data: str, n: int, seed: int, start: int) -> list[str]:
    """Captions of training images: rows `start` … `start + n` of an endless list."""
    if data == "planted":
        return planted.sample_captioned_scenes(n, planted.SPLIT_SEEDS["train"] + seed, start)[1]
    return [cifar10_caption((start + i) % 10) for i in range(n)]


@torch.no_grad()
def solve_trajectory(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, text: Tensor, null: Tensor, w: Tensor,
    times: Sequence[int], scheduler: DPMSolverMultistepScheduler,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The points (b, t, c, y, x) of the teacher's guided trajectory from latents `z` at `times[0]`, and its end.

    predict: noise prediction of (z, t, text embeddings); w: guidance scale per sample.
    """
    scheduler.set_timesteps(timesteps=list(times), device=z.device)
    points = []
    for t in scheduler.timesteps:
        points.append(z)
        eps_null, eps_text = predict(torch.cat([z, z]), t, torch.cat([null, text])).chunk(2)
        z = scheduler.step(classifier_free_guidance(eps_null, eps_text, w[:, None, None, None]), t, z).prev_sample
    return torch.stack(points, dim=1), z


@torch.no_grad()
def generate_trajectories(pipe: StableDiffusionPipeline, cfg: Any) -> None:
    """Write blocks of trajectories until there are `cfg.trajectories` or the time is over."""
    device, folder = pipe.device, ROOT / cfg.work / "trajectories"
    scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, final_sigmas_type="zero")
    alphas = pipe.scheduler.alphas_cumprod
    timesteps = lcm_schedule(alphas, cfg.original_inference_steps, cfg.original_inference_steps).timesteps.tolist()
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    empty = pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids

    def predict(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return pipe.unet(z, t, text).sample.float()

    def embed(tokens: Tensor) -> Tensor:
        return pipe.text_encoder(tokens.to(device))[0]

    started = time.monotonic()
    for block in range(cfg.first_block, cfg.first_block + -(-cfg.trajectories // cfg.block_size)):
        path = folder / f"{block:05}.safetensors"
        if path.exists():
            continue
        if time.monotonic() - started > 60 * cfg.minutes:
            break
        generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + block)
        texts = training_captions(cfg.data, cfg.block_size, cfg.seed, block * cfg.block_size)
        tokens = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        dropped = torch.rand(cfg.block_size, 1, generator=generator) < cfg.caption_dropout
        tokens = torch.where(dropped, empty, tokens)
        low, high = cfg.guidance_scale_range
        w = low + (high - low) * torch.rand(cfg.block_size, generator=generator)
        first = int(torch.randint(cfg.stride, (1,), generator=generator))
        renoised_index = int(torch.randint(2 * cfg.stride, len(timesteps) - cfg.stride, (1,), generator=generator))
        noise = torch.randn(2, cfg.block_size, *shape, generator=generator).to(device)
        text, null, scale = embed(tokens), embed(empty).expand(cfg.block_size, -1, -1), w.to(device)
        points, ends = solve_trajectory(predict, noise[0], text, null, scale, timesteps[first :: cfg.stride], scheduler)
        a = alphas[timesteps[renoised_index]]
        later_times = timesteps[renoised_index :: cfg.stride]
        renoised_points, renoised_ends = solve_trajectory(
            predict, a.sqrt() * ends + (1 - a).sqrt() * noise[1], text, null, scale, later_times, scheduler
        )
        tensors = {
            "points": points, "ends": ends, "times": torch.tensor(timesteps[first :: cfg.stride]),
            "later_points": renoised_points, "later_ends": renoised_ends,
            "later_times": torch.tensor(later_times),
            "w": w, "tokens": tokens.int(),
        }  # fmt: skip
        tensors = {k: (v.half() if v.ndim > 3 else v).cpu().contiguous() for k, v in tensors.items()}
        write_durable(path, save(tensors))
        print(
            f"trajectories {(block + 1 - cfg.first_block) * cfg.block_size} {time.monotonic() - started:.0f} s",
            flush=True,
        )


@dataclass(frozen=True)
class TrajectoryPoints:
    """Training data of the student: points (n, c, y, x) at times (n,), each with the index of its trajectory; per
    trajectory its end (m, c, y, x), guidance scale (m,) and tokens (m, l)."""

    points: Tensor
    times: Tensor
    trajectory_index: Tensor
    ends: Tensor
    guidance_scale: Tensor
    tokens: Tensor


def load_trajectory_points(folder: Path) -> TrajectoryPoints:
    """All blocks of trajectories in a folder."""
    parts: dict[str, list[Tensor]] = {name: [] for name in TrajectoryPoints.__dataclass_fields__}
    rows = 0
    for path in sorted(folder.glob("*.safetensors")):
        block = load_file(path)
        for prefix in ("", "later_"):
            points, times, n = block[f"{prefix}points"], block[f"{prefix}times"], len(block["w"])
            parts["points"].append(points.flatten(0, 1))
            parts["times"].append(times.repeat(n))
            parts["trajectory_index"].append(torch.arange(rows, rows + n).repeat_interleave(len(times)))
            parts["ends"].append(block[f"{prefix}ends"])
            parts["guidance_scale"].append(block["w"])
            parts["tokens"].append(block["tokens"])
            rows += n
    if not rows:
        raise UserError(f"{folder}: no trajectories; compute them with part=trajectories")
    return TrajectoryPoints(**{name: torch.cat(values) for name, values in parts.items()})


def full_student(teacher: UNet2DConditionModel, cfg: Any) -> UNet2DConditionModel:
    """A UNet with the teacher's weights and an embedding of the guidance scale, which has no effect before training."""
    shape = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    shape["time_cond_proj_dim"] = cfg.unet.time_cond_proj_dim
    if cfg.unet.slim:
        down, up = list(shape["down_block_types"]), list(shape["up_block_types"])
        shape |= {
            "mid_block_type": None,
            "down_block_types": (*down[:-1], "DownBlock2D"), "up_block_types": ("UpBlock2D", *up[1:]),
        }  # fmt: skip
    student = UNet2DConditionModel(**shape)
    student.load_state_dict(teacher.state_dict(), strict=False)
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student


def lora_student(teacher: UNet2DConditionModel, cfg: Any) -> UNet2DConditionModel:
    """The teacher with a low-rank adapter: its factors alone are trained, and have no effect before training."""
    student = copy.deepcopy(teacher).requires_grad_(False)
    torch.manual_seed(cfg.seed)
    student.add_adapter(
        LoraConfig(r=cfg.lora.rank, lora_alpha=cfg.lora.rank, target_modules=list(cfg.lora.target_modules))
    )
    return student


STUDENTS = {"full": full_student, "lora": lora_student}
STUDENT_DESCRIPTIONS = {
    "full": "The UNet of a consistency model, conditioned on the guidance scale",
    "lora": "An adapter of the UNet",
}


class ConsistencyFunction(nn.Module):
    """The consistency function f(z, t, text, w) of a UNet."""

    def __init__(self, unet: UNet2DConditionModel, alphas: Tensor) -> None:
        super().__init__()
        self.unet, self.alphas = unet, alphas

    def forward(self, z: Tensor, t: Tensor, text: Tensor, w: Tensor) -> Tensor:
        width = self.unet.config.time_cond_proj_dim
        guidance_cond = None if width is None else guidance_embedding(w, width)
        eps = self.unet(z, t, text, timestep_cond=guidance_cond).sample.float()
        shape = (-1, 1, 1, 1)
        return consistency_function(z, eps, t.view(shape), self.alphas[t].view(shape))


def train_student(pipe: StableDiffusionPipeline, cfg: Any, arguments: Sequence[str]) -> None:
    """Fit f(z_t, t) to the ends of the teacher's trajectories by the pseudo-Huber distance of published students,
    sqrt((f - end)² + c²) - c."""
    device = pipe.device
    pairs = load_trajectory_points(ROOT / cfg.work / "trajectories")
    print(f"{len(pairs.ends):,} trajectories, {len(pairs.points):,} points", flush=True)
    unet = STUDENTS[cfg.student_type](pipe.unet, cfg).to(device)
    if device.type == "cpu":
        # Fused attention's backward pass is twice as slow here for heads this narrow in bfloat16.
        unet.set_attn_processor(AttnProcessor())
    unique, inverse = pairs.tokens.unique(dim=0, return_inverse=True)
    with torch.no_grad():
        text = torch.cat([pipe.text_encoder(part.long().to(device))[0] for part in unique.split(256)])

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        indices = torch.randint(len(pairs.points), (cfg.student_batch,), generator=generator, device=device).cpu()
        rows = pairs.trajectory_index[indices]
        z, end = pairs.points[indices].to(device).float(), pairs.ends[rows].to(device).float()
        predicted_ends = model(
            z, pairs.times[indices].to(device), text[inverse[rows].to(device)], pairs.guidance_scale[rows].to(device)
        )
        return (((predicted_ends - end) ** 2 + cfg.huber_c**2).sqrt() - cfg.huber_c).mean()

    trained = fit("student", ConsistencyFunction(unet, pipe.scheduler.alphas_cumprod.to(device)), loss_of, cfg, cfg.lr)
    if cfg.student_type == "lora":
        # By peft's names: with names in diffusers' older form, half of the layers are not found when loading.
        layers = get_peft_model_state_dict(trained.unet.half())
        StableDiffusionPipeline.save_lora_weights(ROOT / cfg.out, unet_lora_layers=layers)
    else:
        save_network(trained.unet, ROOT / cfg.out / "unet")
    write_model_card(pipe, trained.unet, len(pairs.ends), cfg, arguments)


def write_model_card(
    pipe: StableDiffusionPipeline, unet: UNet2DConditionModel, trajectories: int, cfg: Any, arguments: Sequence[str]
) -> None:
    """Write README.md beside the weights: size, data and training."""
    state = torch.load(ROOT / cfg.work / "student.pt", weights_only=True, map_location="cpu")
    low, high = cfg.guidance_scale_range
    size = sum(p.numel() for name, p in unet.named_parameters() if cfg.student_type == "full" or "lora" in name)
    kind = STUDENT_DESCRIPTIONS[cfg.student_type]
    lines = [
        f"# {Path(cfg.out).name}", "",
        f"{kind}, distilled from `{cfg.teacher}` for 1 to 8 steps; the other networks are the teacher's.", "",
        f"- {size:,} parameters, half precision",
        f"- Data: {trajectories:,} trajectories of the teacher, half of them from a noised end, "
        f"at guidance {low:g} … {high:g}, seed {cfg.seed}",
        f"- trained for {state['step']:,} steps of {cfg.student_batch}",
        f"- Command of the last run: `python scripts/train/distill_lcm.py {' '.join(arguments)}`",
        "", "Measured quality: `docs/results/`. License: Apache-2.0, as this repository.", "",
    ]  # fmt: skip
    (ROOT / cfg.out / "README.md").write_text("\n".join(lines))


def main(arguments: Sequence[str]) -> None:
    cfg, device = load_settings("lcm", arguments)
    check_student(cfg)
    pipe = StableDiffusionPipeline.from_pretrained(ROOT / cfg.teacher, dtype=torch.float32, safety_checker=None)
    pipe = pipe.to(device)
    for network in (pipe.unet, pipe.text_encoder, pipe.vae):
        network.requires_grad_(False).eval()
    for part in ("trajectories", "student") if cfg.part == "all" else (cfg.part,):
        if part == "trajectories":
            generate_trajectories(pipe, cfg)
        else:
            train_student(pipe, cfg, arguments)


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
