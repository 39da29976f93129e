"""Rows of the planted world: the generator against the renderer's truth, and counterfactuals of `planted_clean`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.image_folder import square
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.results.run_folder import to_8_bits
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Answer, Row, Setting, answers, asked, autoencoded, sample, world
from classifier_lens.scripts.evaluate.oracles import CLASSIFIER, ORACLES, answered, features, read
from classifier_lens.tasks.problems.counterfactual_problems import Flip

BASELINES = ("start_only", "pixels", "guidance")
CONFIDENT = 0.8  # confidence in the target
KEPT = 1.3  # error of the background, as a multiple of the reconstruction's
RENDERS = 8  # reference pictures per counterfactual for KID


# --- the generator -------------------------------------------------------------------------------------------


def held_out(setting: Setting, n: int) -> tuple[Float[Tensor, "b 3 h w"], list[str], planted.Scenes]:
    """The first pictures of the test split, at the generator's resolution, with their captions and factors."""
    data = planted.PlantedDataset("test", n, setting.seed, "chance")
    examples = [data[i] for i in range(n)]
    resolution = world(setting, CLASSIFIER).diffusion.resolution
    return (
        torch.stack([square(e.image, resolution) for e in examples]),
        [e.caption or "" for e in examples],
        data.scenes,
    )


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """PSNR of autoencoded pictures."""
    images = held_out(setting, n)[0]
    return estimates.mean(estimates.psnr(images, autoencoded(world(setting, CLASSIFIER).diffusion, images)).tolist())


@cache
def prompted(
    setting: Setting, n: int, generator: LatentDiffusion | None = None
) -> tuple[Float[Tensor, "b 3 h w"], planted.Scenes]:
    """Pictures sampled from the full captions of held-out scenes, and these scenes; generator: None for the world's
    own."""
    _, captions, scenes = held_out(setting, n)
    seeds = [setting.own_seed(i) for i in range(n)]
    return sample(generator or world(setting, CLASSIFIER).diffusion, captions, seeds), scenes


def prompt_factor(setting: Setting, n: int, factor: str, generator: LatentDiffusion | None = None) -> Estimate:
    """How often a sampled picture shows the class or the background that its caption names: the stricter oracle's
    word, the other one's in the note."""
    images, scenes = prompted(setting, n, generator)
    names, wanted = {
        "class": (planted.CLASSES, scenes.label), "background": (planted.BACKGROUNDS, scenes.background),
    }[factor]  # fmt: skip
    truth = [names[i] for i in wanted.tolist()]
    shares = {o: estimates.share(_equal(read(setting, o, factor, images), truth)) for o in ORACLES}
    return _lowest(shares)


def oracles_agree(setting: Setting, n: int) -> Estimate:
    """How often the two oracles name the same class on sampled pictures."""
    images, _ = prompted(setting, n)
    return estimates.share(_equal(*(read(setting, o, "class", images) for o in ORACLES)))


def _equal(names: Sequence[str], others: Sequence[str]) -> list[bool]:
    return [a == b for a, b in zip(names, others, strict=True)]


def _lowest(shares: dict[str, Estimate]) -> Estimate:
    """The lowest of several shares, with all of them in its note."""
    note = ", ".join(f"{name} {100 * s.value:.1f} %" for name, s in shares.items())
    lowest = min(shares.values(), key=lambda s: s.value)
    return Estimate(lowest.value, lowest.low, lowest.high, note)


# --- the pictures that are asked about -----------------------------------------------------------------------


