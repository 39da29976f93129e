"""The optimization loop over the controls of a batch, each sample by itself."""

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
    Context,
    Controls,
    Initialization,
    Objective,
    Precomputed,
    Scene,
    UserError,
    first_line,
)

# (scene, step) -> the scene with the augmented views that the classifier sees at this step
Augment = Callable[[Scene, int], Scene]
# gradients by control -> the same tensors, clipped in place, for each sample by itself
Clip = Callable[[Controls], None]
# (controls after an update, the update's gradients, initial controls, the update's number) -> projected controls, those
# that change
Project = Callable[[Controls, Controls, Controls, int], Controls]


def no_projection(updated: Controls, gradients: Controls, initial: Controls, step: int) -> Controls:
    """No control changes."""
    return {}


def clip_joint_norm(gradients: Controls, max_norm: Positive) -> None:
    """Scale each sample's gradients, all controls together, to an L2 norm of `max_norm` where it is larger. Their
    proportions do not change."""
    norm = torch.stack([_norms(g) ** 2 for g in gradients.values()]).sum(dim=0).sqrt()
    scale = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(_rows(scale, gradient))


def clip_largest_element(gradients: Controls, max_norm: Positive) -> None:
    """Scale each control's gradient, for each sample, so that its largest element is `max_norm` where it is larger
    (max-norm; DiG-IN, B.1)."""
    for gradient in gradients.values():
        largest = gradient.abs().flatten(1).amax(dim=1)
        # PyTorch's gradient clipping adds the same small number.
        gradient.mul_(_rows((max_norm / (largest + 1e-6)).clamp(max=1.0), gradient))


@dataclass(frozen=True)
class EarlyStopping:
    """Whether in `patience` evaluations in a row each term of the objective was below its bound in `thresholds`; never
    for an objective that has a term without a bound."""

    patience: PerProblemCount
    thresholds: Mapping[str, Threshold]

    def __call__(self, history: Sequence[Mapping[str, Sequence[float]]], i: int) -> bool:
        """Whether the last evaluations of sample i meet the criterion."""
        recent = history[-self.patience :]
        below = [
            all(values[name][i] < self.thresholds.get(name, -math.inf) for name in values if name != "total")
            for values in recent
        ]
        return len(recent) == self.patience and all(below)


