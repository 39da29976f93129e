"""Products of bfloat16 tensors: against exact sums, against the processor's own bfloat16, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.scripts.evaluate import bfloat16_emulation
from classifier_lens.scripts.evaluate.bfloat16_emulation import Bfloat16Emulation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (part.reshape(2, 3, 5, 8) for part in functional.linear(x, w / 5).chunk(3, dim=-1))
    return functional.scaled_dot_product_attention(q, k, v)


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda x, w: functional.linear(x, w, w[:, 0]), (4, 24), (8, 24)),
    "matmul": (torch.matmul, (3, 4, 24), (3, 24, 5)),
    "convolution": (lambda x, w: functional.conv2d(x, w, w[:, 0, 0, 0], padding=1), (2, 6, 8, 8), (4, 6, 3, 3)),
    "attention": (attended, (2, 5, 24), (72, 24)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_values_and_gradients_are_those_of_float32_rounded(name: str) -> None:
    product, *shapes = PRODUCTS[name]
    narrow = [normal(*shape, seed=i).to(torch.bfloat16).requires_grad_() for i, shape in enumerate(shapes)]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    with Bfloat16Emulation():
        found = product(narrow[0], narrow[1])
        grads = torch.autograd.grad(found.square().sum(), narrow)
    exact = product(wide[0], wide[1])
    wanted = torch.autograd.grad(exact.square().sum(), wide)
    assert found.dtype == torch.bfloat16 and all(g.dtype == torch.bfloat16 for g in grads)
    for got, true in zip([found, *grads], [exact, *wanted], strict=True):
        # A few roundings of 8 bits each, never the error of a sum in bfloat16.
        assert (got.float() - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("name", ["linear", "matmul", "convolution"])
def test_a_value_differs_from_float32_by_one_rounding(name: str) -> None:
    product, *shapes = PRODUCTS[name]
    narrow = [normal(*shape, seed=i).to(torch.bfloat16) for i, shape in enumerate(shapes)]
    with Bfloat16Emulation():
        found = product(narrow[0], narrow[1])
    assert torch.equal(found, product(narrow[0].float(), narrow[1].float()).to(torch.bfloat16))


def test_it_is_what_the_processor_computes_in_bfloat16_itself() -> None:
    product, *shapes = PRODUCTS["linear"]
    x, w = (normal(*shape, seed=i).to(torch.bfloat16) for i, shape in enumerate(shapes))
    own = product(x, w)
    with Bfloat16Emulation():
        assert torch.allclose(product(x, w).float(), own.float(), rtol=2**-7, atol=2**-7)


def test_float32_is_left_alone() -> None:
    product, *shapes = PRODUCTS["convolution"]
    x, w = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    with Bfloat16Emulation():
        found = product(x, w)
    assert torch.equal(found, product(x, w))


def test_every_product_of_the_networks_is_known(make_generator: Callable[..., LatentDiffusion]) -> None:
    """What a picture and its gradient call beside the known products, in bfloat16, is no product."""
    seen: set[str] = set()

    class Noted(Bfloat16Emulation):
        def __torch_dispatch__(
            self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:  # fmt: skip
            seen.add(str(function))
            return super().__torch_dispatch__(function, types, args, kwargs)

    networks = make_generator().networks
    unet, vae = networks.unet, networks.vae
    try:
        unet.to(torch.bfloat16), vae.to(torch.bfloat16)
        latent = normal(1, 4, 8, 8).requires_grad_()
        with Noted():
            told = networks.embed(["a viaduct"])
            picture = networks.decode(networks.predict(latent, torch.tensor(500), told))
            (gradient,) = torch.autograd.grad(picture.sum(), [latent])
    finally:
        unet.float(), vae.float()
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    products = {name for name in seen if any(word in name for word in ("mm", "conv", "attention", "linear", "dot"))}
    assert products and products <= {str(function) for function in bfloat16_emulation.MATMUL_OPS}
