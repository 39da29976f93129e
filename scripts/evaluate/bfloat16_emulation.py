"""bfloat16 as a GPU computes it, on processors that have no instructions for it.

Tensor cores multiply bfloat16 values and sum in float32; the result is rounded once. A CPU without such instructions
takes hundreds of times as long for a product in bfloat16 as in float32. `Bfloat16Emulation` therefore gives the
products of bfloat16 tensors to the float32 kernels and rounds what they return. The order of the sums is not a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
MATMUL_OPS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.convolution.default, aten.convolution_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class Bfloat16Emulation(TorchDispatchMode):
    """Within it, products of bfloat16 tensors, and their gradients, are summed in float32."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        named = kwargs or {}
        given = [x for x in (*args, *named.values()) if isinstance(x, Tensor)]
        if function not in MATMUL_OPS or all(x.dtype != torch.bfloat16 for x in given):
            return function(*args, **named)
        wide = tree_map_only(Tensor, _widened, (tuple(args), dict(named)))
        found = function(*wide[0], **wide[1])
        if function is aten._scaled_dot_product_flash_attention_for_cpu.default:
            attended, log_sums = found
            return _rounded(attended), log_sums  # the sums of exponentials are float32 in any case
        return tree_map_only(Tensor, _rounded, found)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)
