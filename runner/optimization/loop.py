"""The loop: descend on the controls of a batch, each sample for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import (
    LearningRates,
    OneOf,
    PerProblemCount,
    Positive,
    Steps,
    Threshold,
)
from classifier_lens.runner.optimization.objective import Loss, evaluate
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import (
    Controls,
    EditContext,
    Initialization,
    Objective,
    Precomputed,
    Scene,
    UserError,
    first_line,
)

# (scene, step) -> the scene with the views that the classifier is shown at this step
Augment = Callable[[Scene, int], Scene]
# gradients by control -> the same tensors, made shorter in place, for each sample on its own
Clip = Callable[[Controls], None]
# (controls after an update, the gradients that led there, the anchor, the update's number) -> controls that it changes
Project = Callable[[Controls, Controls, EditContext, int], Controls]


def no_projection(after: Controls, gradients: Controls, anchor: EditContext, step: int) -> Controls:
    """Controls stay as the update left them."""
    return {}


def clip_joint_norm(gradients: Controls, max_norm: Positive) -> None:
    """Scale each sample's gradients, all controls together, to an L2 norm of `max_norm` where it is larger. The
    controls keep their proportions to each other."""
    length = torch.stack([_norms(g) ** 2 for g in gradients.values()]).sum(dim=0).sqrt()
    scale = (max_norm / length.clamp(min=1e-12)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(_rows(scale, gradient))


def clip_largest_element(gradients: Controls, max_norm: Positive) -> None:
    """Scale each control's gradient, for each sample, so that its largest element is `max_norm` where it is larger
    (max-norm; DiG-IN, B.1)."""
    for gradient in gradients.values():
        largest = gradient.abs().flatten(1).amax(dim=1)
        # The small number is that of PyTorch's own clipping.
        gradient.mul_(_rows((max_norm / (largest + 1e-6)).clamp(max=1.0), gradient))


@dataclass(frozen=True)
class EarlyStopping:
    """Enough is reached when in `patience` evaluations in a row each term of the objective was under its bound in
    `thresholds`; an objective with a term that has no bound never has enough."""

    patience: PerProblemCount
    thresholds: Mapping[str, Threshold]

    def __call__(self, history: Sequence[Mapping[str, Sequence[float]]], i: int) -> bool:
        """Whether sample i has enough, by its last evaluations."""
        recent = history[-self.patience :]
        low = [
            all(values[name][i] < self.thresholds.get(name, -math.inf) for name in values if name != "total")
            for values in recent
        ]
        return len(recent) == self.patience and all(low)


@dataclass(frozen=True)
class OptimizerSettings:
    """How to descend. method: a torch optimiser; steps: K; lr: a rate per control, absent or 0 keeps it fixed; min_lr:
    where the cosine ends, per control (equal to lr: constant, above it: the rate grows); gradient_clipping: what
    shortens gradients, None for nothing; keep_norm: whether the start latent and each free token are scaled back to
    their length after every update; early_stopping: when a sample has reached enough, None for never; project: what a
    baseline does after every update; autocast: the number format of the networks that see augmented views, None for
    their own."""

    method: Callable[..., torch.optim.Optimizer]
    steps: Steps
    lr: LearningRates
    min_lr: LearningRates | None
    gradient_clipping: Clip | None
    keep_norm: bool
    early_stopping: EarlyStopping | None
    project: Project = no_projection
    autocast: Annotated[str, OneOf(("bfloat16",))] | None = None

    def __post_init__(self) -> None:
        try:  # torch's optimizers state no ranges
            self.method([{"params": [torch.zeros(1)], "lr": 0.1}])
        except (ValueError, TypeError) as error:
            raise UserError(f"optimizer.method: {first_line(error)}") from error

    def autocast_context(self, device: torch.device) -> torch.autocast:
        """Within which augmented views are judged."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast is not None)

    def lr_at(self, name: str, k: int) -> float:
        """The rate of a control at step k: constant, or a cosine from lr to min_lr over the K steps."""
        if self.min_lr is None:
            return self.lr[name]
        low = self.min_lr.get(name, 0.0)
        return low + (self.lr[name] - low) * (1 + math.cos(math.pi * k / max(self.steps, 1))) / 2


