"""A recomputed call: the same values and gradients, and no graph but one node."""

from __future__ import annotations

import torch
from torch import Tensor

from classifier_lens.models.generator.recomputation import checkpointed

WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


def compute(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.tanh(x @ WEIGHT)
    return hidden * y, hidden.exp()


def test_values_and_gradients_are_those_of_the_plain_call() -> None:
    x, y = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1)).requires_grad_().unbind()
    plain, again = compute(x, y), checkpointed(compute, x, y)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
    weights = [torch.rand(2, 3, generator=torch.Generator().manual_seed(i)) for i in (2, 3)]
    for outputs in ((0, 1), (0,), (1,)):
        totals = [torch.stack([(o[i] * weights[i]).sum() for i in outputs]).sum() for o in (plain, again)]
        found = [
            torch.autograd.grad(t, (x, y), retain_graph=True, allow_unused=True, materialize_grads=True) for t in totals
        ]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


def test_inputs_without_a_gradient_get_none() -> None:
    x, y = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
    first, _ = checkpointed(compute, x, y)
    first.sum().backward()
    assert x.grad is None and y.grad is not None
    assert torch.equal(y.grad, torch.tanh(x @ WEIGHT))
    assert not checkpointed(compute, x, y.detach())[0].requires_grad


def test_nothing_of_the_graph_is_kept() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(int(torch.is_grad_enabled()))
        return (torch.tanh(x @ WEIGHT),)

    x = torch.ones(2, 3, requires_grad=True)
    (found,) = checkpointed(counted, x)
    assert found.grad_fn is not None
    assert [type(node).__name__ for node, _ in found.grad_fn.next_functions if node] == ["AccumulateGrad"]
    found.sum().backward()
    assert calls == [0, 1]
