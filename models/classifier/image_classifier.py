"""Image classifiers as the runner sees them: images in [0, 1] in, logits and features out.

Resizing and normalisation lie inside, the weights are frozen, and gradients reach the image.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from classifier_lens.models.classifier.compatibility import (
    channel_values,
    check_forward,
    check_gradient,
    check_output_values,
    check_settings,
)
from classifier_lens.models.classifier.feature_layout import ChannelDim, FeatureLayout, OutputLayout, half_image_probes
from classifier_lens.models.classifier.logits import extract_output_tensor, to_logits
from classifier_lens.models.classifier.module_hooks import (
    ModuleAddress,
    parse_address,
    record_canonical,
    record_layouts,
    record_modules,
    record_unchanged,
    recorded_calls,
)
from classifier_lens.runner.types import Head, Response, UserError

INTERPOLATIONS = ("bilinear", "bicubic")

# Asks a network: normalised images -> its answer, which is or has the outputs (b, k), and features (b, f) where the
# network has them.
ForwardFn = Callable[[Any, Tensor], tuple[Any, Tensor | None]]


def forward_logits(network: Any, images: Tensor) -> tuple[Any, Tensor | None]:
    """Any callable: its answer, and the input of its last linear layer if it is a module that has one."""
    return _tapping_the_last(network, lambda: network(images))


def forward_transformers(network: Any, images: Tensor) -> tuple[Any, Tensor | None]:
    """An image classifier of transformers: its answer, and the input of its last linear layer."""
    return _tapping_the_last(network, lambda: network(pixel_values=images))


def _tapping_the_last(network: Any, answer: Callable[[], Any]) -> tuple[Any, Tensor | None]:
    """What `answer` gives, and what the last linear layer is given meanwhile, None where there is none."""
    linear = last_linear_name(network)
    if linear is None:
        return answer(), None
    with record_modules(network, [f"{linear}.in"], record_unchanged) as found:
        given = answer()
    return given, next(reversed(found.values()), None)


def last_linear_name(network: Any) -> str | None:
    """The name of a module's last linear layer, None if there is none."""
    if not isinstance(network, nn.Module):
        return None
    return next((name for name, m in reversed(list(network.named_modules())) if isinstance(m, nn.Linear)), None)