@dataclass
class OptimizationState:
    """Where a batch stands before evaluation `step`: controls, the method's moments, the best iterate per sample
    (its controls, un-augmented total and step), the history of every evaluation, why a sample was given up, and what
    the samples began with, None where it is not to be begun again."""

    controls: Controls
    best_controls: Controls
    best_loss: Tensor
    best_step: Tensor
    failures: list[str | None]
    initial_choice: InitialChoice | None = None
    step: int = 0
    optimizer_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    history: list[dict[str, list[float]]] = field(default_factory=list)
    finished: bool = False
    seconds: float = 0.0


def initial_state(controls: Controls, origin: InitialChoice | None = None) -> OptimizationState:
    """The state before the first evaluation. Its tensors are contiguous, as those of a checkpoint are: sums would
    otherwise run in another order after a resume."""
    controls = {name: value.contiguous() for name, value in controls.items()}
    n = len(next(iter(controls.values())))
    device = next(iter(controls.values())).device
    best = {name: value.clone() for name, value in controls.items()}
    infinite = torch.full((n,), math.inf, device=device)
    return OptimizationState(
        dict(controls), best, infinite, torch.zeros(n, dtype=torch.long, device=device), [None] * n, origin
    )


@dataclass(frozen=True)
class InitialChoice:
    """What a batch is initialized with again after a resume: the position of each sample's candidate, and what the
    generator has precomputed."""

    candidate_indices: list[int]
    precomputed: Precomputed


@torch.no_grad()
def choose_initialization(generator: Generator, initialization: Initialization, objective: Objective) -> InitialChoice:
    """Per sample the candidate with the lowest total loss without augmentation."""
    indices = [0] * len(initialization.warnings)
    if len(initialization.candidates) > 1:
        scenes = generator.render_candidates(initialization)
        indices = torch.stack([evaluate(objective, scene).total for scene in scenes]).argmin(dim=0).tolist()
    return InitialChoice(indices, initialization.precomputed)


def optimize(
    generator: Generator,
    anchor: EditContext,
    objective: Objective,
    augment: Augment,
    descent: OptimizerSettings,
    state: OptimizationState,
) -> Iterator[OptimizationState]:
    """Evaluate and update until K updates are done or every sample has enough; yields the state after each evaluation.

    The loss averages the last x0-predictions with weights growing linearly; the best iterate is the one with the
    lowest un-augmented total of the last prediction, made with the anchor itself where steps meet constants of their
    own. A sample whose loss is not finite is given up and stands still, as does one that has enough.
    """
    names = [name for name in state.controls if descent.lr.get(name)]
    leaves = {name: state.controls[name].detach().clone().requires_grad_() for name in names}
    method = descent.method([{"params": [leaves[name]], "lr": descent.lr[name]} for name in names] or [torch.zeros(0)])
    method.state.update({leaves[name]: dict(moments) for name, moments in state.optimizer_state.items()})
    while not state.finished:
        controls, now = {**state.controls, **leaves}, generator.step_context(anchor, state.step)
        last = state.step == descent.steps or not names
        with torch.set_grad_enabled(not last):
            scenes = generator(controls, anchor if last else now)
            views = [] if last else [augment(scene, state.step) for scene in scenes]
            with descent.autocast_context(state.best_loss.device):
                losses = [evaluate(objective, scene) for scene in views]
        with torch.no_grad():
            judged = scenes[-1] if last or now is anchor else generator(controls, anchor)[-1]
            _record(state, evaluate(objective, judged), leaves)
            for loss in losses:
                _note_failures(state, loss)
        moving = _moving(state, descent)
        last = last or not any(moving)
        if not last:
            shares = [(i + 1) / sum(range(len(losses) + 1)) for i in range(len(losses))]
            total = torch.stack([share * loss.total for share, loss in zip(shares, losses, strict=True)]).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            _give_up(state, leaves)
            _update(method, leaves, descent, state, anchor, moving)
            state.step += 1
        state.finished = last
        state.controls = {**state.controls, **{name: leaf.detach() for name, leaf in leaves.items()}}
        state.optimizer_state = {
            name: dict(method.state[leaf]) for name, leaf in leaves.items() if leaf in method.state
        }
        yield state


