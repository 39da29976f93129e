"""Distances by hand: zero for the original, blind where the region is free, means over all elements."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from classifier_lens.runner.types import Reference, Scene
from classifier_lens.tasks.objectives.distances import distances, latent_distance, pixel_distance
from tests.conftest import reference_of


@pytest.fixture
def reference() -> Reference:
    """Two samples of 4 x 4 pixels and 2 x 2 latents with 4 channels; the left half is free."""
    draw = torch.Generator().manual_seed(0)
    mask, latent_mask = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)
    mask[..., :2] = latent_mask[..., :1] = 1.0
    return replace(
        reference_of(2), mask=mask, latent_mask=latent_mask, original=torch.rand(2, 3, 4, 4, generator=draw),
        original_latent=torch.randn(2, 4, 2, 2, generator=draw),
    )  # fmt: skip


def scene(reference: Reference) -> Scene:
    return Scene(reference.original.clone(), reference.original_latent.clone(), reference.original[:, None])


def test_the_original_has_distance_zero(reference: Reference) -> None:
    for distance in (pixel_distance, latent_distance):
        assert torch.equal(distance(reference)(scene(reference)), torch.zeros(2))


def test_changes_in_the_free_region_cost_nothing(reference: Reference) -> None:
    changed = scene(reference)
    changed.image[..., :2] += 0.5
    changed.latent[..., :1] += 0.5
    for distance in (pixel_distance, latent_distance):
        assert torch.equal(distance(reference)(changed), torch.zeros(2))


def test_one_changed_element_by_hand(reference: Reference) -> None:
    """0.5² over 3 · 4 · 4 pixel values and 2² over 4 · 2 · 2 latent values, in sample 1 alone."""
    changed = scene(reference)
    changed.image[1, 0, 0, 3] += 0.5
    changed.latent[1, 2, 1, 1] += 2.0
    assert pixel_distance(reference)(changed).tolist() == pytest.approx([0.0, 0.25 / 48])
    assert latent_distance(reference)(changed).tolist() == pytest.approx([0.0, 4 / 16])


def test_the_mask_multiplies_the_square(reference: Reference) -> None:
    half = replace(reference, mask=torch.full_like(reference.mask, 0.5))
    changed = scene(reference)
    changed.image.add_(0.2)
    assert pixel_distance(half)(changed).tolist() == pytest.approx([0.5 * 0.04] * 2, rel=1e-5)


def test_both_distances_go_by_their_own_weights(reference: Reference) -> None:
    changed = scene(reference)
    changed.image[0, 1, 2, 3] += 0.5
    changed.latent[1, 0, 0, 1] += 2.0
    weights = {"latent_distance": 25.0, "pixel_distance": 250.0, "class_log_prob": 1.0}
    found = distances(reference, weights)
    assert {name: weight for name, (weight, _) in found.items()} == {"latent_distance": 25.0, "pixel_distance": 250.0}
    assert found["latent_distance"][1](changed).tolist() == pytest.approx([0.0, 4 / 16])
    assert found["pixel_distance"][1](changed).tolist() == pytest.approx([0.25 / 48, 0.0])
    with pytest.raises(KeyError):
        distances(reference, {"latent_distance": 25.0})
