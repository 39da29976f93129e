"""Rows of the planted world: the generator against the renderer's truth, and counterfactuals of `planted_clean`."""

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
from classifier_lens.data.image_folder import center_crop_resize
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
MAX_BACKGROUND_RATIO = 1.3  # error of the background, as a multiple of the reconstruction's
RENDERS_PER_RESULT = 8  # reference pictures per counterfactual for KID


# --- the generator -------------------------------------------------------------------------------------------


def held_out_images(setting: Setting, n: int) -> tuple[Float[Tensor, "b 3 h w"], list[str], planted.SceneFactors]:
    """The first pictures of the test split, at the generator's resolution, with their captions and factors."""
    data = planted.PlantedDataset("test", n, setting.seed, "chance")
    examples = [data[i] for i in range(n)]
    resolution = domain_parts(setting, CLASSIFIER).diffusion.resolution
    return (
        torch.stack([center_crop_resize(e.image, resolution) for e in examples]),
        [e.caption or "" for e in examples],
        data.scenes,
    )


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """PSNR of autoencoded pictures."""
    images = held_out_images(setting, n)[0]
    return estimates.mean(
        estimates.psnr(images, reconstruct(domain_parts(setting, CLASSIFIER).diffusion, images)).tolist()
    )


@cache
def images_from_captions(
    setting: Setting, n: int, generator: LatentDiffusion | None = None
) -> tuple[Float[Tensor, "b 3 h w"], planted.SceneFactors]:
    """Pictures sampled from the full captions of held-out scenes, and these scenes; generator: None for the world's
    own."""
    _, captions, scenes = held_out_images(setting, n)
    seeds = [setting.image_seed(i) for i in range(n)]
    return sample_images(generator or domain_parts(setting, CLASSIFIER).diffusion, captions, seeds), scenes


def prompt_factor_accuracy(setting: Setting, n: int, factor: str, generator: LatentDiffusion | None = None) -> Estimate:
    """How often a sampled picture shows the class or the background that its caption names: the stricter oracle's
    word, the other one's in the note."""
    images, scenes = images_from_captions(setting, n, generator)
    names, wanted = {
        "class": (planted.CLASSES, scenes.label), "background": (planted.BACKGROUNDS, scenes.background),
    }[factor]  # fmt: skip
    truth = [names[i] for i in wanted.tolist()]
    shares = {o: estimates.proportion(_equal(predict_factor(setting, o, factor, images), truth)) for o in ORACLES}
    return _lowest(shares)


def oracle_agreement(setting: Setting, n: int) -> Estimate:
    """How often the two oracles name the same class on sampled pictures."""
    images, _ = images_from_captions(setting, n)
    return estimates.proportion(_equal(*(predict_factor(setting, o, "class", images) for o in ORACLES)))


def _equal(names: Sequence[str], others: Sequence[str]) -> list[bool]:
    return [a == b for a, b in zip(names, others, strict=True)]


def _lowest(shares: dict[str, Estimate]) -> Estimate:
    """The lowest of several shares, with all of them in its note."""
    note = ", ".join(f"{name} {100 * s.value:.1f} %" for name, s in shares.items())
    lowest = min(shares.values(), key=lambda s: s.value)
    return Estimate(lowest.value, lowest.low, lowest.high, note)


# --- the pictures that are asked about -----------------------------------------------------------------------