def _record(state: OptimizationState, loss: Loss, leaves: Controls) -> None:
    """Append to the history and keep the controls of those samples that are better than ever."""
    state.history.append({name: v.tolist() for name, v in {**loss.terms, "total": loss.total}.items()})
    _note_failures(state, loss)
    better = loss.total < state.best_loss
    state.best_loss = torch.where(better, loss.total, state.best_loss)
    state.best_step = torch.where(better, state.step, state.best_step)
    for name, value in {**state.controls, **leaves}.items():
        state.best_controls[name] = torch.where(_rows(better, value), value.detach(), state.best_controls[name])


def _note_failures(state: OptimizationState, loss: Loss) -> None:
    """Name the term of every sample whose loss is not finite."""
    for i, finite in enumerate(torch.isfinite(loss.total).tolist()):
        if not finite and state.failures[i] is None:
            state.failures[i] = f"step {state.step}: the term {loss.non_finite_term(i)} is not finite"


def _give_up(state: OptimizationState, leaves: Controls) -> None:
    """Take failed samples out of the descent; a gradient that is not finite fails its sample."""
    for name, leaf in leaves.items():
        gradient = leaf.grad
        assert gradient is not None
        for i, finite in enumerate(torch.isfinite(gradient).flatten(1).all(dim=1).tolist()):
            if not finite and state.failures[i] is None:
                state.failures[i] = f"step {state.step}: the gradient of {name} is not finite"
    for leaf in leaves.values():
        if leaf.grad is not None:
            alive = torch.tensor([reason is None for reason in state.failures], device=leaf.device)
            leaf.grad = torch.where(_rows(alive, leaf), leaf.grad, torch.zeros_like(leaf))


def _moving(state: OptimizationState, descent: OptimizerSettings) -> list[bool]:
    """Which samples neither were given up nor have enough."""
    enough = descent.early_stopping or (lambda history, i: False)
    return [reason is None and not enough(state.history, i) for i, reason in enumerate(state.failures)]


@torch.no_grad()
def _update(
    method: torch.optim.Optimizer,
    leaves: Controls,
    descent: OptimizerSettings,
    state: OptimizationState,
    anchor: EditContext,
    moving: Sequence[bool],
) -> None:
    """One step of the method, with clipping, rates and the latent's length per sample; no momentum moves a sample on
    that is not `moving` or that has just failed."""
    before = {name: leaf.clone() for name, leaf in leaves.items()}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if descent.gradient_clipping is not None:
        descent.gradient_clipping(gradients)
    for group, name in zip(method.param_groups, leaves, strict=False):
        group["lr"] = descent.lr_at(name, state.step)
    method.step()
    if descent.keep_norm and "latent" in leaves:
        latent = leaves["latent"]
        latent.mul_((anchor.latent_norm / latent.flatten(-3).norm(dim=-1))[..., None, None, None])
    if descent.keep_norm and "tokens" in leaves:
        lengths = (values["tokens"].norm(dim=-1, keepdim=True) for values in (before, leaves))
        leaves["tokens"].mul_(next(lengths) / next(lengths).clamp(min=1e-12))
    for name, changed in descent.project(leaves, gradients, anchor, state.step).items():
        leaves[name].copy_(changed)
    for name, leaf in leaves.items():
        on = torch.tensor([m and f is None for m, f in zip(moving, state.failures, strict=True)], device=leaf.device)
        leaf.copy_(torch.where(_rows(on, leaf), leaf, before[name]))


class NormalizedGradient(torch.optim.Optimizer):
    """Steps of length `lr`, a key of each group of params, down each picture's own gradient, whatever its length;
    pictures are "... c h w"."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for leaf in group["params"]:
                length = leaf.grad.flatten(-3).norm(dim=-1).clamp(min=1e-12)
                leaf.sub_(group["lr"] * leaf.grad / length[..., None, None, None])


def _norms(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """(b,) shaped to broadcast over the other dimensions of `like`."""
    return per_sample.view(-1, *[1] * (like.ndim - 1))