def halves(setting: Setting, n: int) -> list[tuple[tuple[str, ...], int]]:
    """Overrides and number of pictures of the two halves: within pairs, and towards any other class.

    They take different pictures: evaluation seed s draws them with the run seeds 2s and 2s + 1.
    """
    return [
        (("task.target=nearest", f"seed={2 * setting.seed}"), n - n // 2),
        (("task.target=random", f"seed={2 * setting.seed + 1}"), n // 2),
    ]


@dataclass(frozen=True)
class Pictures:
    """Held-out pictures, what becomes of them without an edit, and where the object is; row i belongs together.

    original, decoded (by the VAE), inverted (rendered from null-text inversion): in [0, 1], 8 bits;
    region: the segmenter's mask before it is softened; object: the true one; both cut at 0.5.
    """

    original: Float[Tensor, "b 3 h w"]
    decoded: Float[Tensor, "b 3 h w"]
    inverted: Float[Tensor, "b 3 h w"]
    region: Bool[Tensor, "b h w"]
    object: Bool[Tensor, "b h w"]


@cache
def pictures(setting: Setting, n: int) -> Pictures:
    """The pictures of both halves, inverted in the runner's own batches so that both use the same inversions."""
    rows: list[tuple[Tensor, ...]] = []
    for overrides, count in halves(setting, n):
        parts, config, problems = asked(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        for first in range(0, count, config["batch"]):
            batch = problems[first : first + config["batch"]]
            inverted, region = inverted_with_region(setting, batch)
            original = torch.stack([p.image for p in batch])
            truth = torch.cat([data.truth(position(p.name))[1].object_mask for p in batch])
            truth = F.interpolate(truth[:, None], size=original.shape[-2:], mode="area")[:, 0]
            decoded = autoencoded(parts.diffusion, original)
            rows.append((original, decoded, inverted, region[:, 0] > 0.5, truth > 0.5))
    return Pictures(*(torch.cat(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def inverted_with_region(
    setting: Setting, problems: Sequence[Flip]
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Pictures rendered from their null-text inversions, 8 bits, and the segmenter's masks of their objects."""
    generator = world(setting, CLASSIFIER).diffusion
    images = torch.stack([p.image for p in problems if p.image is not None]).to(generator.device)
    prompts = [p.edit.source for p in problems]
    course = generator.invert(images, prompts, [p.seed for p in problems])
    needed = generator.maps.steps(len(generator)).stop
    maps, _, inverted = generator.record(course, generator.networks.embed(prompts), needed)
    return to_8_bits(generator.networks.decode(inverted)).cpu(), generator.segment(images, maps, problems).cpu()


def position(name: str) -> int:
    """The position in its split of the picture that a problem asks about: `test-00012-rock-crab` -> 12."""
    return int(name.split("-")[1])


def null_text(setting: Setting, n: int) -> Estimate:
    """How much lower the PSNR of the inverted picture is than that of the autoencoded one, in pairs."""
    p = pictures(setting, n)
    decoded, inverted = estimates.psnr(p.original, p.decoded), estimates.psnr(p.original, p.inverted)
    note = f"VAE {decoded.mean():.2f} dB, null-text {inverted.mean():.2f} dB"
    return estimates.mean((decoded - inverted).tolist(), note)


def mask_iou(setting: Setting, n: int) -> Estimate:
    """Overlap of the segmenter's mask with the true object."""
    p = pictures(setting, n)
    return estimates.mean(estimates.iou(p.region, p.object).tolist())


# --- counterfactuals -----------------------------------------------------------------------------------------


def counterfactuals(setting: Setting, n: int, baseline: str) -> list[Answer]:
    """The answers of both halves, in the order of `pictures`."""
    chosen = f"task.baseline={baseline}"
    return [a for overrides, count in halves(setting, n)
            for a in answers(setting, CLASSIFIER, (*overrides, chosen), count)]  # fmt: skip


def target_of(answer: Answer) -> str:
    """The class that was asked for."""
    return planted.CLASSES[answer.problem.target]


def uvce_confidence(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the classifier is confident of the target."""
    given = counterfactuals(setting, n, baseline)
    flips = sum(a.success for a in given)
    return estimates.share([a.confidence >= CONFIDENT for a in given], f"{flips} of {n} flip")


def uvce_oracles(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often both oracles name the target."""
    return oracles_named(setting, counterfactuals(setting, n, baseline))


def oracles_named(setting: Setting, given: Sequence[Answer]) -> Estimate:
    """The same of given answers, those that there are not counted as misses."""
    n, (rows, images) = len(given), answered(given)
    wanted = [target_of(given[i]) for i in rows]
    hits = [_equal(read(setting, o, "class", images), wanted) if rows else [] for o in ORACLES]
    both = [all(pair) for pair in zip(*hits, strict=True)] + [False] * (n - len(rows))
    note = ", ".join(f"{o} {100 * sum(h) / n:.1f} %" for o, h in zip(ORACLES, hits, strict=True))
    return estimates.share(both, note)


def cut_renders(setting: Setting, n: int, grown: int) -> Estimate:
    """How often both oracles name the target in the renderer's own answer: the question's scene with the target's
    class, seen through the true object grown by so many pixels, and through the autoencoder, as every picture of the
    method is. The note has both halves and how often such an answer keeps the background."""
    hits: list[list[bool]] = []
    kept: list[bool] = []
    for overrides, count in halves(setting, n):
        parts, _, problems = asked(setting, CLASSIFIER, overrides, count)
        data = parts.data
        assert isinstance(data, planted.PlantedDataset)
        scenes = data.scenes[torch.tensor([position(p.name) for p in problems])]
        before = planted.render(scenes)
        after = planted.render(replace(scenes, label=torch.tensor([p.target for p in problems]))).image
        inside = before.object_mask > 0.5
        seen = F.max_pool2d(inside[:, None].float(), 2 * grown + 1, stride=1, padding=grown) > 0.5
        images = autoencoded(parts.diffusion, torch.where(seen, after, before.image))
        wanted = [planted.CLASSES[p.target] for p in problems]
        verdicts = [_equal(read(setting, o, "class", images), wanted) for o in ORACLES]
        hits.append([all(pair) for pair in zip(*verdicts, strict=True)])
        own = estimates.rms_outside(before.image, images, inside)
        least = estimates.rms_outside(before.image, autoencoded(parts.diffusion, before.image), inside)
        kept += (own <= KEPT * least).tolist()
    within, others = (100 * sum(h) / len(h) for h in hits)
    note = f"within pairs {within:.1f} %, others {others:.1f} %; background kept in {100 * sum(kept) / n:.1f} %"
    return estimates.share([*hits[0], *hits[1]], note)


def background_errors(setting: Setting, n: int, baseline: str) -> list[tuple[float, float]]:
    """Per question the error outside the true object, against the original, of the counterfactual and of the
    reconstruction; infinite where there is no answer."""
    p, given = pictures(setting, n), counterfactuals(setting, n, baseline)
    rows, images = answered(given)
    errors = torch.full((n,), torch.inf)
    errors[rows] = estimates.rms_outside(p.original[rows], images, p.object[rows])
    least = estimates.rms_outside(p.original, p.inverted, p.object).clamp(min=1e-6)
    return list(zip(errors.tolist(), least.tolist(), strict=True))


def uvce_background(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the background is as near to the original as a reconstruction's, nearly."""
    errors = background_errors(setting, n, baseline)
    own, least = (median(column) for column in zip(*errors, strict=True))
    return estimates.share([e <= KEPT * r for e, r in errors], f"median RMS {own:.3f}, reconstruction {least:.3f}")


def uvce_background_ratio(setting: Setting, n: int, baseline: str) -> Estimate:
    """The median ratio of the two errors, over all and, in the note, per half."""
    ratios = [error / least for error, least in background_errors(setting, n, baseline)]
    cut = halves(setting, n)[0][1]
    return estimates.median(ratios, f"within pairs {median(ratios[:cut]):.2f}, others {median(ratios[cut:]):.2f}")


@cache
def plain(setting: Setting, n: int) -> Float[Tensor, "b 3 h w"]:
    """Pictures sampled from the target captions of the counterfactuals, without any edit."""
    prompts = [p.edit.target for o, count in halves(setting, n) for p in asked(setting, CLASSIFIER, o, count)[2]]
    return sample(world(setting, CLASSIFIER).diffusion, prompts, [setting.own_seed(i) for i in range(n)])


def renders(setting: Setting, labels: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    """Pictures of the validation split with the classes set, every other factor as drawn; 8 bits."""
    scenes = planted.draw(len(labels), planted.split_seed("validation", setting.seed))
    scenes.label.copy_(torch.tensor(labels))
    return to_8_bits(planted.render(scenes).image)


def uvce_kid(setting: Setting, n: int, baseline: str) -> Estimate:
    """KID of the counterfactuals against renders of the target classes, over that of plain prompts."""
    given = counterfactuals(setting, n, baseline)
    rows, images = answered(given)
    if len(rows) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{len(rows)} of {n} answered")
    reference = renders(setting, [given[i].problem.target for i in rows] * RENDERS)
    return estimates.kid_ratio(*(features(setting, x) for x in (images, plain(setting, n)[rows], reference)))


def uvce_seconds(setting: Setting, n: int, baseline: str) -> Estimate:
    """Median seconds per counterfactual, those of its batch over the batch's size: inversion, search, descent and
    measurement, as the runner saw them. Every method has a folder of its own, so that none finds the inversions of
    another."""
    own = replace(setting, outputs=f"{setting.outputs}/timed/{baseline}")
    seconds = [float(a.record["seconds"]) for a in counterfactuals(own, n, baseline) if a.record is not None]
    if not seconds:
        return Estimate(float("nan"), float("nan"), float("nan"), f"0 of {n} answered")
    return estimates.median(seconds)


class Contest(Protocol):
    """Measures the answers of the method (baseline `none`) or of a baseline."""

    def __call__(self, setting: Setting, n: int, baseline: str) -> Estimate: ...


def uvce(
    what: str, measure: Contest, unit: str, bar: float | None = None,
    better: Literal["high", "low"] = "high", full: int = 64,
) -> list[Row]:  # fmt: skip
    """The method's row, and below it those of the baselines, which have no bar."""
    name = f"planted.{what}"
    rows = [Row(name, partial(measure, baseline="none"), full, unit, bar, better)]
    return rows + [Row(f"{name}.{b}", partial(measure, baseline=b), full, unit) for b in BASELINES]


ROWS = (
    Row("planted.vae_psnr", vae_psnr, 512, "dB", 27.0),
    Row("planted.prompt_class", partial(prompt_factor, factor="class"), 512, "%", 0.90),
    Row("planted.prompt_background", partial(prompt_factor, factor="background"), 512, "%", 0.95),
    Row("planted.oracles_agree", oracles_agree, 512, "%", 0.95),
    Row("planted.null_text", null_text, 64, "dB", 1.0, "low"),
    Row("planted.mask_iou", mask_iou, 64, "", 0.5),
    *uvce("uvce_confidence", uvce_confidence, "%", 0.95),
    *uvce("uvce_oracles", uvce_oracles, "%", 0.75),
    *(Row(f"planted.cut_renders.{d}px", partial(cut_renders, grown=d), 512, "%") for d in (0, 1, 2, 4)),
    *uvce("uvce_background", uvce_background, "%", 0.90),
    *uvce("uvce_background_ratio", uvce_background_ratio, "×"),
    *uvce("uvce_kid", uvce_kid, "×", 1.5, "low"),
    *uvce("uvce_seconds", uvce_seconds, "s", full=8),
)
