"""Cross-attention maps: recorded truly, injected where asked, and nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from classifier_lens.models.generator import cross_attention
from classifier_lens.models.generator.cross_attention import AttentionControl, min_max_normalize, word_attention_map
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.types import UserError

Inputs = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def unet(tiny_pipe: StableDiffusionPipeline) -> UNet2DConditionModel:
    network = copy.deepcopy(tiny_pipe.unet).requires_grad_(False).eval()
    cross_attention.set_attention_processors(network)
    return network


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """Latents and text embeddings of two samples, the null half first."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 8, 8, generator=draw), torch.randn(4, 32, 16, generator=draw)


@torch.no_grad()
def call(unet: UNet2DConditionModel, inputs: Inputs, maps: AttentionControl | None = None) -> Tensor:
    kwargs = None if maps is None else {"maps": maps}
    return unet(inputs[0], torch.tensor(501), inputs[1], cross_attention_kwargs=kwargs).sample


def recorded(unet: UNet2DConditionModel, inputs: Inputs) -> dict[str, Tensor]:
    maps = AttentionControl(recorded_maps={}, num_recorded=2)
    call(unet, inputs, maps)
    assert maps.recorded_maps is not None
    return maps.recorded_maps


def text_layers(unet: UNet2DConditionModel) -> list[str]:
    return [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]


def test_every_text_layer_is_recorded_and_rows_sum_to_one(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    found = recorded(unet, inputs)
    assert list(found) and set(found) == set(text_layers(unet))
    for layer, maps in found.items():
        assert maps.shape[:2] == (2, 2) and maps.shape[3] == 32, layer  # samples, heads; tokens
        assert maps.shape[2] in (64, 16)
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]))
        assert not maps.requires_grad and maps.min() >= 0


