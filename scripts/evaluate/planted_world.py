"""Metrics of the planted world: the generator against the renderer, and counterfactuals of `planted_clean`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.images import center_crop_resize
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.results.run_folder import quantize_8bit
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import (
    Metric,
    Result,
    Setting,
    compute_results,
    domain_parts,
    prepare_problems,
    reconstruct,
    sample_images,
)
from classifier_lens.scripts.evaluate.oracles import CLASSIFIER, ORACLES, oracle_features, predict_factor, result_images
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem

BASELINES = ("start_only", "pixels", "classifier_guidance")
MIN_CONFIDENCE = 0.8  # confidence in the target
MAX_BACKGROUND_RATIO = 1.3  # background error, as a multiple of the reconstruction's
RENDERS_PER_RESULT = 8  # reference images per counterfactual for KID


# --- the generator -------------------------------------------------------------------------------------------


def held_out_images(setting: Setting, n: int) -> tuple[Float[Tensor, "b 3 h w"], list[str], planted.SceneFactors]:
    """The first images of the test split, at the generator's resolution, with their captions and factors."""
    data = planted.PlantedDataset("test", n, setting.seed, "independent", None)
    examples = [data[i] for i in range(n)]
    resolution = domain_parts(setting, CLASSIFIER).diffusion.resolution
    return (
        torch.stack([center_crop_resize(e.image, resolution) for e in examples]),
        [e.caption or "" for e in examples],
        data.scenes,
    )


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """Mean PSNR of autoencoded images."""
    images = held_out_images(setting, n)[0]
    return estimates.mean(
        estimates.psnr(images, reconstruct(domain_parts(setting, CLASSIFIER).diffusion, images)).tolist()
    )


@cache
def images_from_captions(
    setting: Setting, n: int, generator: LatentDiffusion | None = None
) -> tuple[Float[Tensor, "b 3 h w"], planted.SceneFactors]:
    """Images generated from the full captions of held-out scenes, and the scenes; generator: None for the one of the
    domain."""
    _, captions, scenes = held_out_images(setting, n)
    seeds = [setting.image_seed(i) for i in range(n)]
    return sample_images(generator or domain_parts(setting, CLASSIFIER).diffusion, captions, seeds), scenes


def prompt_factor_accuracy(setting: Setting, n: int, factor: str, generator: LatentDiffusion | None = None) -> Estimate:
    """How often an oracle sees the class or the background in the caption of a generated image; the lower value of both
    oracles, the note has both."""
    images, scenes = images_from_captions(setting, n, generator)
    names, indices = {
        "class": (planted.CLASSES, scenes.label), "background": (planted.BACKGROUNDS, scenes.background),
    }[factor]  # fmt: skip
    expected = [names[i] for i in indices.tolist()]
    shares = {o: estimates.proportion(_equal(predict_factor(setting, o, factor, images), expected)) for o in ORACLES}
    return _lowest(shares)


def oracle_agreement(setting: Setting, n: int) -> Estimate:
    """How often the two oracles predict the same class on generated images."""
    images, _ = images_from_captions(setting, n)
    return estimates.proportion(_equal(*(predict_factor(setting, o, "class", images) for o in ORACLES)))


def _equal(names: Sequence[str], others: Sequence[str]) -> list[bool]:
    return [a == b for a, b in zip(names, others, strict=True)]


def _lowest(shares: dict[str, Estimate]) -> Estimate:
    """The lowest share, with all shares in its note."""
    note = ", ".join(f"{name} {100 * s.value:.1f} %" for name, s in shares.items())
    lowest = min(shares.values(), key=lambda s: s.value)
    return Estimate(lowest.value, lowest.low, lowest.high, note)


# --- held-out images and their reconstructions ---------------------------------------------------------------


