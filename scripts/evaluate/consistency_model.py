"""Rows of the planted world's consistency model: sampled pictures, inversions, counterfactuals and their seconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from statistics import median

import torch

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import (
    Metric,
    Result,
    Setting,
    compute_results,
    configure_run,
    prepare_problems,
    target_prediction_rate,
)
from classifier_lens.scripts.evaluate.oracles import CLASSIFIER
from classifier_lens.scripts.evaluate.planted_world import oracle_score, problem_sets, prompt_factor_accuracy

LCM = ("sampler=lcm",)


@cache
def lcm_generator(setting: Setting) -> LatentDiffusion:
    """The consistency model with its own settings."""
    return configure_run(setting, CLASSIFIER, LCM, 1)[0].diffusion


def lcm_prompt_accuracy(setting: Setting, n: int, factor: str) -> Estimate:
    """How often a picture sampled in four steps shows the class or the background that its caption names."""
    return prompt_factor_accuracy(setting, n, factor, lcm_generator(setting))


def lcm_inversion_exact(setting: Setting, n: int) -> Estimate:
    """How often the picture rendered from an inversion is the autoencoder's own reconstruction, to a hundredth of one
    of 255 levels; in 8 bits either may be rounded to the other side of a level's edge."""
    model = lcm_generator(setting)
    same: list[bool] = []
    furthest = 0.0
    for overrides, count in problem_sets(setting, n):
        problems = prepare_problems(setting, CLASSIFIER, (*LCM, *overrides), count)[2]
        for problem in problems:
            image, prompt = problem.image[None].to(model.device), [problem.edit.source]
            course, networks = model.invert(image, prompt, [problem.seed]), model.networks
            with torch.no_grad():
                rendered = networks.decode(model.record_attention(course, networks.embed(prompt), 0)[2])
                levels = 255 * (rendered - networks.decode(networks.encode(image))).abs().max().item()
            furthest = max(furthest, levels)
            same.append(levels < 0.01)
    return estimates.proportion(same, f"largest difference {furthest:.4f} of 255 levels")


def counterfactuals(setting: Setting, n: int) -> list[Result]:
    """The answers to the questions of the rows of `planted.uvce`."""
    return [
        a
        for overrides, count in problem_sets(setting, n)
        for a in compute_results(setting, CLASSIFIER, (*LCM, *overrides), count)
    ]


def lcm_uvce_flip_rate(setting: Setting, n: int) -> Estimate:
    """How often the classifier calls the answer as asked."""
    return target_prediction_rate(counterfactuals(setting, n))


def lcm_uvce_oracle_score(setting: Setting, n: int) -> Estimate:
    """How often both oracles name the target."""
    return oracle_score(setting, counterfactuals(setting, n))


def lcm_uvce_time_ratio(setting: Setting, n: int) -> Estimate:
    """Seconds per counterfactual over those of DDIM with 20 steps for the same questions, one after the other in this
    process, each with inversions of its own."""
    pairs = []
    for overrides, count in problem_sets(setting, n):
        both = []
        for name, sampler in (("ddim", ()), ("lcm", LCM)):
            own = replace(setting, outputs=f"{setting.outputs}/timed/{name}")
            both.append(compute_results(own, CLASSIFIER, (*sampler, *overrides, "task.baseline=none"), count))
        pairs += [
            (float(d.record["seconds"]), float(c.record["seconds"]))
            for d, c in zip(*both, strict=True) if d.record is not None and c.record is not None
        ]  # fmt: skip
    if not pairs:
        return Estimate(float("nan"), float("nan"), float("nan"), f"0 of {n} answered")
    slow, fast = (median(column) for column in zip(*pairs, strict=True))
    return estimates.median([c / d for d, c in pairs], f"DDIM-20 {slow:.1f} s, LCM-4 {fast:.1f} s")


ROWS = (
    Metric("planted.lcm_class", partial(lcm_prompt_accuracy, factor="class"), 512, "%", 0.85),
    Metric("planted.lcm_background", partial(lcm_prompt_accuracy, factor="background"), 512, "%", 0.90),
    Metric("planted.lcm_inversion", lcm_inversion_exact, 64, "%", 1.0),
    Metric("planted.lcm_uvce_flips", lcm_uvce_flip_rate, 64, "%", 0.90),
    Metric("planted.lcm_uvce_oracles", lcm_uvce_oracle_score, 64, "%", 0.70),
    Metric("planted.lcm_uvce_ratio", lcm_uvce_time_ratio, 8, "×", 0.25, False),
)