class ImageClassifier(nn.Module):
    """A frozen network behind its preprocessing: images "b 3 h w" in [0, 1], of any size, to a `Response`.

    labels: one name per output, in the outputs' order, all different; size: side in pixels of what the network sees;
    domain: the kind of pictures it was trained on (`planted`, `cifar10`, `imagenet`), None if not known; digest:
    SHA-256 of the weights (see `network_digest`); fingerprint: everything that an answer follows from;
    untracked_dependencies: what of it the recipe may lack, in one line, None where it lacks nothing; head: the last
    linear layer, whose input the features are."""

    mean: Tensor
    std: Tensor
    untracked_dependencies: str | None = None

    def __init__(
        self, network: Any, labels: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float],
        interpolation: str, domain: str | None, forward_fn: ForwardFn, error_prefix: str, output: str | None = None,
    ) -> None:  # fmt: skip
        """Freeze `network` and check that it fits.

        mean, std: per RGB channel, in [0, 1] units; interpolation: one of `INTERPOLATIONS`; forward_fn: how the network
        is asked; error_prefix: the key and value that errors point at, e.g. `classifier.path=x`; output: what the
        network gives, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits that nobody declared. Raises
        UserError if labels, settings or the network's answers are not usable."""
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"{error_prefix}: interpolation={interpolation}, allowed are {', '.join(INTERPOLATIONS)}")
        mean, std = channel_values(error_prefix, "mean", mean), channel_values(error_prefix, "std", std)
        check_settings(error_prefix, labels, size, mean, std, output)
        if isinstance(network, nn.Module):
            freeze(error_prefix, network)
        self.network, self.forward_fn, self.error_prefix = network, forward_fn, error_prefix
        self.labels, self.size, self.domain = tuple(labels), size, domain
        self.interpolation, self.output = interpolation, output
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.digest = network_digest(network)
        self.fingerprint = repr((self.digest, size, mean, std, interpolation, output))
        self._linear = last_linear_name(network)
        self._read: set[str] = set()
        self._layouts: dict[str, OutputLayout] = {}
        values = check_forward(self)
        linear = _made_by_last_linear(self)
        if not linear or output not in (None, "logits"):
            self._linear = None
        check_output_values(self, values, linear)
        check_gradient(self)

    @property
    def head(self) -> Head | None:
        """The last linear layer, None where the network has none that makes the logits of the features alone."""
        if self._linear is None:
            return None
        layer = self.network.get_submodule(self._linear)
        bias = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
        return Head(layer.weight.float(), bias.float())

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Response:
        """Logits, and features where there is a head, in float32. Images in [0, 1], any floating type, also under
        autocast."""
        answer, features = self.forward_fn(self.network, self.preprocess(images))
        known = features is not None and self._linear is not None
        logits = to_logits(self.output, extract_output_tensor(answer, self.error_prefix))
        return Response(logits, features.float() if known and features is not None else None)

    def raw_outputs(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """What the network gives for images in [0, 1], before it is made logits."""
        return extract_output_tensor(self.forward_fn(self.network, self.preprocess(images))[0], self.error_prefix)

    def forward_with_activations(
        self, images: Float[Tensor, "b 3 h w"], modules: Sequence[str]
    ) -> tuple[Response, dict[str, Tensor]]:
        """The answer, and what the named modules give; `<module>.in` is what a module is given, `<module>#1` belongs to
        the second of several calls.

        Feature maps are "b c y x", tokens "b l c", whatever the network's own order is; where the other dimensions are
        no places, and of values alone, "b c", the mean over them. Raises UserError for a name that the network does not
        have, a module that an answer does not use or uses several times, and one of whose output no dimension is known
        to hold channels.
        """
        self._check_modules(modules)
        if not modules:
            return self(images), {}
        layouts = self._layouts_of(modules)
        with record_modules(self.network, modules, record_canonical(layouts)) as found:
            response = self(images)
        return response, {name: self._shown(name, found, layouts) for name in modules}

    def _layouts_of(self, modules: Sequence[str]) -> Mapping[str, OutputLayout]:
        """How what modules give and are given is read, by call; found once."""
        unread = [name for name in modules if name not in self._read]
        if unread:
            with torch.no_grad(), record_modules(self.network, unread, record_layouts(self._layouts)):
                self(half_image_probes(self.size))
            self._read.update(unread)
        return self._layouts

    def _shown(self, name: str, found: Mapping[str, Tensor], layouts: Mapping[str, OutputLayout]) -> Tensor:
        """What a module gave in the call that its address means. Raises UserError if there is none, or several."""
        address = parse_address(name)
        noted = recorded_calls(found, address)
        if not noted:
            said = f"an answer does not use the module {name}, or it gives no tensor"
            raise UserError(f"{self.error_prefix}: {said}; choose another")
        if len(noted) > 1 if address.call is None else address.call >= len(noted):
            choice = f"{noted[0]} … {noted[-1]}" if len(noted) > 1 else noted[0]
            raise UserError(
                f"{self.error_prefix}: {name}: an answer uses the module {len(noted)} times; allowed are {choice}"
            )
        at = noted[address.call or 0]
        layout, value = layouts.get(at), found[at]
        if layout is None:
            said = (
                f"no dimension of what it gives, of shape {tuple(value.shape)}, is known to hold one value per channel"
            )
            raise UserError(f"{self.error_prefix}: {name}: {said}; choose another module")
        if isinstance(layout, ChannelDim):
            value = value.movedim(layout.dimension, 1).flatten(2).mean(dim=2)
        return value

    def _check_modules(self, modules: Sequence[str]) -> None:
        known = _modules_of(self.network)
        for name in modules:
            if (module := parse_address(name).module) not in known:
                near = difflib.get_close_matches(module, known, 5, 0.3) or known[-5:]
                raise UserError(
                    f"{self.error_prefix}: no module {name}; nearest are {', '.join(near) or 'none: it has none'}"
                )

    @cached_property
    def cam_module(self) -> str | None:
        """The last module whose output has places, as a feature map or as tokens, that the features depend on at more
        than one; None if there is none."""
        if not (names := _modules_of(self.network)):
            return None
        layouts = self._layouts_of(names)
        image = torch.rand(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.enable_grad(), record_modules(self.network, names, record_canonical(layouts)) as found:
            features = self(image.to(self.mean.device).requires_grad_()).features
        if features is None:
            return None
        # Their plain sum does not depend on anything behind a layer norm.
        drawn = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
        placed = [at for at, out in found.items() if _has_places(layouts.get(at)) and out.requires_grad]
        used = _used_at_several_places((features[0] * drawn).sum(), [found[at] for at in placed])
        # In the order of the forward pass. A block's output is as wide as the features, its inner layers may not be.
        candidates = [at for at, several in zip(placed, used, strict=True) if several]
        wide = [at for at in candidates if flatten_spatial(found[at]).shape[1] == features.shape[1]]
        last = next(reversed([*candidates, *wide]), None)
        if last is None:
            return None
        module = parse_address(last).module
        return module if len(recorded_calls(found, ModuleAddress(module, None, False))) == 1 else last

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """What the network sees: resized to its size with antialiasing (no crop), then normalised."""
        return preprocess_images(images, self.size, self.interpolation, self.mean, self.std)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Stays in evaluation mode, whatever module it becomes part of."""
        self.training = False
        if isinstance(self.network, nn.Module):
            _evaluate(self.network)
        return self


def freeze(name: str, network: nn.Module) -> None:
    """Put a network into evaluation mode, and its weights out of reach of gradients. Raises UserError, which begins
    with `name`, for one whose weights are not there yet."""
    held = [*network.parameters(), *network.buffers()]
    if any(is_lazy(value) or value.is_meta for value in held):
        raise UserError(f"{name}: some weights have no values yet (lazy, or on the meta device); load them first")
    for parameter in network.parameters():  # one by one: a ScriptModule as a whole cannot be told so
        parameter.requires_grad_(False)
    _evaluate(network)


def _evaluate(network: nn.Module) -> None:
    """Evaluation mode, but of an exported program: it has the mode in which it was exported, and if that is the
    training mode, answers that do not repeat tell."""
    with suppress(NotImplementedError):
        network.eval()


def preprocess_images(
    images: Float[Tensor, "b 3 h w"], size: int, interpolation: str, mean: Tensor, std: Tensor
) -> Float[Tensor, "b 3 s s"]:
    """Images in [0, 1] resized to `size` px with antialiasing, without a crop, then normalised, in float32."""
    images = images.to(mean.device, torch.float32)
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode=interpolation, antialias=True)
    return (images - mean) / std


def _modules_of(network: Any) -> list[str]:
    """The names of a network's modules, none of what is no module."""
    return [name for name, _ in network.named_modules() if name] if isinstance(network, nn.Module) else []


def _has_places(layout: OutputLayout) -> bool:
    """Whether a module's output is known to be a feature map, or tokens in rows that are not split into heads."""
    return (
        isinstance(layout, FeatureLayout)
        and bool(layout.spatial_dims)
        and len(layout.shape) - len(layout.spatial_dims) == 1
    )


def _used_at_several_places(value: Tensor, outputs: Sequence[Tensor]) -> list[bool]:
    """Whether a value depends on modules' outputs at more than one place; of all in one backward pass."""
    gradients = torch.autograd.grad(value, outputs, allow_unused=True) if outputs else ()
    return [g is not None and int((flatten_spatial(g) != 0).any(dim=1).sum()) > 1 for g in gradients]


def flatten_spatial(maps: Tensor) -> Float[Tensor, "b c p"]:
    """A feature map "b c y x" or tokens "b l c" with their places in the last dimension."""
    return maps.flatten(2) if maps.ndim == 4 else maps.transpose(1, 2)


def network_digest(network: Any) -> str:
    """SHA-256 over names, types and bytes of a module's weights.

    Of a plain function, which has none that can be seen, over its source file, or what it was compiled to where it has
    none, as in a notebook.
    """
    digest = hashlib.sha256()
    if isinstance(network, nn.Module):
        for key, value in sorted(network.state_dict().items()):
            for part in _parts_of(key, value):
                digest.update(part)
        return digest.hexdigest()
    code = network if inspect.isroutine(network) else type(network)
    digest.update(f"{code.__module__}:{code.__qualname__}".encode())
    compiled = getattr(code, "__code__", None)
    source = Path(compiled.co_filename if compiled else getattr(sys.modules[code.__module__], "__file__", None) or "")
    if source.is_file():
        digest.update(source.read_bytes())
    elif compiled:
        digest.update(compiled.co_code)
    return digest.hexdigest()


def _parts_of(key: str, value: Any) -> Iterator[bytes | memoryview]:
    """The bytes of one entry of a state dict: a tensor, or what layers of quantized weights and those with a state of
    their own put there."""
    if isinstance(value, (tuple, list)):
        for i, one in enumerate(value):
            yield from _parts_of(f"{key}.{i}", one)
    elif isinstance(value, Tensor):
        yield f"{key} {value.dtype} {tuple(value.shape)}".encode()
        plain = value.detach().dequantize() if value.is_quantized else value.detach()
        yield plain.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif value is None or isinstance(value, (str, bytes, int, float, torch.dtype)):
        yield f"{key} {value!r}".encode()


@torch.no_grad()
def _made_by_last_linear(classifier: ImageClassifier) -> bool:
    """Whether the last linear layer makes the outputs of the features, and nothing else does."""
    if (head := classifier.head) is None:
        return False
    size = classifier.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    answer, features = classifier.forward_fn(classifier.network, classifier.preprocess(images))
    values = extract_output_tensor(answer, classifier.error_prefix).float()
    if features is None or features.shape != (2, head.weight.shape[1]) or values.shape != (2, len(head.weight)):
        return False
    return torch.allclose(features.float() @ head.weight.T + head.bias, values, rtol=1e-3, atol=1e-4)