def problem_sets(setting: Setting, n: int) -> list[tuple[tuple[str, ...], int]]:
    """Overrides and number of pictures of the two halves: within pairs, and towards any other class.

    They take different pictures: evaluation seed s draws them with the run seeds 2s and 2s + 1.
    """
    return [
        (("task.target=nearest", f"seed={2 * setting.seed}"), n - n // 2),
        (("task.target=random", f"seed={2 * setting.seed + 1}"), n // 2),
    ]


@dataclass(frozen=True)
class ReconstructedImages:
    """Held-out pictures, what becomes of them without an edit, and where the object is; row i belongs together.

    original, decoded (by the VAE), inverted (rendered from null-text inversion): in [0, 1], 8 bits;
    predicted_mask: the segmenter's mask before it is softened; object_mask: the true one; both cut at 0.5.
    """

    original: Float[Tensor, "b 3 h w"]
    vae_reconstruction: Float[Tensor, "b 3 h w"]
    inversion_reconstruction: Float[Tensor, "b 3 h w"]
    predicted_mask: Bool[Tensor, "b h w"]
    object_mask: Bool[Tensor, "b h w"]


@cache
def reconstructed_images(setting: Setting, n: int) -> ReconstructedImages:
    """The pictures of both halves, inverted in the runner's own batches so that both use the same inversions."""
    rows: list[tuple[Tensor, ...]] = []
    for overrides, count in problem_sets(setting, n):
        parts, config, problems = prepare_problems(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        for first in range(0, count, config["batch"]):
            batch = problems[first : first + config["batch"]]
            inverted, region = invert_and_segment(setting, batch)
            original = torch.stack([p.image for p in batch])
            truth = torch.cat([data.ground_truth(image_index(p.name))[1].object_mask for p in batch])
            truth = F.interpolate(truth[:, None], size=original.shape[-2:], mode="area")[:, 0]
            decoded = reconstruct(parts.diffusion, original)
            rows.append((original, decoded, inverted, region[:, 0] > 0.5, truth > 0.5))
    return ReconstructedImages(*(torch.cat(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def invert_and_segment(
    setting: Setting, problems: Sequence[CounterfactualProblem]
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Pictures rendered from their null-text inversions, 8 bits, and the segmenter's masks of their objects."""
    generator = domain_parts(setting, CLASSIFIER).diffusion
    images = torch.stack([p.image for p in problems if p.image is not None]).to(generator.device)
    prompts = [p.edit.source for p in problems]
    course = generator.invert(images, prompts, [p.seed for p in problems])
    needed = generator.attention_maps.steps(len(generator)).stop
    maps, _, inverted = generator.record_attention(course, generator.networks.embed(prompts), needed)
    return quantize_8bit(generator.networks.decode(inverted)).cpu(), generator.segment(images, maps, problems).cpu()


def image_index(name: str) -> int:
    """The position in its split of the picture that a problem asks about: `test-00012-rock-crab` -> 12."""
    return int(name.split("-")[1])


def null_text_psnr_drop(setting: Setting, n: int) -> Estimate:
    """How much lower the PSNR of the inverted picture is than that of the autoencoded one, in pairs."""
    p = reconstructed_images(setting, n)
    decoded, inverted = (
        estimates.psnr(p.original, p.vae_reconstruction),
        estimates.psnr(p.original, p.inversion_reconstruction),
    )
    note = f"VAE {decoded.mean():.2f} dB, null-text {inverted.mean():.2f} dB"
    return estimates.mean((decoded - inverted).tolist(), note)


def mask_iou(setting: Setting, n: int) -> Estimate:
    """Overlap of the segmenter's mask with the true object."""
    p = reconstructed_images(setting, n)
    return estimates.mean(estimates.iou(p.predicted_mask, p.object_mask).tolist())


# --- counterfactuals -----------------------------------------------------------------------------------------


def counterfactuals(setting: Setting, n: int, baseline: str) -> list[Result]:
    """The answers of both halves, in the order of `pictures`."""
    chosen = f"task.baseline={baseline}"
    return [a for overrides, count in problem_sets(setting, n)
            for a in compute_results(setting, CLASSIFIER, (*overrides, chosen), count)]  # fmt: skip


def target_class(answer: Result) -> str:
    """The class that was asked for."""
    return planted.CLASSES[answer.problem.target]


def uvce_confident(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the classifier is confident of the target."""
    given = counterfactuals(setting, n, baseline)
    flips = sum(a.success for a in given)
    return estimates.proportion([a.confidence >= MIN_CONFIDENCE for a in given], f"{flips} of {n} flip")


def uvce_oracle_score(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often both oracles name the target."""
    return oracle_score(setting, counterfactuals(setting, n, baseline))


def oracle_score(setting: Setting, given: Sequence[Result]) -> Estimate:
    """The same of given answers, those that there are not counted as misses."""
    n, (rows, images) = len(given), result_images(given)
    wanted = [target_class(given[i]) for i in rows]
    hits = [_equal(predict_factor(setting, o, "class", images), wanted) if rows else [] for o in ORACLES]
    both = [all(pair) for pair in zip(*hits, strict=True)] + [False] * (n - len(rows))
    note = ", ".join(f"{o} {100 * sum(h) / n:.1f} %" for o, h in zip(ORACLES, hits, strict=True))
    return estimates.proportion(both, note)


def masked_render_oracle_score(setting: Setting, n: int, dilation: int) -> Estimate:
    """How often both oracles name the target in the renderer's own answer: the question's scene with the target's
    class, seen through the true object grown by so many pixels, and through the autoencoder, as every picture of the
    method is. The note has both halves and how often such an answer keeps the background."""
    hits: list[list[bool]] = []
    kept: list[bool] = []
    for overrides, count in problem_sets(setting, n):
        parts, _, problems = prepare_problems(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        scenes = data.scenes[torch.tensor([image_index(p.name) for p in problems])]
        before = planted.render(scenes)
        after = planted.render(replace(scenes, label=torch.tensor([p.target for p in problems]))).image
        inside = before.object_mask > 0.5
        seen = F.max_pool2d(inside[:, None].float(), 2 * dilation + 1, stride=1, padding=dilation) > 0.5
        images = reconstruct(parts.diffusion, torch.where(seen, after, before.image))
        wanted = [planted.CLASSES[p.target] for p in problems]
        verdicts = [_equal(predict_factor(setting, o, "class", images), wanted) for o in ORACLES]
        hits.append([all(pair) for pair in zip(*verdicts, strict=True)])
        own = estimates.rmse_outside(before.image, images, inside)
        least = estimates.rmse_outside(before.image, reconstruct(parts.diffusion, before.image), inside)
        kept += (own <= MAX_BACKGROUND_RATIO * least).tolist()
    within, others = (100 * sum(h) / len(h) for h in hits)
    note = f"within pairs {within:.1f} %, others {others:.1f} %; background kept in {100 * sum(kept) / n:.1f} %"
    return estimates.proportion([*hits[0], *hits[1]], note)


def background_errors(setting: Setting, n: int, baseline: str) -> list[tuple[float, float]]:
    """Per question the error outside the true object, against the original, of the counterfactual and of the
    reconstruction; infinite where there is no answer."""
    p, given = reconstructed_images(setting, n), counterfactuals(setting, n, baseline)
    rows, images = result_images(given)
    errors = torch.full((n,), torch.inf)
    errors[rows] = estimates.rmse_outside(p.original[rows], images, p.object_mask[rows])
    least = estimates.rmse_outside(p.original, p.inversion_reconstruction, p.object_mask).clamp(min=1e-6)
    return list(zip(errors.tolist(), least.tolist(), strict=True))


def uvce_background_preserved(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the background is as near to the original as a reconstruction's, nearly."""
    errors = background_errors(setting, n, baseline)
    own, least = (median(column) for column in zip(*errors, strict=True))
    return estimates.proportion(
        [e <= MAX_BACKGROUND_RATIO * r for e, r in errors], f"median RMS {own:.3f}, reconstruction {least:.3f}"
    )


def uvce_background_error_ratio(setting: Setting, n: int, baseline: str) -> Estimate:
    """The median ratio of the two errors, over all and, in the note, per half."""
    ratios = [error / least for error, least in background_errors(setting, n, baseline)]
    cut = problem_sets(setting, n)[0][1]
    return estimates.median(ratios, f"within pairs {median(ratios[:cut]):.2f}, others {median(ratios[cut:]):.2f}")


@cache
def unedited_images(setting: Setting, n: int) -> Float[Tensor, "b 3 h w"]:
    """Pictures sampled from the target captions of the counterfactuals, without any edit."""
    prompts = [
        p.edit.target
        for o, count in problem_sets(setting, n)
        for p in prepare_problems(setting, CLASSIFIER, o, count)[2]
    ]
    return sample_images(
        domain_parts(setting, CLASSIFIER).diffusion, prompts, [setting.image_seed(i) for i in range(n)]
    )


def target_renders(setting: Setting, labels: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    """Pictures of the validation split with the classes set, every other factor as drawn; 8 bits."""
    scenes = planted.sample_scenes(len(labels), planted.split_seed("validation", setting.seed))
    scenes.label.copy_(torch.tensor(labels))
    return quantize_8bit(planted.render(scenes).image)


def uvce_kid_ratio(setting: Setting, n: int, baseline: str) -> Estimate:
    """KID of the counterfactuals against renders of the target classes, over that of plain prompts."""
    given = counterfactuals(setting, n, baseline)
    rows, images = result_images(given)
    if len(rows) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{len(rows)} of {n} answered")
    reference = target_renders(setting, [given[i].problem.target for i in rows] * RENDERS_PER_RESULT)
    return estimates.kid_ratio(
        *(oracle_features(setting, x) for x in (images, unedited_images(setting, n)[rows], reference))
    )


def uvce_seconds(setting: Setting, n: int, baseline: str) -> Estimate:
    """Median seconds per counterfactual, those of its batch over the batch's size: inversion, search, descent and
    measurement, as the runner saw them. Every method has a folder of its own, so that none finds the inversions of
    another."""
    own = replace(setting, outputs=f"{setting.outputs}/timed/{baseline}")
    seconds = [float(a.record["seconds"]) for a in counterfactuals(own, n, baseline) if a.record is not None]
    if not seconds:
        return Estimate(float("nan"), float("nan"), float("nan"), f"0 of {n} answered")
    return estimates.median(seconds)


class BaselineMetric(Protocol):
    """Measures the answers of the method (baseline `none`) or of a baseline."""

    def __call__(self, setting: Setting, n: int, baseline: str) -> Estimate: ...


def with_baselines(
    name: str, measure: BaselineMetric, unit: str, bar: float | None = None,
    higher_is_better: bool = True, full: int = 64,
) -> list[Metric]:  # fmt: skip
    """The method's row, and below it those of the baselines, which have no bar."""
    name = f"planted.{name}"
    rows = [Metric(name, partial(measure, baseline="none"), full, unit, bar, higher_is_better)]
    return rows + [Metric(f"{name}.{b}", partial(measure, baseline=b), full, unit) for b in BASELINES]


ROWS = (
    Metric("planted.vae_psnr", vae_psnr, 512, "dB", 27.0),
    Metric("planted.prompt_class", partial(prompt_factor_accuracy, factor="class"), 512, "%", 0.90),
    Metric("planted.prompt_background", partial(prompt_factor_accuracy, factor="background"), 512, "%", 0.95),
    Metric("planted.oracles_agree", oracle_agreement, 512, "%", 0.95),
    Metric("planted.null_text", null_text_psnr_drop, 64, "dB", 1.0, False),
    Metric("planted.mask_iou", mask_iou, 64, "", 0.5),
    *with_baselines("uvce_confidence", uvce_confident, "%", 0.95),
    *with_baselines("uvce_oracles", uvce_oracle_score, "%", 0.75),
    *(
        Metric(f"planted.cut_renders.{d}px", partial(masked_render_oracle_score, dilation=d), 512, "%")
        for d in (0, 1, 2, 4)
    ),
    *with_baselines("uvce_background", uvce_background_preserved, "%", 0.90),
    *with_baselines("uvce_background_ratio", uvce_background_error_ratio, "×"),
    *with_baselines("uvce_kid", uvce_kid_ratio, "×", 1.5, False),
    *with_baselines("uvce_seconds", uvce_seconds, "s", full=8),
)
