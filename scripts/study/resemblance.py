"""Study of how well explanations of features resemble the highlighted parts of real images (DiffExplainer, Section
4.3).

Published: 3.08 for DiffExplainer and 2.40 for the feature attack, t = 10.32, by 100 students.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

from jaxtyping import Float
from scipy import stats
from torch import Tensor

from classifier_lens.runner.result_schema import Record
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study.pages import (
    METHODS,
    Box,
    Gallery,
    MakeOptions,
    Panel,
    Question,
    Study,
    check_task,
    matching_records,
    primary_records,
    sample_items,
)
from classifier_lens.scripts.study.responses import AllowedResponses, Scores, read_responses
from classifier_lens.tasks.analysis.activation_score import gray_outside_mask
from classifier_lens.tasks.spurious_audit import TRAINING_CAM, TRAINING_IMAGE

TITLE = "How similar are they?"
INTRODUCTION = (
    "Each box below shows a real image in which some parts are highlighted: they have their colors, the rest is gray. "
    "The image on the right was generated to explain what these parts show. Say how well the explanation resembles the "
    "highlighted parts."
)
RESEMBLANCE = "resemblance"
SCALE = ((1, "1: no resemblance"), (2, "2"), (3, "3"), (4, "4"), (5, "5: strong resemblance"))


@dataclass
class ResemblanceOptions(MakeOptions):
    """The options of `MakeOptions`."""

    study: str = "resemblance"


@dataclass(frozen=True)
class FeatureImages:
    """The side of a feature's images in pixels and their neutral names: of the highlighted image, and of the
    explanations by method."""

    side: int
    highlighted: str
    explanations: Mapping[str, str]


# --- pages ---------------------------------------------------------------------------------------------------


def build_study(runs: Sequence[RunResults], options: ResemblanceOptions) -> Study:
    """A study of every feature that both audits explain, once with each explanation, of which the saved image is shown.
    Raises UserError for other tasks, features or training images, and without activation maps."""
    random = Random(f"{options.seed} problems")
    gallery = Gallery(random)
    features = [
        _feature(runs, record_pair, gallery)
        for record_pair in sample_items(_explained(runs), options.max_items, random)
    ]
    return Study(TITLE, INTRODUCTION, dict(zip(METHODS, runs, strict=True)), gallery, partial(make_boxes, features))


def _explained(runs: Sequence[RunResults]) -> list[tuple[Record, ...]]:
    for run in runs:
        check_task(run, "spurious_audit", "resemblance")
    records = [primary_records(run) for run in runs]
    for run, run_records in zip(runs, records, strict=True):
        if names_without_map := [r["name"] for r in run_records if TRAINING_CAM.key not in r["images"]]:
            raise UserError(
                f"{run.folder}: {names_without_map[0]} has no activation map of the feature; give runs of a network "
                "with maps"
            )
    matches = matching_records(runs, records, ["target", "unit"], [TRAINING_IMAGE, TRAINING_CAM])
    if not matches:
        raise UserError(f"{runs[0].folder}, {runs[1].folder}: explain no feature in common; give audits of one network")
    return matches


def _feature(runs: Sequence[RunResults], record_pair: Sequence[Record], gallery: Gallery) -> FeatureImages:
    training_image, cam = (runs[0].image_path(record_pair[0], name) for name in (TRAINING_IMAGE, TRAINING_CAM))
    highlighted = gallery.add(partial(_highlighted, training_image, cam))
    return FeatureImages(read_png(training_image).shape[-1], highlighted, gallery.add_results(runs, record_pair))


def _highlighted(image: Path, cam: Path) -> Float[Tensor, "3 h w"]:
    """An image in its colors where its map is bright, in gray elsewhere."""
    return gray_outside_mask(read_png(image)[None], read_png(cam)[None, :1])[0]


def make_boxes(features: Sequence[FeatureImages], random: Random) -> list[Box]:
    """The boxes of a page, one per explanation, in random order."""
    ratings = [(feature, method) for feature in features for method in METHODS]
    return [_box(feature, feature.explanations[method]) for feature, method in random.sample(ratings, len(ratings))]


def _box(feature: FeatureImages, explanation: str) -> Box:
    row = [
        Panel("Real image", [(feature.highlighted, "Real image with highlighted parts")]),
        Panel("Explanation", [(explanation, "Generated explanation")]),
    ]
    text = "How well does the explanation resemble the highlighted parts of the real image?"
    return Box("", feature.side, [row], [Question(RESEMBLANCE, text, SCALE, explanation)])


# --- scores --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rating:
    """participant: index of the file of responses; value: from 1, no resemblance, to 5, strong resemblance."""

    participant: int
    problem: str
    method: str
    value: int


@dataclass(frozen=True)
class MeanRating:
    """A mean rating, or the difference of A's and B's. group: a method, or the type of the test; n: number of values;
    low, high: ends of the 95 % interval by Student's t; t, df, p: two-sided test of the difference against 0. None:
    undefined, with too few or only equal values."""

    group: str
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    t: float | None = None
    df: float | None = None
    p: float | None = None


def read_ratings(files: Sequence[Path], key: Mapping[str, Any]) -> list[Rating]:
    """All ratings, one file per participant."""
    allowed = [value for value, _ in SCALE]
    allowed_ratings = AllowedResponses(
        "a whole number from 1 to 5", lambda value: type(value) is int and value in allowed
    )
    responses = read_responses(files, key, {RESEMBLANCE: allowed_ratings})
    metadata = key["images"]
    return [
        Rating(i, metadata[response.image]["problem"], metadata[response.image]["method"], response.value)
        for i, participant_responses in enumerate(responses) for response in participant_responses
    ]  # fmt: skip


def score_ratings(ratings: Sequence[Rating]) -> list[MeanRating]:
    """The mean of each method, and the difference between them: over the features that one participant rated with both
    methods and, since ratings of one participant are correlated, over the mean differences of participants. With fewer
    than two such features, by Welch's test over all ratings."""
    first, second = (
        {(r.participant, r.problem): r.value for r in ratings if r.method == method} for method in METHODS
    )  # fmt: skip
    values = [[*first.values()], [*second.values()]]
    means = [mean_rating(method, method_values) for method, method_values in zip(METHODS, values, strict=True)]
    pairs = {rating_key: first[rating_key] - second[rating_key] for rating_key in first if rating_key in second}
    if len(pairs) < 2:
        return [*means, welch_t_test(*values)]
    participants = sorted({participant for participant, _ in pairs})
    method_values = [
        fmean(d for (participant, _), d in pairs.items() if participant == person) for person in participants
    ]
    return [*means, paired_t_test("pairs", [*pairs.values()]), paired_t_test("participants", method_values)]


