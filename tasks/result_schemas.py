"""The result schemas of all tasks, by the names of the tasks in the configuration."""

from __future__ import annotations

from classifier_lens.runner.result_schema import CommonRecord, ResultSchema
from classifier_lens.tasks import (
    attention_maps,
    concept_effect,
    diffexplainer_class,
    disagreement,
    input_gradients,
    neuron_cf,
    neuron_vis,
    npca_cf,
    spurious_audit,
    uvce,
)

RESULT_SCHEMAS = {
    "attention_maps": attention_maps.RESULT_SCHEMA,
    "concept_effect": concept_effect.RESULT_SCHEMA,
    "diffexplainer_class": diffexplainer_class.RESULT_SCHEMA,
    "disagreement": disagreement.RESULT_SCHEMA,
    "input_gradients": input_gradients.RESULT_SCHEMA,
    "neuron_cf": neuron_cf.RESULT_SCHEMA,
    "neuron_vis": neuron_vis.RESULT_SCHEMA,
    "npca_cf": npca_cf.RESULT_SCHEMA,
    "spurious_audit": spurious_audit.RESULT_SCHEMA,
    "uvce": uvce.RESULT_SCHEMA,
}


def result_schema(task: str) -> ResultSchema:
    """The schema of a task; of an unknown one its name as the title and what all results have in common."""
    return RESULT_SCHEMAS.get(task) or ResultSchema(task.replace("_", " ").capitalize(), CommonRecord)
