"""What the modules of a network give and are given while it answers, call by call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from classifier_lens.models.classifier.feature_layout import FeatureLayout, OutputLayout, detect_layout

# Changes what is noted: its address, its module and the tensor to what is kept and what is passed on.
RecordFn = Callable[[str, nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ModuleAddress:
    """A module's output, or its input for `is_input`, in one of its calls, or in its only one for None."""

    module: str
    call: int | None
    is_input: bool

    def key(self, call: int) -> str:
        """The address of one call, as `tapped` notes it."""
        return f"{self.module}#{call}{'.in' if self.is_input else ''}"


def parse_address(name: str) -> ModuleAddress:
    """`layer4`, `head.in`, `relu#1` or `relu#1.in`."""
    found = re.fullmatch(r"(.*?)(?:#(\d+))?(\.in)?", name, re.DOTALL)
    assert found is not None
    return ModuleAddress(found[1], None if found[2] is None else int(found[2]), found[3] is not None)


@contextmanager
def record_modules(network: nn.Module, modules: Sequence[str], note: RecordFn) -> Iterator[dict[str, Tensor]]:
    """While it lasts, what the named modules give is put under `<module>#<call>`, of `<module>.in` what they are given
    under `<module>#<call>.in`, as `note` has it. Calls count from 0; what is no tensor, nor begins with one, is left
    out."""
    found: dict[str, Tensor] = {}
    by_name, handles = dict(network.named_modules()), []

    def keep(address: ModuleAddress, module: nn.Module, value: Any) -> Any:
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(first, Tensor):
            return value
        call = next(i for i in range(len(found) + 1) if address.key(i) not in found)
        found[address.key(call)], passed = note(address.key(call), module, first)
        if not isinstance(value, (tuple, list)):
            return passed
        parts = (passed, *value[1:])
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    def before(address: ModuleAddress) -> Callable[..., Any]:
        """A hook on what is given, by position or by name."""

        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if given or not named:
                return keep(address, module, given), named
            first = next(iter(named))
            return given, {**named, first: keep(address, module, named[first])}

        return hook

    for address in dict.fromkeys(replace(parse_address(name), call=None) for name in modules):
        module = by_name[address.module]
        if address.is_input:
            handles.append(module.register_forward_pre_hook(before(address), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda m, _, out, address=address: keep(address, m, out)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def record_unchanged(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor itself, and a copy to pass on: later layers may write over what they are given."""
    return value, value.clone()


def record_layouts(into: dict[str, OutputLayout]) -> RecordFn:
    """Puts how each tensor is read under its address, of answers for `feature_layout.halves`; keeps no tensor."""

    def note(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
        into[address] = detect_layout(module, value)
        return value.new_empty(0), value

    return note


def record_canonical(layouts: Mapping[str, OutputLayout]) -> RecordFn:
    """Keeps tensors as their layouts show them, by address; those of none as they are."""

    def note(address: str, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
        layout = layouts.get(address)
        if not isinstance(layout, FeatureLayout) or layout.shape != tuple(value.shape[1:]):
            return record_unchanged(address, module, value)
        shown = layout.to_canonical(value)
        return shown, layout.from_canonical(shown).clone()

    return note


def recorded_calls(found: Mapping[str, Any], address: ModuleAddress) -> list[str]:
    """The addresses under which the calls of a module were noted, in their order."""
    noted: list[str] = []
    while address.key(len(noted)) in found:
        noted.append(address.key(len(noted)))
    return noted
