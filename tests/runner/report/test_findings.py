"""The sentence of each task: of a result, and of a run; for present results and for those with former keys."""

from __future__ import annotations

from typing import Any

import pytest

from classifier_lens.runner.report.findings import FINDINGS, Names, finding
from classifier_lens.runner.report.headlines import HEADLINES, first_sentence, headline_of
from classifier_lens.runner.report.result_keys import current_record, current_summary

NAMES = Names("net_a", "net_b")
COUNTERFACTUAL = {
    "success": True, "source": "crab", "target": "urn", "predicted_before": "crab", "predicted_after": "urn",
    "predicted_start": "crab", "confidence_after": {"urn": 0.987},
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "uvce": COUNTERFACTUAL,
    "disagreement": {
        "success": True, "target": "crab", "gap_before": 0.1, "gap_after": 0.85, "predicted_after": "crab",
        "second_predicted_after": "urn", "image_neighbors": 5, "image_neighbors_disagreeing": 3,
    },
    "neuron_vis": {
        "success": False, "unit": "f:1", "activation_before": 1.0, "activation_after": 4.5, "training_max": 5.0,
        "best_word": "a crab", "word_max": 3.0, "activation_zscore": 2.0, "other_units_zscore": -0.5,
    },
    "neuron_cf": {
        "success": True, "unit": "f:1", "direction": "max", "activation_before": 1.0, "activation_start": 2.0,
        "activation_after": 4.0, "activation_attack": 5.0, "training_std": 2.0, "cam_share_outside_after": 0.75,
    },
    "npca_cf": {
        "success": False, "source": "crab", "component": 0, "direction": "min", "contribution_before": 1.0,
        "contribution_start": 1.0, "contribution_after": 0.5, "training_std": 2.0,
    },
    "diffexplainer_class": {
        "target": "crab", "activation_score": 1.0, "images": {"result": "", "start": "", "sample_01": ""},
        "baseline_prompts": {"class_name": {"activation_score": 0.53}, "caption": {"activation_score": 1.0}},
    },
    "spurious_audit": {
        "target": "crab", "verdict": "spurious", "r": 0.01, "r_interval": [0.0, 0.03], "delta": 0.05,
        "activated": True, "activation": 3.0, "class_mean_activation": 4.0, "training_max": 6.0,
        "activation_score": 1.0, "annotation": "spurious", "agrees_with_annotation": True,
    },
    "attention_maps": {
        "share_on_object": {"attention_00_a": 0.3}, "share_on_object_class": 0.62, "share_on_object_words": 0.4,
        "object_area": 0.29, "psnr": 25.7,
    },
    "concept_effect": {
        "kind": "phrases", "target": "crab", "similar_class": "urn", "found": ["on sand"], "recall": 0.5,
        "effects": [
            {"concept": "on sand", "effect": 0.56, "interval": [0.49, 0.64], "effect_on_class": 0.63,
             "effect_on_similar_class": 0.5, "found": True},
            {"concept": "in snow", "effect": 0.1, "interval": [0.0, 0.2], "effect_on_class": 0.2,
             "effect_on_similar_class": 0.0, "found": False},
        ],
        "pairs": [{"concept": "on sand", "paired_effect": 0.55, "interval": [0.4, 0.7], "sufficiency": 0.75,
                   "necessity": None}],
        "untested": ["in a sauna"], "detectable_effect": 0.24, "is_control": None, "is_damage": None, "overlay": None,
    },
    "input_gradients": {
        "target": "urn", "share_on_object": {"none": 0.75, "crops": 0.8}, "object_area": 0.31,
        "probability": {"none": 0.5, "crops": 0.25}, "predicted_before": "crab",
    },
}  # fmt: skip
SENTENCES = {
    "uvce": ("The prediction changes from crab to urn.", "urn 0.99", "1 of 1 image is now predicted as the target"),
    "disagreement": ("net_a predicts crab, net_b predicts urn", "gap 0.85", "net_a and net_b disagree by the required"),
    "neuron_vis": ("to 4.50, 90\u00a0% of the maximum over", "90\u00a0% of", "90\u00a0% of the training maximum"),
    "neuron_cf": ("rises from 1.00 to 4.00 (+1.50 standard", "+1.50 SD", "median change +1.50 standard deviations"),
    "npca_cf": ("falls from 1.00 to 0.50 (−0.25 standard", "−0.25 SD", "median change +0.25 standard deviations"),
    "diffexplainer_class": (
        "2 of 2 images of the optimized prompt are predicted as crab: activation score 1.00, against 0.53",
        "activation score 1.00", "mean activation score of 1.00, against 0.53 for the class name (1 class)",
    ),
    "spurious_audit": ("crab covers r\u00a0=\u00a00.01", "spurious, r 0.01", "1 spurious, 0 core, 0 undecided"),
    "attention_maps": ("62\u00a0% of the attention to the class name lies on the object", "62", "covers 29\u00a0%"),
    "concept_effect": (
        "“on sand” is a shortcut of crab: it changes its probability by +0.56 (95\u00a0% interval +0.49 to +0.64), in "
        "images of crab by +0.63 and in images of urn by +0.50.",
        "“on sand” +0.56", "1 of 1 class depends on a phrase: crab ← “on sand” (+0.56)",
    ),
    "input_gradients": ("75\u00a0% of the gradient of urn lies", "75", "75\u00a0% of the gradient lies"),
}  # fmt: skip


