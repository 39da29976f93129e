"""Problems of prompts with free tokens, optimized for a class, a unit, or both (DiffExplainer, Eq. 3-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
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
    """objective: one of `OBJECTIVES`; target: class index; unit: the unit whose activation is changed in favor of the
    class, see `activation_sign`; None if no term needs one."""

    objective: str
    target: int
    unit: Unit | None


def free_token_prompt(template: str, label: str) -> str:
    """A prompt from a template; `*{label}` makes the tokens of the class name free."""
    return format_prompt(template.replace("*{label}", "*" + label.replace(" ", "_")), label)


def activation_sign(classifier: Classifier, target: int, unit: Unit) -> float:
    """1 if a unit's activation raises the class's logit, -1 if it lowers it, by a negative weight of the last layer."""
    head = classifier.head
    return -1.0 if head is not None and unit.module == FEATURES and head.weight[target, unit.index] < 0 else 1.0


def prompt_objective(
    problems: Sequence[PromptProblem], classifier: Classifier, weights: Mapping[str, float]
) -> Objective:
    """The terms of all problems' objectives with their weights; a term is 0 for problems whose objective lacks it."""
    terms: dict[str, Term] = {"class_log_prob": class_log_prob(classifier, torch.tensor([p.target for p in problems]))}
    if given_units := [p.unit for p in problems if p.unit is not None]:
        units = [p.unit or given_units[0] for p in problems]  # of problems without one the term is masked
        signs = torch.tensor(
            [activation_sign(classifier, p.target, unit) for p, unit in zip(problems, units, strict=True)]
        )
        terms["unit_activation"] = unit_activation(classifier, units, signs)
    has_term = {name: torch.tensor([name in OBJECTIVES[p.objective] for p in problems]) for name in terms}
    return {
        name: (weights[name], _masked_term(term, has_term[name]))
        for name, term in terms.items()
        if has_term[name].any()
    }


def _masked_term(term: Term, has_term: Bool[Tensor, " b"]) -> Term:
    """The term, with 0 for samples that do not have it."""

    def masked(scene: Scene) -> Float[Tensor, " b"]:
        values = term(scene)
        return torch.where(has_term.to(values.device), values, 0)

    return term if has_term.all() else masked