def mean_rating(group: str, values: Sequence[float]) -> MeanRating:
    """The mean of values with its interval."""
    if not values:
        return MeanRating(group, 0)
    value, n = fmean(values), len(values)
    if n < 2:
        return MeanRating(group, n, value)
    margin = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n)
    return MeanRating(group, n, value, value - margin, value + margin)


def paired_t_test(group: str, differences: Sequence[float]) -> MeanRating:
    """The mean difference within pairs with the paired t-test."""
    rating = mean_rating(group, differences)
    if len(set(differences)) < 2:  # t would be 0 / 0, or infinite
        return rating
    test = stats.ttest_1samp(differences, 0)
    return replace(rating, t=float(test.statistic), df=float(test.df), p=float(test.pvalue))


def welch_t_test(values: Sequence[float], others: Sequence[float]) -> MeanRating:
    """The difference of the means of independent values with Welch's t-test."""
    n = len(values) + len(others)
    if not values or not others:
        return MeanRating("Welch", n)
    difference = fmean(values) - fmean(others)
    if min(len(values), len(others)) < 2 or len(set(values)) == len(set(others)) == 1:
        return MeanRating("Welch", n, difference)
    test = stats.ttest_ind(values, others, equal_var=False)
    low, high = test.confidence_interval()
    return MeanRating(
        "Welch", n, difference, float(low), float(high), float(test.statistic), float(test.df), float(test.pvalue)
    )


def format_scores(means: Sequence[MeanRating]) -> Scores:
    """Means and differences for the table and the console."""
    columns = ["quantity", "of", "mean", "low", "high", "n", "t", "df", "p"]
    rows = [
        ["mean" if m.group in METHODS else "difference", m.group, *map(_cell, (m.value, m.low, m.high)), m.n,
         *map(_cell, (m.t, m.df, m.p))]
        for m in means
    ]  # fmt: skip
    return Scores(columns, rows, list(_lines(means)))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _lines(means: Sequence[MeanRating]) -> Iterator[str]:
    for m in means:
        name = m.group if m.group in METHODS else f"A − B, {m.group}"
        value = "    –" if m.value is None else f"{m.value:5.2f}"
        ends = "" if m.low is None else f"  [{m.low:.2f}, {m.high:.2f}]"
        test = "" if m.t is None else f"  t = {m.t:.2f}, df = {m.df:.4g}, p = {m.p:.2g}"
        yield f"{name:<19} {value}{ends}  n = {m.n}{test}"