def test_recorded_is_the_text_half(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    both = recorded(unet, inputs)
    text_alone = recorded(unet, (inputs[0][2:], inputs[1][2:]))
    null_alone = recorded(unet, (inputs[0][:2], inputs[1][:2]))
    for layer, maps in both.items():
        torch.testing.assert_close(maps, text_alone[layer], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(maps, null_alone[layer], atol=1e-3)


def test_a_networks_own_maps_change_nothing(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    plain = call(unet, inputs)
    own = AttentionControl(injected_maps=recorded(unet, inputs), is_injected=torch.tensor([True, True]))
    torch.testing.assert_close(call(unet, inputs, own), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", [0, 1])
def test_injection_reaches_every_head_of_the_active_samples_text_half(
    unet: UNet2DConditionModel, inputs: Inputs, head: int
) -> None:
    own = recorded(unet, inputs)
    for layer in own:
        changed = own[layer].clone()
        changed[:, head] = changed[:, head].roll(5, dims=-1)
        plain = call(unet, inputs, AttentionControl(injected_maps=own, is_injected=torch.tensor([True, True])))
        active = torch.tensor([False, True])
        out = call(unet, inputs, AttentionControl(injected_maps=own | {layer: changed}, is_injected=active))
        torch.testing.assert_close(out[:3], plain[:3], rtol=1e-5, atol=1e-5)  # both null rows and sample 0
        assert (out[3] - plain[3]).abs().max() > 1e-4, (layer, head)


def test_maps_of_one_layer_leave_the_others_alone(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    own = recorded(unet, inputs)
    first, *others = own
    uniform = torch.full_like(own[first], 1 / 32)
    maps = AttentionControl(
        injected_maps={first: uniform}, is_injected=torch.tensor([True, True]), recorded_maps={}, num_recorded=2
    )
    call(unet, inputs, maps)
    assert maps.recorded_maps is not None
    torch.testing.assert_close(maps.recorded_maps[first], own[first])  # what is recorded is the network's own
    assert all(not torch.equal(maps.recorded_maps[name], own[name]) for name in others), "later layers see its effect"


def test_our_processors_equal_diffusers_own(
    tiny_pipe: StableDiffusionPipeline, unet: UNet2DConditionModel, inputs: Inputs
) -> None:  # fmt: skip
    stock = copy.deepcopy(tiny_pipe.unet).eval()
    stock.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(call(unet, inputs), call(stock, inputs), rtol=1e-5, atol=1e-6)
    empty = call(unet, inputs, AttentionControl())
    torch.testing.assert_close(empty, call(stock, inputs), rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    before, modules = call(unet, inputs), {name: dict(vars(p)) for name, p in unet.attn_processors.items()}
    own = recorded(unet, inputs)
    call(
        unet,
        inputs,
        AttentionControl(injected_maps={k: m.flip(-1) for k, m in own.items()}, is_injected=torch.tensor([True, True])),
    )
    assert torch.equal(call(unet, inputs), before)
    assert {name: dict(vars(p)) for name, p in unet.attn_processors.items()} == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in unet.modules())


def test_self_attention_stays_fused_while_maps_are_recorded(
    unet: UNet2DConditionModel, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    fused = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append((q.shape[-2], k.shape[-2]))
        return fused(q, k, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    recorded(unet, inputs)
    selfs = [name for name in unet.attn_processors if "attn1" in name]
    assert len(calls) == len(selfs) and all(q == k for q, k in calls)


def test_the_generator_injects_per_sample_and_only_in_its_share_of_the_chain(
    make_generator: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With inject = 0.25 and 0.75 of four steps, sample 0 takes maps at the first step and sample 1 at three."""
    from tests.conftest import context_of

    generator = make_generator()
    seen: list[list[bool]] = []

    def predict(
        z: Tensor, t: Tensor, text: Tensor, maps: AttentionControl | None = None, w: float | None = None
    ) -> Tensor:
        seen.append([False, False] if maps is None or maps.is_injected is None else maps.is_injected.tolist())
        return z

    monkeypatch.setattr(generator.networks, "predict", predict)
    context = context_of(2)
    context = replace(context, cross_replace_steps=torch.tensor([0.25, 0.75]))
    z, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 32, 16)
    for i in range(4):
        generator.step(z, {"text": text, "null": text}, context.variance_noise[:, 0], i, context)
    assert seen == [[True, True], [False, True], [False, True], [False, False]]


# --- the map of a word ---------------------------------------------------------------------------------------


def test_a_word_map_by_hand() -> None:
    """One layer, two steps, two heads, 2 x 2 pixels, three tokens: means over steps, heads and tokens, over the max."""
    maps = torch.zeros(1, 2, 2, 4, 3)
    maps[0, 0, 0, :, 1] = torch.tensor([0.8, 0.4, 0.0, 0.0])
    maps[0, 1, 1, :, 2] = torch.tensor([0.0, 0.4, 0.4, 0.0])
    expected = torch.tensor([[[[0.8, 0.8], [0.4, 0.0]]]]) / 0.8
    torch.testing.assert_close(word_attention_map({"a": maps}, [[1, 2]], 2, slice(0, 2)), expected)
    torch.testing.assert_close(
        word_attention_map({"a": maps}, [[1]], 2, slice(0, 1)), torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    )  # fmt: skip


def test_a_stretched_map_starts_at_zero_and_a_flat_one_is_empty() -> None:
    maps = torch.tensor([[0.6, 0.7, 0.8, 1.0], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    expected = torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    torch.testing.assert_close(min_max_normalize(maps), expected)


def test_only_layers_of_the_asked_side_count_and_the_maximum_is_one(
    unet: UNet2DConditionModel, inputs: Inputs
) -> None:  # fmt: skip
    steps = {layer: m[:, None] for layer, m in recorded(unet, inputs).items()}
    for side in (8, 4):
        found = word_attention_map(steps, [[3], [4, 5]], side, slice(0, 1))
        assert found.shape == (2, 1, side, side)
        torch.testing.assert_close(found.amax(dim=(1, 2, 3)), torch.ones(2))
        same_side = {layer: m for layer, m in steps.items() if m.shape[3] == side * side}
        torch.testing.assert_close(found, word_attention_map(same_side, [[3], [4, 5]], side, slice(0, 1)))


def test_a_side_that_no_layer_has_is_refused_with_the_sides_there_are(
    unet: UNet2DConditionModel, inputs: Inputs
) -> None:  # fmt: skip
    steps = {layer: m[:, None] for layer, m in recorded(unet, inputs).items()}
    with pytest.raises(UserError, match=r"generator\.attention_maps\.resolution=16: allowed are 4, 8$"):
        word_attention_map(steps, [[1], [1]], 16, slice(0, 1))
