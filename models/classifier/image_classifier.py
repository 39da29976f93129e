"""The interface of image classifiers: images in [0, 1] to logits and features.

The classifier resizes and normalizes the images, its weights are frozen, and the images receive gradients.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
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
from classifier_lens.models.classifier.feature_layout import (
    ChannelDim,
    OutputLayout,
    flatten_spatial,
    half_image_probes,
    is_spatial,
)
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
from classifier_lens.models.classifier.preprocessing import INTERPOLATIONS, preprocess_images
from classifier_lens.models.network_digest import network_digest
from classifier_lens.runner.types import Head, Response, UserError

# (network, normalized images) -> return value of the network, which is or contains the outputs (b, k), and features
# (b, f) or None.
ForwardFn = Callable[[Any, Tensor], tuple[Any, Tensor | None]]


def forward_logits(network: Any, images: Tensor) -> tuple[Any, Tensor | None]:
    """The output of any callable, and the input of its last linear layer if it is a module with one."""
    return _with_last_linear_input(network, lambda: network(images))


def forward_transformers(network: Any, images: Tensor) -> tuple[Any, Tensor | None]:
    """The output of an image classifier of transformers, and the input of its last linear layer."""
    return _with_last_linear_input(network, lambda: network(pixel_values=images))


def _with_last_linear_input(network: Any, forward: Callable[[], Any]) -> tuple[Any, Tensor | None]:
    """The output of `forward`, and the input that the last linear layer receives in it, None if there is none."""
    linear = last_linear_name(network)
    if linear is None:
        return forward(), None
    with record_modules(network, [f"{linear}.in"], record_unchanged) as recorded:
        output = forward()
    return output, next(reversed(recorded.values()), None)


def last_linear_name(network: Any) -> str | None:
    """The name of a module's last linear layer, None if there is none."""
    if not isinstance(network, nn.Module):
        return None
    return next((name for name, m in reversed(list(network.named_modules())) if isinstance(m, nn.Linear)), None)


