"""Recording of the inputs and outputs of modules, call by call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from classifier_lens.models.classifier.feature_layout import FeatureLayout, OutputLayout, detect_layout

# (address, module, tensor) -> (recorded tensor, tensor that the network continues with).
RecordFn = Callable[[str, nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ModuleAddress:
    """The output of a module, or its input if `is_input`, in one of its calls; call None means the only one."""

    module: str
    call: int | None
    is_input: bool

    def key(self, call: int) -> str:
        """The key of a call in the result of `record_modules`."""
        return f"{self.module}#{call}{'.in' if self.is_input else ''}"


def parse_address(name: str) -> ModuleAddress:
    """The address that `layer4`, `head.in`, `relu#1` or `relu#1.in` stands for."""
    match = re.fullmatch(r"(.*?)(?:#(\d+))?(\.in)?", name, re.DOTALL)
    assert match is not None
    return ModuleAddress(match[1], None if match[2] is None else int(match[2]), match[3] is not None)


@contextmanager
def record_modules(network: nn.Module, modules: Sequence[str], record_fn: RecordFn) -> Iterator[dict[str, Tensor]]:
    """The tensors that the modules return or receive within the context, as `record_fn` stores them.

    Keys are `<module>#<call>` for outputs and `<module>#<call>.in` for inputs; calls count from 0. Of a tuple or list
    the first element is recorded; other values are ignored.
    """
    recorded: dict[str, Tensor] = {}
    modules_by_name, handles = dict(network.named_modules()), []

    def record(address: ModuleAddress, module: nn.Module, value: Any) -> Any:
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(first, Tensor):
            return value
        call = next(i for i in range(len(recorded) + 1) if address.key(i) not in recorded)
        recorded[address.key(call)], replacement = record_fn(address.key(call), module, first)
        if not isinstance(value, (tuple, list)):
            return replacement
        elements = (replacement, *value[1:])
        return type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements)

    def input_hook(address: ModuleAddress) -> Callable[..., Any]:
        """A hook on the first positional or keyword argument."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args or not kwargs:
                return record(address, module, args), kwargs
            first = next(iter(kwargs))
            return args, {**kwargs, first: record(address, module, kwargs[first])}

        return hook

    for address in dict.fromkeys(replace(parse_address(name), call=None) for name in modules):
        module = modules_by_name[address.module]
        if address.is_input:
            handles.append(module.register_forward_pre_hook(input_hook(address), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda m, _, out, address=address: record(address, m, out)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def record_unchanged(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
    """Record the tensor; the network continues with a copy, since later layers may modify it in place."""
    return value, value.clone()


def record_layouts(layouts: dict[str, OutputLayout]) -> RecordFn:
    """A function that stores the layout of each tensor in `layouts`; the images have to be `half_image_probes`."""

    def record(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
        layouts[address] = detect_layout(module, value)
        return value.new_empty(0), value

    return record


def record_canonical(layouts: Mapping[str, OutputLayout]) -> RecordFn:
    """A function that records tensors in canonical layout; those of unknown layout are recorded unchanged."""

    def record(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
        layout = layouts.get(address)
        if not isinstance(layout, FeatureLayout) or layout.shape != tuple(value.shape[1:]):
            return record_unchanged(address, module, value)
        canonical = layout.to_canonical(value)
        return canonical, layout.from_canonical(canonical).clone()

    return record


def recorded_calls(recorded: Mapping[str, Any], address: ModuleAddress) -> list[str]:
    """The keys of the recorded calls of a module, in their order."""
    keys: list[str] = []
    while address.key(len(keys)) in recorded:
        keys.append(address.key(len(keys)))
    return keys
