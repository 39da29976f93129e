"""Augmentation of the training images of classifiers: (b, 3, h, w) in [0, 1], with random strengths per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

NO_AUGMENTATION = {"crop": 1.0, "flip": 0.0, "blur": 0.0, "noise": 0.0, "color_jitter": 0.0, "jpeg": 0.0, "erase": 0.0}


class Augment:
    """Random crops, color jitter, blur, compression, erased squares and noise, all from one random generator."""

    def __init__(self, cfg: DictConfig, generator: torch.Generator) -> None:
        self.cfg, self.generator = cfg, generator

    def __call__(self, x: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.crop < 1 or cfg.flip > 0:
            x = self.crop(x, cfg.crop, cfg.flip)
        if cfg.color_jitter > 0:
            x = self.color(x, cfg.color_jitter)
        if cfg.blur > 0:
            x = self.blur(x, cfg.blur)
        if cfg.jpeg > 0:
            x = self.jpeg(x, cfg.jpeg)
        if cfg.erase > 0:
            x = self.erase(x, cfg.erase)
        if cfg.noise > 0:
            noise = torch.randn(x.shape, generator=self.generator, device=x.device)
            x = x + noise * cfg.noise * self.uniform(x)
        return x.clamp(0, 1)

    def uniform(self, x: Tensor) -> Tensor:
        """(b, 1, 1, 1) numbers in [0, 1)."""
        return torch.rand(len(x), 1, 1, 1, generator=self.generator, device=x.device)

    def crop(self, x: Tensor, smallest: float, flip: float) -> Tensor:
        """Squares of side `smallest` .. 1 of the image at a random position, resized to the image's size."""
        side = 1 - (1 - smallest) * self.uniform(x)[:, 0, 0, 0]
        mirror = torch.where(self.uniform(x)[:, 0, 0, 0] < flip, -1.0, 1.0)
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
        theta[:, 0, 2] = (1 - side) * (2 * self.uniform(x)[:, 0, 0, 0] - 1)
        theta[:, 1, 2] = (1 - side) * (2 * self.uniform(x)[:, 0, 0, 0] - 1)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def color(self, x: Tensor, most: float) -> Tensor:
        """Brightness, contrast and saturation scaled by 1 - most .. 1 + most."""
        brightness, contrast, saturation = (1 + most * (2 * self.uniform(x) - 1) for _ in range(3))
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * saturation
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + (x - mean) * contrast) * brightness

    def blur(self, x: Tensor, most: float) -> Tensor:
        """Gaussian blur, standard deviation 0 .. `most` px, kernels of 5 px."""
        sigma = (most * self.uniform(x)).clamp(min=0.05)
        kernel = torch.exp(-(torch.arange(-2, 3, device=x.device) ** 2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, dim=0)
        flat = F.pad(x, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[None]
        flat = F.conv2d(F.conv2d(flat, kernel, groups=len(kernel)), kernel.transpose(2, 3), groups=len(kernel))
        return flat.view_as(x)

    def jpeg(self, x: Tensor, most: float) -> Tensor:
        """Cosine coefficients of 8 x 8 blocks rounded to a step that grows with frequency, up to `most`."""
        k = torch.arange(8, device=x.device, dtype=x.dtype)
        basis = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * 0.5
        basis[0] /= math.sqrt(2)
        step = most * self.uniform(x)[..., None, None] * ((k[:, None] + k[None] + 1) / 15) + 1e-3
        b, c, h, w = x.shape
        blocks = x.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        coefficients = basis @ blocks @ basis.T
        blocks = basis.T @ (torch.round(coefficients / step) * step) @ basis
        return blocks.transpose(3, 4).reshape(b, c, h, w)

    def erase(self, x: Tensor, most: float) -> Tensor:
        """One gray square per image, side 0 .. `most` of the image, its center anywhere."""
        h, w = x.shape[-2:]
        rows, columns = torch.arange(h, device=x.device).view(1, 1, h, 1), torch.arange(w, device=x.device)
        half, cy, cx = most * h / 2 * self.uniform(x), h * self.uniform(x), w * self.uniform(x)
        inside = ((rows - cy).abs() < half) & ((columns - cx).abs() < half)
        return torch.where(inside, self.uniform(x), x)