class ImageClassifier(nn.Module):
    """A frozen network with its preprocessing: images "b 3 h w" in [0, 1] of any size to a `Response`.

    Attributes:
        labels: one class name per output, all different.
        size: side of the network's input in pixels.
        domain: `planted`, `cifar10` or `imagenet`, the images that it was trained on; None if unknown.
        digest: SHA-256 of the weights, see `network_digest`.
        fingerprint: everything that the outputs depend on.
        untracked_dependencies: warning in one line that the fingerprint may be incomplete, None if it is complete.
        head: the last linear layer, whose input are the features.
    """

    mean: Tensor
    std: Tensor
    untracked_dependencies: str | None = None

    def __init__(
        self, network: Any, labels: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float],
        interpolation: str, domain: str | None, forward_fn: ForwardFn, error_prefix: str, output: str | None = None,
    ) -> None:  # fmt: skip
        """Freeze the network and check that it can be explained.

        Args:
            mean, std: normalization per RGB channel, for images in [0, 1].
            interpolation: one of `INTERPOLATIONS`.
            forward_fn: calls the network.
            error_prefix: key and value that begin error messages, e.g. `classifier.path=x`.
            output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`; None for undeclared
                logits.

        Raises:
            UserError: labels, settings or the network's outputs cannot be used.
        """
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
        self._modules_with_layout: set[str] = set()
        self._layouts: dict[str, OutputLayout] = {}
        values = check_forward(self)
        is_linear = _is_last_linear_output(self)
        if not is_linear or output not in (None, "logits"):
            self._linear = None
        check_output_values(self, values, is_linear)
        check_gradient(self)

    @property
    def head(self) -> Head | None:
        """The last linear layer, None if the logits are not its output for the features."""
        if self._linear is None:
            return None
        layer = self.network.get_submodule(self._linear)
        bias = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
        return Head(layer.weight.float(), bias.float())

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Response:
        """Logits and, if there is a head, features, in float32, also under autocast.

        images: in [0, 1], of any floating-point type.
        """
        output, features = self.forward_fn(self.network, self.preprocess(images))
        logits = to_logits(self.output, extract_output_tensor(output, self.error_prefix))
        return Response(logits, features.float() if features is not None and self._linear is not None else None)

    def raw_outputs(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """The outputs for images in [0, 1], not converted to logits."""
        return extract_output_tensor(self.forward_fn(self.network, self.preprocess(images))[0], self.error_prefix)

    def forward_with_activations(
        self, images: Float[Tensor, "b 3 h w"], modules: Sequence[str]
    ) -> tuple[Response, dict[str, Tensor]]:
        """The response, and the outputs of modules by name.

        `<module>.in` names the input of a module, `<module>#1` the second of several calls. Feature maps are returned
        as "b c y x" and tokens as "b l c", whatever the order of the network is; values without spatial dimensions, and
        the mean over dimensions of unknown meaning, as "b c".

        Raises:
            UserError: the network has no such module, does not use it or uses it several times, or the dimension of the
                channels is unknown.
        """
        self._check_modules(modules)
        if not modules:
            return self(images), {}
        layouts = self._detect_layouts(modules)
        with record_modules(self.network, modules, record_canonical(layouts)) as recorded:
            response = self(images)
        return response, {name: self._activation(name, recorded, layouts) for name in modules}

    def _detect_layouts(self, modules: Sequence[str]) -> Mapping[str, OutputLayout]:
        """The layouts of all recorded calls; those of the modules are detected once."""
        new_modules = [name for name in modules if name not in self._modules_with_layout]
        if new_modules:
            with torch.no_grad(), record_modules(self.network, new_modules, record_layouts(self._layouts)):
                self(half_image_probes(self.size))
            self._modules_with_layout.update(new_modules)
        return self._layouts

    def _activation(self, name: str, recorded: Mapping[str, Tensor], layouts: Mapping[str, OutputLayout]) -> Tensor:
        """The recorded tensor of the call that is addressed. Raises UserError if it is missing or ambiguous."""
        address = parse_address(name)
        calls = recorded_calls(recorded, address)
        if not calls:
            raise UserError(
                f"{self.error_prefix}: the network does not use the module {name}, or it returns no tensor; "
                "choose another"
            )
        if len(calls) > 1 if address.call is None else address.call >= len(calls):
            choice = f"{calls[0]} … {calls[-1]}" if len(calls) > 1 else calls[0]
            raise UserError(
                f"{self.error_prefix}: {name}: the network uses the module {len(calls)} times; allowed are {choice}"
            )
        call = calls[address.call or 0]
        layout, value = layouts.get(call), recorded[call]
        if layout is None:
            raise UserError(
                f"{self.error_prefix}: {name}: which dimension of its output of shape {tuple(value.shape)} contains "
                "the channels is unknown; choose another module"
            )
        if isinstance(layout, ChannelDim):
            value = value.movedim(layout.dimension, 1).flatten(2).mean(dim=2)
        return value

    def _check_modules(self, modules: Sequence[str]) -> None:
        module_names = _module_names(self.network)
        for name in modules:
            if (module := parse_address(name).module) not in module_names:
                similar = difflib.get_close_matches(module, module_names, 5, 0.3) or module_names[-5:]
                raise UserError(f"{self.error_prefix}: no module {name}; nearest are {', '.join(similar) or 'none'}")

    @cached_property
    def cam_module(self) -> str | None:
        """The last module with a spatial output on which the features depend at more than one position; None if there
        is none."""
        if not (names := _module_names(self.network)):
            return None
        layouts = self._detect_layouts(names)
        image = torch.rand(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.enable_grad(), record_modules(self.network, names, record_canonical(layouts)) as recorded:
            features = self(image.to(self.mean.device).requires_grad_()).features
        if features is None:
            return None
        # A random projection, since after a layer norm the sum of the features is constant.
        weights = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
        spatial = [call for call, out in recorded.items() if is_spatial(layouts.get(call)) and out.requires_grad]
        used = _depends_on_positions((features[0] * weights).sum(), [recorded[call] for call in spatial])
        # In the order of the forward pass. A block's output is as wide as the features, its inner layers may not be.
        candidates = [call for call, is_used in zip(spatial, used, strict=True) if is_used]
        as_wide = [call for call in candidates if flatten_spatial(recorded[call]).shape[1] == features.shape[1]]
        last = next(reversed([*candidates, *as_wide]), None)
        if last is None:
            return None
        module = parse_address(last).module
        return module if len(recorded_calls(recorded, ModuleAddress(module, None, False))) == 1 else last

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """The network's input: images resized with antialiasing and without a crop, then normalized."""
        return preprocess_images(images, self.size, self.interpolation, self.mean, self.std)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Keep the evaluation mode, also as part of a module that is trained."""
        self.training = False
        if isinstance(self.network, nn.Module):
            _set_eval_mode(self.network)
        return self


def freeze(name: str, network: nn.Module) -> None:
    """Set the evaluation mode and disable gradients of the weights.

    Raises UserError, which begins with `name`, if weights are not initialized.
    """
    if any(is_lazy(value) or value.is_meta for value in [*network.parameters(), *network.buffers()]):
        raise UserError(f"{name}: some weights have no values yet (lazy, or on the meta device); load them first")
    for parameter in network.parameters():  # one by one, since a ScriptModule has no `requires_grad_`
        parameter.requires_grad_(False)
    _set_eval_mode(network)


def _set_eval_mode(network: nn.Module) -> None:
    """Set the evaluation mode. Exported programs cannot change their mode; `check_forward` detects the training mode
    by outputs that differ between calls."""
    with suppress(NotImplementedError):
        network.eval()


def _module_names(network: Any) -> list[str]:
    """The names of the submodules; empty if the network is not a module."""
    return [name for name, _ in network.named_modules() if name] if isinstance(network, nn.Module) else []


def _depends_on_positions(value: Tensor, outputs: Sequence[Tensor]) -> list[bool]:
    """For each output whether `value` depends on it at more than one position, by one backward pass."""
    gradients = torch.autograd.grad(value, outputs, allow_unused=True) if outputs else ()
    return [g is not None and int((flatten_spatial(g) != 0).any(dim=1).sum()) > 1 for g in gradients]


@torch.no_grad()
def _is_last_linear_output(classifier: ImageClassifier) -> bool:
    """Whether the outputs are those of the last linear layer for the features."""
    if (head := classifier.head) is None:
        return False
    size = classifier.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    output, features = classifier.forward_fn(classifier.network, classifier.preprocess(images))
    values = extract_output_tensor(output, classifier.error_prefix).float()
    if features is None or features.shape != (2, head.weight.shape[1]) or values.shape != (2, len(head.weight)):
        return False
    return torch.allclose(features.float() @ head.weight.T + head.bias, values, rtol=1e-3, atol=1e-4)