@pytest.mark.parametrize("task", list(RECORDS))
def test_each_task_has_its_sentence(task: str) -> None:
    summary = finding(task, RECORDS[task], NAMES)
    run = first_sentence(task, [{key: RECORDS[task].get(key) for key in headline_of(task).keys}], NAMES)
    for text, part in zip((summary.sentence, summary.short, run), SENTENCES[task], strict=True):
        assert part in text


def test_every_task_that_has_a_title_has_its_finding() -> None:
    assert set(HEADLINES) == set(FINDINGS) == set(RECORDS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"predicted_after": "crab", "confidence_after": {"crab": 1.0}}, "stays crab; it does not become urn"),
        ({"predicted_before": "urn"}, "is predicted as urn already"),
        ({"predicted_after": "snow", "confidence_after": {"snow": 1.0}}, "from crab to snow, not to urn"),
    ],
)
def test_a_counterfactual_that_fails_says_how(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in finding("uvce", COUNTERFACTUAL | changes, NAMES).sentence


def test_images_that_score_higher_than_the_class_name_point_to_the_context() -> None:
    record = RECORDS["diffexplainer_class"]
    assert "predicts the class from the context alone" in finding("diffexplainer_class", record, NAMES).note
    plain = {"class_name": {"activation_score": 1.0}}
    assert not finding("diffexplainer_class", {**record, "baseline_prompts": plain}, NAMES).note


def test_a_result_without_its_values_is_told_by_its_criterion() -> None:
    assert finding("neuron_vis", {"criterion": "1 < 2, the highest"}, NAMES).sentence == "1 < 2, the highest"
    assert first_sentence("neuron_vis", [{"success": True}], NAMES) == "1 of 1 problem succeeds"
    assert first_sentence("uvce", [], NAMES) == ""


def test_former_keys_are_read_under_their_present_names() -> None:
    former = {
        "picture": "a", "interval": [0, 1], "images": {"best": "b.png", "start": "s.png"},
        "rivals": {"class name": {"images": 8, "verdict": "beats"}},
    }  # fmt: skip
    present = current_record(former, "diffexplainer_class")
    assert present == {
        "image_name": "a", "activation_score_interval": [0, 1], "images": {"result": "b.png", "start": "s.png"},
        "baseline_prompts": {"class_name": {"num_images": 8, "comparison": "beats"}},
    }  # fmt: skip
    assert current_record(present, "diffexplainer_class") == present
    maps = {"images": {"word-00-a": "a.png", "class": "c.png"}, "within": {"word-00-a": 0.5}}
    assert current_record(maps, "attention_maps") == {
        "images": {"attention_00_a": "a.png", "attention_class_name": "c.png"},
        "share_on_object": {"attention_00_a": 0.5},
    }  # fmt: skip
    others = {"images": {"near-1": "n.png", "text-2": "t.png", "gradient-much_noise": "g.png", "sample_01": "s.png"}}
    assert set(current_record(others, "disagreement")["images"]) == {
        "image_neighbor_01", "text_neighbor_02", "gradient_much_noise", "sample_01",
    }  # fmt: skip
    summary = current_summary({"answers": 2, "features": [{"typical": 1.0}]}, "spurious_audit")
    assert summary == {"results": 2, "features": [{"class_mean_activation": 1.0}]}
