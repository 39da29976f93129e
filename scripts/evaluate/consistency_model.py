"""Metrics of the consistency model of the planted world: generated images, inversion, counterfactuals and time."""

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
    """The consistency model with its default settings."""
    return configure_run(setting, CLASSIFIER, LCM, 1)[0].diffusion


def lcm_prompt_accuracy(setting: Setting, n: int, factor: str) -> Estimate:
    """How often an image generated in four steps shows the class or the background in its caption."""
    return prompt_factor_accuracy(setting, n, factor, lcm_generator(setting))


def lcm_inversion_exact(setting: Setting, n: int) -> Estimate:
    """How often the image rendered from an inversion equals the autoencoder's reconstruction, to 0.01 of 255 levels; in
    8 bits the two may be rounded differently."""
    model = lcm_generator(setting)
    same: list[bool] = []
    max_difference = 0.0
    for overrides, count in problem_sets(setting, n):
        problems = prepare_problems(setting, CLASSIFIER, (*LCM, *overrides), count)[2]
        for problem in problems:
            image, prompt = problem.image[None].to(model.device), [problem.edit.source]
            context, networks = model.invert(image, prompt, [problem.seed]), model.networks
            with torch.no_grad():
                rendered = networks.decode(model.record_attention(context, networks.embed(prompt), 0)[2])
                levels = 255 * (rendered - networks.decode(networks.encode(image))).abs().max().item()
            max_difference = max(max_difference, levels)
            same.append(levels < 0.01)
    return estimates.proportion(same, f"largest difference {max_difference:.4f} of 255 levels")


def counterfactuals(setting: Setting, n: int) -> list[Result]:
    """Results for the problems of the metrics `planted.uvce_*`."""
    return [
        result
        for overrides, count in problem_sets(setting, n)
        for result in compute_results(setting, CLASSIFIER, (*LCM, *overrides), count)
    ]


def lcm_uvce_target_rate(setting: Setting, n: int) -> Estimate:
    """How often the classifier predicts the target."""
    return target_prediction_rate(counterfactuals(setting, n))


def lcm_uvce_oracle_score(setting: Setting, n: int) -> Estimate:
    """How often both oracles predict the target."""
    return oracle_score(setting, counterfactuals(setting, n))


def lcm_uvce_time_ratio(setting: Setting, n: int) -> Estimate:
    """Seconds per counterfactual over those of DDIM with 20 steps for the same problems, one after the other in this
    process, each with its own inversions."""
    pairs = []
    for overrides, count in problem_sets(setting, n):
        results_by_sampler = []
        for name, sampler in (("ddim", ()), ("lcm", LCM)):
            timed_setting = replace(setting, outputs=f"{setting.outputs}/timed/{name}")
            results_by_sampler.append(
                compute_results(timed_setting, CLASSIFIER, (*sampler, *overrides, "task.baseline=none"), count)
            )
        pairs += [
            (float(d.record["seconds"]), float(c.record["seconds"]))
            for d, c in zip(*results_by_sampler, strict=True) if d.record is not None and c.record is not None
        ]  # fmt: skip
    if not pairs:
        return estimates.undefined(f"0 of {n} problems have a result")
    slow, fast = (median(column) for column in zip(*pairs, strict=True))
    return estimates.median([c / d for d, c in pairs], f"DDIM-20 {slow:.1f} s, LCM-4 {fast:.1f} s")


METRICS = (
    Metric("planted.lcm_class", partial(lcm_prompt_accuracy, factor="class"), 512, "%", 0.85),
    Metric("planted.lcm_background", partial(lcm_prompt_accuracy, factor="background"), 512, "%", 0.90),
    Metric("planted.lcm_inversion", lcm_inversion_exact, 64, "%", 1.0),
    Metric("planted.lcm_uvce_target_rate", lcm_uvce_target_rate, 64, "%", 0.90),
    Metric("planted.lcm_uvce_oracles", lcm_uvce_oracle_score, 64, "%", 0.70),
    Metric("planted.lcm_uvce_time_ratio", lcm_uvce_time_ratio, 8, "×", 0.25, False),
)
