"""Prompts with free tokens that stand for a class, a unit, or both (DiffExplainer, Eq. 3-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import Objective, Problem, Scene, Term
from classifier_lens.tasks.objectives.loss_terms import class_log_prob, unit_activation
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.units.addressing import FEATURES, Unit

# The terms of each objective: Eq. 3, Eq. 4 and their sum, Eq. 5.
OBJECTIVES = {"class": ("class_log_prob",), "unit": ("unit_activation",), "both": ("class_log_prob", "unit_activation")}


@dataclass(frozen=True, kw_only=True)
class PromptProblem(Problem):
    """objective: of `OBJECTIVES`; target: class index; unit: whose activation is changed in favour of the class, see
    `direction`, None where no term asks."""

    objective: str
    target: int
    unit: Unit | None


def free_token_prompt(template: str, label: str) -> str:
    """A prompt from a template, in which `*{label}` makes the name's own tokens free."""
    return format_prompt(template.replace("*{label}", "*" + label.replace(" ", "_")), label)


def activation_sign(classifier: Classifier, target: int, unit: Unit) -> float:
    """Where a unit's activation has to go to speak for a class: up, 1; with a negative weight in its logit down, −1."""
    head = classifier.head
    return -1.0 if head is not None and unit.module == FEATURES and head.weight[target, unit.index] < 0 else 1.0


def prompt_objective(
    problems: Sequence[PromptProblem], classifier: Classifier, weights: Mapping[str, float]
) -> Objective:
    """Each problem's own objective, its terms with their weights; a term is 0 for those that do not have it."""
    terms: dict[str, Term] = {"class_log_prob": class_log_prob(classifier, torch.tensor([p.target for p in problems]))}
    if known := [p.unit for p in problems if p.unit is not None]:
        units = [p.unit or known[0] for p in problems]
        signs = torch.tensor(
            [activation_sign(classifier, p.target, unit) for p, unit in zip(problems, units, strict=True)]
        )
        terms["unit_activation"] = unit_activation(classifier, units, signs)
    asked = {name: torch.tensor([name in OBJECTIVES[p.objective] for p in problems]) for name in terms}
    return {name: (weights[name], _masked_term(term, asked[name])) for name, term in terms.items() if asked[name].any()}


def _masked_term(term: Term, asked: Tensor) -> Term:
    """The term where a sample is asked for it, else 0."""

    def masked(scene: Scene) -> Float[Tensor, " b"]:
        values = term(scene)
        return torch.where(asked.to(values.device), values, 0)

    return term if asked.all() else masked
