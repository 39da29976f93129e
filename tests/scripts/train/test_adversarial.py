"""Laws of the attack: it stays where it may, and it raises the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier_lens.scripts.train.adversarial import l2_pgd


def norms(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def pictures(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(5, (n,), generator=generator)


@pytest.mark.parametrize("epsilon", [0.3, 1.5])
def test_stays_in_the_ball_and_the_cube_and_raises_every_loss(epsilon: float) -> None:
    model, (images, labels) = network(), pictures(6)
    attacked = l2_pgd(lambda x: F.cross_entropy(model(x), labels), images, epsilon, epsilon / 2, 5)
    assert (norms(attacked - images) <= epsilon + 1e-5).all() and (norms(attacked - images) > 0.5 * epsilon).all()
    assert attacked.min() >= 0 and attacked.max() <= 1 and not attacked.requires_grad
    before, after = (F.cross_entropy(model(x), labels, reduction="none") for x in (images, attacked))
    assert (after > before).all()
    assert all(p.grad is None for p in model.parameters())


def test_a_linear_loss_is_climbed_straight_to_the_edge_of_the_ball() -> None:
    direction = F.normalize(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).flatten(1)).view(
        1, 3, 8, 8
    )
    images = torch.full((2, 3, 8, 8), 0.5)
    attacked = l2_pgd(lambda x: (x * direction).sum(), images, 0.4, 0.3, 3)
    assert torch.allclose(attacked, images + 0.4 * direction, atol=1e-6)
    attacked = l2_pgd(lambda x: (x * direction).sum(), images, 0.4, 0.1, 3)
    assert torch.allclose(attacked, images + 0.3 * direction, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "step", "steps"), [(0.0, 0.5, 3), (1.0, 0.0, 3), (1.0, 0.5, 0)])
def test_nothing_to_do_is_the_identity(epsilon: float, step: float, steps: int) -> None:
    model, (images, labels) = network(), pictures(2)
    assert torch.equal(l2_pgd(lambda x: F.cross_entropy(model(x), labels), images, epsilon, step, steps), images)


def test_each_picture_has_a_ball_of_its_own() -> None:
    model, (images, labels) = network(), pictures(4)
    scale = torch.tensor([1.0, 100.0, 0.01, 0.0])  # of the losses; none may change another's steps

    def attack(rows: slice) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return (F.cross_entropy(model(x), labels[rows], reduction="none") * scale[rows]).sum()

        return l2_pgd(loss, images[rows], 0.5, 0.25, 4)

    together = attack(slice(0, 4))
    alone = torch.cat([attack(slice(i, i + 1)) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(norms(together - images)[:3], torch.tensor(0.5), atol=0.05)
    assert torch.equal(together[3], images[3])  # no gradient, no change