def problem_sets(setting: Setting, n: int) -> list[tuple[tuple[str, ...], int]]:
    """Overrides and number of problems of the two halves: within pairs, and towards any other class.

    They have different images: evaluation seed s selects them with the run seeds 2s and 2s + 1.
    """
    return [
        (("task.target=nearest", f"seed={2 * setting.seed}"), n - n // 2),
        (("task.target=random", f"seed={2 * setting.seed + 1}"), n // 2),
    ]


@dataclass(frozen=True)
class ReconstructedImages:
    """Held-out images, their reconstructions without an edit, and masks of their objects; row i belongs together.

    original, vae_reconstruction, inversion_reconstruction (rendered from null-text inversion): in [0, 1], 8 bits;
    predicted_mask: the segmenter's mask before post-processing; object_mask: the true one; both at threshold 0.5.
    """

    original: Float[Tensor, "b 3 h w"]
    vae_reconstruction: Float[Tensor, "b 3 h w"]
    inversion_reconstruction: Float[Tensor, "b 3 h w"]
    predicted_mask: Bool[Tensor, "b h w"]
    object_mask: Bool[Tensor, "b h w"]


@cache
def reconstructed_images(setting: Setting, n: int) -> ReconstructedImages:
    """The images of both halves, inverted in the runner's batches so that both use the same cached inversions."""
    rows: list[tuple[Tensor, ...]] = []
    for overrides, count in problem_sets(setting, n):
        parts, config, problems = prepare_problems(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        for first in range(0, count, config["batch"]):
            batch = problems[first : first + config["batch"]]
            inversion_reconstruction, region = invert_and_segment(setting, batch)
            original = torch.stack([p.image for p in batch])
            true_mask = torch.cat([data.ground_truth(image_index(p.name))[1].object_mask for p in batch])
            true_mask = F.interpolate(true_mask[:, None], size=original.shape[-2:], mode="area")[:, 0]
            vae_reconstruction = reconstruct(parts.diffusion, original)
            rows.append((original, vae_reconstruction, inversion_reconstruction, region[:, 0] > 0.5, true_mask > 0.5))
    return ReconstructedImages(*(torch.cat(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def invert_and_segment(
    setting: Setting, problems: Sequence[CounterfactualProblem]
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Images rendered from their null-text inversions, 8 bits, and the segmenter's masks of their objects."""
    generator = domain_parts(setting, CLASSIFIER).diffusion
    images = torch.stack([p.image for p in problems if p.image is not None]).to(generator.device)
    prompts = [p.edit.source for p in problems]
    context = generator.invert(images, prompts, [p.seed for p in problems])
    num_steps = generator.attention_maps.steps(len(generator)).stop
    maps, _, inverted = generator.record_attention(context, generator.networks.embed(prompts), num_steps)
    return quantize_8bit(generator.networks.decode(inverted)).cpu(), generator.segment(images, maps, problems).cpu()


def image_index(name: str) -> int:
    """The index in its split of a problem's image: `test-00012-rock-crab` -> 12."""
    return int(name.split("-")[1])


def null_text_psnr_drop(setting: Setting, n: int) -> Estimate:
    """PSNR of the autoencoded image minus PSNR of the image rendered from the inversion, in pairs."""
    images = reconstructed_images(setting, n)
    vae_psnr_values, inversion_psnr_values = (
        estimates.psnr(images.original, images.vae_reconstruction),
        estimates.psnr(images.original, images.inversion_reconstruction),
    )
    note = f"VAE {vae_psnr_values.mean():.2f} dB, null-text {inversion_psnr_values.mean():.2f} dB"
    return estimates.mean((vae_psnr_values - inversion_psnr_values).tolist(), note)


def mask_iou(setting: Setting, n: int) -> Estimate:
    """Mean intersection over union of the segmenter's mask and the true object."""
    images = reconstructed_images(setting, n)
    return estimates.mean(estimates.iou(images.predicted_mask, images.object_mask).tolist())


# --- counterfactuals -----------------------------------------------------------------------------------------


def counterfactuals(setting: Setting, n: int, baseline: str) -> list[Result]:
    """The results of both halves, in the order of `reconstructed_images`."""
    baseline_override = f"task.baseline={baseline}"
    return [result for overrides, count in problem_sets(setting, n)
            for result in compute_results(setting, CLASSIFIER, (*overrides, baseline_override), count)]  # fmt: skip


def target_class(result: Result) -> str:
    """The label of the target class."""
    return planted.CLASSES[result.problem.target]


def uvce_confident(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the classifier's confidence in the target is at least `MIN_CONFIDENCE`."""
    results = counterfactuals(setting, n, baseline)
    successes = sum(result.success for result in results)
    return estimates.proportion(
        [result.confidence >= MIN_CONFIDENCE for result in results], f"{successes} of {n} predicted as the target"
    )


def uvce_oracle_score(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often both oracles predict the target."""
    return oracle_score(setting, counterfactuals(setting, n, baseline))


def oracle_score(setting: Setting, results: Sequence[Result]) -> Estimate:
    """How often both oracles predict the target in results; a problem without a result counts as a failure."""
    n, (indices, images) = len(results), result_images(results)
    targets = [target_class(results[i]) for i in indices]
    hits = [_equal(predict_factor(setting, o, "class", images), targets) if indices else [] for o in ORACLES]
    both = [all(pair) for pair in zip(*hits, strict=True)] + [False] * (n - len(indices))
    note = ", ".join(f"{o} {100 * sum(h) / n:.1f} %" for o, h in zip(ORACLES, hits, strict=True))
    return estimates.proportion(both, note)


def masked_render_oracle_score(setting: Setting, n: int, dilation: int) -> Estimate:
    """How often both oracles predict the target in a counterfactual by the renderer: the scene of the problem with the
    target class, visible inside the true object dilated by `dilation` pixels, and passed through the autoencoder like
    every image of the method. The note has both halves and how often such an image preserves the background."""
    hits: list[list[bool]] = []
    is_background_preserved: list[bool] = []
    for overrides, count in problem_sets(setting, n):
        parts, _, problems = prepare_problems(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        scenes = data.scenes[torch.tensor([image_index(p.name) for p in problems])]
        before = planted.render(scenes)
        after = planted.render(replace(scenes, label=torch.tensor([p.target for p in problems]))).image
        inside = before.object_mask > 0.5
        visible = F.max_pool2d(inside[:, None].float(), 2 * dilation + 1, stride=1, padding=dilation) > 0.5
        images = reconstruct(parts.diffusion, torch.where(visible, after, before.image))
        targets = [planted.CLASSES[p.target] for p in problems]
        verdicts = [_equal(predict_factor(setting, o, "class", images), targets) for o in ORACLES]
        hits.append([all(pair) for pair in zip(*verdicts, strict=True)])
        error = estimates.rmse_outside(before.image, images, inside)
        reconstruction_error = estimates.rmse_outside(before.image, reconstruct(parts.diffusion, before.image), inside)
        is_background_preserved += (error <= MAX_BACKGROUND_RATIO * reconstruction_error).tolist()
    within, others = (100 * sum(h) / len(h) for h in hits)
    preserved = 100 * sum(is_background_preserved) / n
    note = f"within pairs {within:.1f} %, others {others:.1f} %; background preserved in {preserved:.1f} %"
    return estimates.proportion([*hits[0], *hits[1]], note)


def background_errors(setting: Setting, n: int, baseline: str) -> list[tuple[float, float]]:
    """Per problem the error against the original outside the true object, of the counterfactual and of the
    reconstruction; infinite without a result."""
    inputs, results = reconstructed_images(setting, n), counterfactuals(setting, n, baseline)
    indices, images = result_images(results)
    errors = torch.full((n,), torch.inf)
    errors[indices] = estimates.rmse_outside(inputs.original[indices], images, inputs.object_mask[indices])
    reconstruction_errors = estimates.rmse_outside(
        inputs.original, inputs.inversion_reconstruction, inputs.object_mask
    ).clamp(min=1e-6)
    return list(zip(errors.tolist(), reconstruction_errors.tolist(), strict=True))


def uvce_background_preserved(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the background error is at most `MAX_BACKGROUND_RATIO` times that of the reconstruction."""
    errors = background_errors(setting, n, baseline)
    median_error, median_reconstruction_error = (median(column) for column in zip(*errors, strict=True))
    return estimates.proportion(
        [e <= MAX_BACKGROUND_RATIO * r for e, r in errors],
        f"median RMS {median_error:.3f}, reconstruction {median_reconstruction_error:.3f}",
    )


def uvce_background_error_ratio(setting: Setting, n: int, baseline: str) -> Estimate:
    """The median ratio of the two errors; the note has it per half."""
    ratios = [error / reconstruction_error for error, reconstruction_error in background_errors(setting, n, baseline)]
    split = problem_sets(setting, n)[0][1]
    return estimates.median(ratios, f"within pairs {median(ratios[:split]):.2f}, others {median(ratios[split:]):.2f}")


@cache
def unedited_images(setting: Setting, n: int) -> Float[Tensor, "b 3 h w"]:
    """Images generated from the target captions of the counterfactuals, without an edit."""
    prompts = [
        problem.edit.target
        for overrides, count in problem_sets(setting, n)
        for problem in prepare_problems(setting, CLASSIFIER, overrides, count)[2]
    ]
    return sample_images(
        domain_parts(setting, CLASSIFIER).diffusion, prompts, [setting.image_seed(i) for i in range(n)]
    )


def target_renders(setting: Setting, labels: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    """Renders of the validation split with these classes and all other factors as sampled; 8 bits."""
    scenes = planted.sample_scenes(len(labels), planted.split_seed("validation", setting.seed))
    scenes.label.copy_(torch.tensor(labels))
    return quantize_8bit(planted.render(scenes).image)


def uvce_kid_ratio(setting: Setting, n: int, baseline: str) -> Estimate:
    """KID of the counterfactuals against renders of the target classes, over that of images of plain prompts."""
    results = counterfactuals(setting, n, baseline)
    indices, images = result_images(results)
    if len(indices) < 2:
        return estimates.undefined(f"{len(indices)} of {n} problems have a result")
    reference = target_renders(setting, [results[i].problem.target for i in indices] * RENDERS_PER_RESULT)
    return estimates.kid_ratio(
        *(oracle_features(setting, x) for x in (images, unedited_images(setting, n)[indices], reference))
    )


def uvce_seconds(setting: Setting, n: int, baseline: str) -> Estimate:
    """Median seconds per counterfactual, those of its batch over the batch size, as measured by the runner: inversion,
    search, optimization and measurement. Every method has its own folder, so that none uses cached inversions of
    another."""
    timed_setting = replace(setting, outputs=f"{setting.outputs}/timed/{baseline}")
    seconds = [
        float(result.record["seconds"])
        for result in counterfactuals(timed_setting, n, baseline)
        if result.record is not None
    ]
    if not seconds:
        return estimates.undefined(f"0 of {n} problems have a result")
    return estimates.median(seconds)


class BaselineMetric(Protocol):
    """Measures the results of the method (baseline `none`) or of a baseline."""

    def __call__(self, setting: Setting, n: int, baseline: str) -> Estimate: ...


def with_baselines(
    name: str, measure: BaselineMetric, unit: str, threshold: float | None = None,
    higher_is_better: bool = True, sample_size: int = 64,
) -> list[Metric]:  # fmt: skip
    """The metric of the method, and those of the baselines, which have no threshold."""
    name = f"planted.{name}"
    metrics = [Metric(name, partial(measure, baseline="none"), sample_size, unit, threshold, higher_is_better)]
    return metrics + [
        Metric(f"{name}.{baseline}", partial(measure, baseline=baseline), sample_size, unit) for baseline in BASELINES
    ]


METRICS = (
    Metric("planted.vae_psnr", vae_psnr, 512, "dB", 27.0),
    Metric("planted.prompt_class", partial(prompt_factor_accuracy, factor="class"), 512, "%", 0.90),
    Metric("planted.prompt_background", partial(prompt_factor_accuracy, factor="background"), 512, "%", 0.95),
    Metric("planted.oracle_agreement", oracle_agreement, 512, "%", 0.95),
    Metric("planted.null_text_psnr_drop", null_text_psnr_drop, 64, "dB", 1.0, False),
    Metric("planted.mask_iou", mask_iou, 64, "", 0.5),
    *with_baselines("uvce_confidence", uvce_confident, "%", 0.95),
    *with_baselines("uvce_oracles", uvce_oracle_score, "%", 0.75),
    *(
        Metric(f"planted.masked_renders.{d}px", partial(masked_render_oracle_score, dilation=d), 512, "%")
        for d in (0, 1, 2, 4)
    ),
    *with_baselines("uvce_background", uvce_background_preserved, "%", 0.90),
    *with_baselines("uvce_background_ratio", uvce_background_error_ratio, "×"),
    *with_baselines("uvce_kid", uvce_kid_ratio, "×", 1.5, False),
    *with_baselines("uvce_seconds", uvce_seconds, "s", sample_size=8),
)
