"""Image classifiers as the runner sees them: images in [0, 1] in, logits and features out.

Resizing and normalisation lie inside, the weights are frozen, and gradients reach the image.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from runner.types import Response, UserError

INTERPOLATIONS = ("bilinear", "bicubic")

# Asks a network: normalised images -> logits (b, k), and features (b, f) where the network has them.
Ask = Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]


def ask_logits(network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, None]:
    """Any callable: logits, and no features."""
    return network(images), None


def ask_timm(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A timm model: logits, and the input of its last linear layer."""
    maps = network.forward_features(images)
    return network.forward_head(maps), network.forward_head(maps, pre_logits=True)


class ImageClassifier(nn.Module):
    """A frozen network behind its preprocessing: images "b 3 h w" in [0, 1], of any size, to a `Response`.

    labels: one name per output, in the outputs' order, all different; size: side in pixels of what the network sees;
    domain: the kind of pictures it was trained on (`planted`, `cifar10`, `imagenet`), None if not known;
    digest: SHA-256 of the weights (see `digest_of`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: Any, labels: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float],
        interpolation: str, domain: str | None, ask: Ask, name: str,
    ) -> None:  # fmt: skip
        """Freeze `network` and check that it fits.

        mean, std: per RGB channel, in [0, 1] units; interpolation: one of `INTERPOLATIONS`;
        ask: how the network is asked; name: the key and value that errors point at, e.g. `classifier.path=x`.
        Raises UserError if labels, settings or the network's answers are not usable.
        """
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"{name}: interpolation={interpolation}, allowed are {', '.join(INTERPOLATIONS)}")
        if isinstance(network, nn.Module):
            network.requires_grad_(False).eval()
        self.network, self.ask, self.name = network, ask, name
        self.labels, self.size, self.domain = tuple(labels), size, domain
        self.interpolation = interpolation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.digest = digest_of(network)
        _check(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Response:
        """Logits and features in float32. Images in [0, 1], any floating type, also under autocast."""
        logits, features = self.ask(self.network, self.prepare(images))
        return Response(logits.float(), None if features is None else features.float())

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """What the network sees: resized to its size with antialiasing (no crop), then normalised."""
        images = images.to(self.mean.device, torch.float32)
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        return (images - self.mean) / self.std

    def train(self, mode: bool = True) -> ImageClassifier:
        """Stays in evaluation mode, whatever module it becomes part of."""
        return super().train(False)


def digest_of(network: Any) -> str:
    """SHA-256 over names, types and bytes of a module's weights.

    Of a plain function, which has none that can be seen, over its source file.
    """
    digest = hashlib.sha256()
    if isinstance(network, nn.Module):
        for key, value in sorted(network.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
    code = network if inspect.isroutine(network) else type(network)
    digest.update(f"{code.__module__}:{code.__qualname__}".encode())
    if source := inspect.getsourcefile(code):
        with open(source, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _check(classifier: ImageClassifier) -> None:
    """One seeded picture through the network and back. Raises UserError with one line that says what is wrong."""
    name, labels, size = classifier.name, classifier.labels, classifier.size
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"{name}: labels must differ, but these stand there twice: {', '.join(repeated)}")
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        image.requires_grad_(True)
        try:
            logits = classifier(image).logits
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{name}: the network fails on images of shape (1, 3, {size}, {size}): {reason}") from error
        if logits.ndim != 2 or logits.shape != (1, len(labels)):
            outputs = logits.shape[-1] if logits.ndim == 2 else f"shape {tuple(logits.shape)}"
            raise UserError(f"{name}: output size {outputs} does not match its {len(labels)} labels")
        if not logits.isfinite().all():
            raise UserError(f"{name}: logits of a random picture are not finite")
        gradient = torch.autograd.grad(logits.logsumexp(1).sum(), image)[0] if logits.requires_grad else None
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise UserError(f"{name}: the gradient of the logits does not reach the image (is it cut off or not finite?)")