@dataclass(frozen=True)
class OptimizerSettings:
    """How controls are optimized.

    method: a torch optimizer; steps: K; lr: learning rate by control, a control without one or with 0 is fixed; min_lr:
    final rate of the cosine schedule by control (equal to lr: constant; above it: the rate grows), None for constant
    rates; gradient_clipping: None for none; keep_norm: whether the start latent and each free token are rescaled to
    their initial norm after every update; early_stopping: None for none; project: what a baseline does after every
    update; autocast: number format of the networks that see augmented views, None for their own."""

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
        """The context in which the losses of augmented views are computed."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast is not None)

    def lr_at(self, name: str, k: int) -> float:
        """The learning rate of a control at step k: constant, or a cosine from lr to min_lr over the K steps."""
        if self.min_lr is None:
            return self.lr[name]
        final = self.min_lr.get(name, 0.0)
        return final + (self.lr[name] - final) * (1 + math.cos(math.pi * k / max(self.steps, 1))) / 2


@dataclass
class OptimizationState:
    """The state of a batch before evaluation `step`.

    optimizer_state: moments of the optimizer; best_controls, best_loss, best_step: of the best iterate per sample, by
    its total loss without augmentation; history: the terms of every evaluation; failures: why a sample was given up;
    initial_choice: None where the batch is not initialized again after a resume."""

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


def initial_state(controls: Controls, choice: InitialChoice | None = None) -> OptimizationState:
    """The state before the first evaluation. Its tensors are contiguous, as those of a checkpoint are: sums would
    otherwise run in another order after a resume."""
    controls = {name: value.contiguous() for name, value in controls.items()}
    first = next(iter(controls.values()))
    count, device = len(first), first.device
    return OptimizationState(
        controls=controls,
        best_controls={name: value.clone() for name, value in controls.items()},
        best_loss=torch.full((count,), math.inf, device=device),
        best_step=torch.zeros(count, dtype=torch.long, device=device),
        failures=[None] * count,
        initial_choice=choice,
    )


@dataclass(frozen=True)
class InitialChoice:
    """What a batch is initialized with again after a resume: the position of each sample's candidate, and what the
    generator has precomputed."""

    candidate_indices: list[int]
    precomputed: Precomputed


@torch.no_grad()
def choose_initialization(
    generator: Generator[Context], initialization: Initialization[Context], objective: Objective
) -> InitialChoice:
    """Per sample the candidate with the lowest total loss without augmentation."""
    indices = [0] * len(initialization.warnings)
    if len(initialization.candidates) > 1:
        scenes = generator.render_candidates(initialization)
        indices = torch.stack([evaluate(objective, scene).total for scene in scenes]).argmin(dim=0).tolist()
    return InitialChoice(indices, initialization.precomputed)


def optimize(
    generator: Generator[Context],
    context: Context,
    initial: Controls,
    objective: Objective,
    augment: Augment,
    settings: OptimizerSettings,
    state: OptimizationState,
) -> Iterator[OptimizationState]:
    """Evaluate and update until K updates are done or every sample stops early; yields the state after each evaluation.

    The loss averages the last x0-predictions with weights growing linearly. The best iterate is the one with the lowest
    total of the last prediction without augmentation; where steps have contexts of their own, it is rendered with
    `context`. A sample whose loss is not finite is given up; it does not change any more, like one that stops early.
    initial: the controls of step 0, after a resume as well.
    """
    names = [name for name in state.controls if settings.lr.get(name)]
    leaves = {name: state.controls[name].detach().clone().requires_grad_() for name in names}
    groups = [{"params": [leaves[name]], "lr": settings.lr[name]} for name in names]
    optimizer = settings.method(groups or [torch.zeros(0)])
    optimizer.state.update({leaves[name]: dict(moments) for name, moments in state.optimizer_state.items()})
    while not state.finished:
        controls, step_context = {**state.controls, **leaves}, generator.step_context(context, state.step)
        last = state.step == settings.steps or not names
        with torch.set_grad_enabled(not last):
            scenes = generator(controls, context if last else step_context)
            augmented = [] if last else [augment(scene, state.step) for scene in scenes]
            with settings.autocast_context(state.best_loss.device):
                losses = [evaluate(objective, scene) for scene in augmented]
        with torch.no_grad():
            scene = scenes[-1] if last or step_context is context else generator(controls, context)[-1]
            _record(state, evaluate(objective, scene), leaves)
            for loss in losses:
                _record_failures(state, loss)
        active = _active(state, settings)
        last = last or not any(active)
        if not last:
            weights = [(i + 1) / sum(range(len(losses) + 1)) for i in range(len(losses))]
            total = torch.stack([w * loss.total for w, loss in zip(weights, losses, strict=True)]).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            _drop_failed(state, leaves)
            _update(optimizer, leaves, settings, state, initial, active)
            state.step += 1
        state.finished = last
        state.controls = {**state.controls, **{name: leaf.detach() for name, leaf in leaves.items()}}
        state.optimizer_state = {
            name: dict(optimizer.state[leaf]) for name, leaf in leaves.items() if leaf in optimizer.state
        }
        yield state


def _record(state: OptimizationState, loss: Loss, leaves: Controls) -> None:
    """Append to the history and keep the controls of those samples whose loss is their lowest."""
    state.history.append({name: v.tolist() for name, v in {**loss.terms, "total": loss.total}.items()})
    _record_failures(state, loss)
    better = loss.total < state.best_loss
    state.best_loss = torch.where(better, loss.total, state.best_loss)
    state.best_step = torch.where(better, state.step, state.best_step)
    for name, value in {**state.controls, **leaves}.items():
        state.best_controls[name] = torch.where(_rows(better, value), value.detach(), state.best_controls[name])


def _record_failures(state: OptimizationState, loss: Loss) -> None:
    """Record the term of every sample whose loss is not finite."""
    for i, finite in enumerate(torch.isfinite(loss.total).tolist()):
        if not finite and state.failures[i] is None:
            state.failures[i] = f"step {state.step}: the term {loss.non_finite_term(i)} is not finite"


def _drop_failed(state: OptimizationState, leaves: Controls) -> None:
    """Set the gradients of failed samples to 0; a gradient that is not finite fails its sample."""
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


def _active(state: OptimizationState, settings: OptimizerSettings) -> list[bool]:
    """Which samples neither have failed nor stop early."""
    stops = settings.early_stopping or (lambda history, i: False)
    return [reason is None and not stops(state.history, i) for i, reason in enumerate(state.failures)]


@torch.no_grad()
def _update(
    optimizer: torch.optim.Optimizer,
    leaves: Controls,
    settings: OptimizerSettings,
    state: OptimizationState,
    initial: Controls,
    active: Sequence[bool],
) -> None:
    """One step of the optimizer, with clipping, learning rates, norms and projection per sample. Samples that are not
    `active` or have just failed do not change, whatever their momentum."""
    before = {name: leaf.clone() for name, leaf in leaves.items()}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if settings.gradient_clipping is not None:
        settings.gradient_clipping(gradients)
    for group, name in zip(optimizer.param_groups, leaves, strict=False):
        group["lr"] = settings.lr_at(name, state.step)
    optimizer.step()
    if settings.keep_norm and "latent" in leaves:
        norm, initial_norm = (latents.flatten(-3).norm(dim=-1) for latents in (leaves["latent"], initial["latent"]))
        leaves["latent"].mul_((initial_norm / norm)[..., None, None, None])
    if settings.keep_norm and "tokens" in leaves:
        norm_before, norm = (values["tokens"].norm(dim=-1, keepdim=True) for values in (before, leaves))
        leaves["tokens"].mul_(norm_before / norm.clamp(min=1e-12))
    for name, projected in settings.project(leaves, gradients, initial, state.step).items():
        leaves[name].copy_(projected)
    for name, leaf in leaves.items():
        changes = [on and f is None for on, f in zip(active, state.failures, strict=True)]
        leaf.copy_(torch.where(_rows(torch.tensor(changes, device=leaf.device), leaf), leaf, before[name]))


class NormalizedGradient(torch.optim.Optimizer):
    """Steps of length `lr`, a key of each group of params, along each image's own negative gradient; images are
    "... c h w"."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for leaf in group["params"]:
                norm = leaf.grad.flatten(-3).norm(dim=-1).clamp(min=1e-12)
                leaf.sub_(group["lr"] * leaf.grad / norm[..., None, None, None])


def _norms(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """(b,) shaped to broadcast over the other dimensions of `like`."""
    return per_sample.view(-1, *[1] * (like.ndim - 1))
