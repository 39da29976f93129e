"""Emulation of a GPU's bfloat16 arithmetic on processors without bfloat16 instructions.

Tensor cores multiply bfloat16 values, sum in float32 and round the result once. A CPU without such instructions takes
hundreds of times as long for a product in bfloat16 as in float32. `Bfloat16Emulation` therefore computes products of
bfloat16 tensors with the float32 kernels and rounds the results. The order of the sums differs from a GPU's.
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
    """Dispatch mode in which products of bfloat16 tensors, and their gradients, are summed in float32."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        keywords = kwargs or {}
        tensors = [x for x in (*args, *keywords.values()) if isinstance(x, Tensor)]
        if function not in MATMUL_OPS or all(x.dtype != torch.bfloat16 for x in tensors):
            return function(*args, **keywords)
        float32_args = tree_map_only(Tensor, _widened, (tuple(args), dict(keywords)))
        output = function(*float32_args[0], **float32_args[1])
        if function is aten._scaled_dot_product_flash_attention_for_cpu.default:
            attended, log_sums = output
            return _rounded(attended), log_sums  # the log-sum-exp values are float32 anyway
        return tree_map_only(Tensor, _rounded, output)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)
