"""How well explanations of features resemble what these look at in real pictures (DiffExplainer, Section 4.3).

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

from classifier_lens.runner.results.reader import Record, RunResults
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study.pages import (
    METHODS,
    AllowedAnswers,
    Box,
    Gallery,
    MakeOptions,
    Panel,
    Question,
    Scores,
    Study,
    check_task,
    matching_records,
    primary_records,
    read_answers,
    sample_items,
)
from classifier_lens.tasks.analysis.activation_score import gray_outside_mask

TITLE = "How alike are they?"
INTRODUCTION = (
    "Each box below shows a real picture of which parts are highlighted: there it has its colours, elsewhere it is "
    "grey. Beside it stands a picture that a program made to explain what is in those parts. Say how well the "
    "explanation resembles them."
)
RESEMBLANCE = "resemblance"
SCALE = ((1, "1: no resemblance"), (2, "2"), (3, "3"), (4, "4"), (5, "5: strong resemblance"))
CAM_IMAGE = "cam-training"


@dataclass
class ResemblanceOptions(MakeOptions):
    """What `MakeOptions` says."""

    study: str = "resemblance"


@dataclass(frozen=True)
class FeatureImages:
    """Its pictures' side in pixels and their neutral names: of the highlighted one, and of the explanations by
    method."""

    side: int
    highlighted: str
    explanations: Mapping[str, str]


# --- making --------------------------------------------------------------------------------------------------


def ask(runs: Sequence[RunResults], chosen: ResemblanceOptions) -> Study:
    """Every feature that both audits explained, once with each explanation: the picture that counts, as another method
    may have no more. Raises UserError for other tasks, features or training pictures, and where there is no map."""
    random = Random(f"{chosen.seed} problems")
    gallery = Gallery(random)
    features = [_feature(runs, both, gallery) for both in sample_items(_explained(runs), chosen.max_items, random)]
    return Study(TITLE, INTRODUCTION, dict(zip(METHODS, runs, strict=True)), gallery, partial(boxes, features))


def _explained(runs: Sequence[RunResults]) -> list[tuple[Record, ...]]:
    for run in runs:
        check_task(run, "spurious_audit", "resemblance")
    records = [primary_records(run) for run in runs]
    for run, own in zip(runs, records, strict=True):
        if mapless := [r["name"] for r in own if CAM_IMAGE not in r["images"]]:
            raise UserError(f"{run.folder}: {mapless[0]} has no map of where the feature looks; the network has none")
    found = matching_records(runs, records, ["target", "unit"], ["training", CAM_IMAGE])
    if not found:
        raise UserError(f"{runs[0].folder}, {runs[1].folder}: explain no feature in common; give audits of one network")
    return found


def _feature(runs: Sequence[RunResults], both: Sequence[Record], gallery: Gallery) -> FeatureImages:
    picture, cam = (runs[0].image_path(both[0], name) for name in ("training", CAM_IMAGE))
    named = gallery.add(partial(_highlighted, picture, cam))
    return FeatureImages(read_png(picture).shape[-1], named, gallery.add_results(runs, both))


def _highlighted(picture: Path, cam: Path) -> Float[Tensor, "3 h w"]:
    """A picture in its colours where its map is bright, in grey elsewhere."""
    return gray_outside_mask(read_png(picture)[None], read_png(cam)[None, :1])[0]


def boxes(features: Sequence[FeatureImages], random: Random) -> list[Box]:
    """A page's explanations, each in a box of its own, in the order that `random` draws."""
    asked = [(feature, method) for feature in features for method in METHODS]
    return [_box(feature, feature.explanations[method]) for feature, method in random.sample(asked, len(asked))]


def _box(feature: FeatureImages, explanation: str) -> Box:
    row = [
        Panel("Real picture", [(feature.highlighted, "Real picture, parts of it highlighted")]),
        Panel("Explanation", [(explanation, "Explanation")]),
    ]
    text = "How well does the explanation resemble the highlighted parts of the real picture?"
    return Box("", feature.side, [row], [Question(RESEMBLANCE, text, SCALE, explanation)])


# --- scoring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rating:
    """participant: the position of the file of answers; value: from 1, no resemblance, to 5, a strong one."""

    participant: int
    problem: str
    method: str
    value: int


@dataclass(frozen=True)
class MeanRating:
    """A mean rating, or how much larger A's is than B's. group: a method, or how the difference was tested; n: values
    that it is the mean of; low, high: ends of its 95 % interval by Student's t; t, df, p: two-sided test of the
    difference against 0. None: undefined, as too few or only equal values were given."""

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
    asked = AllowedAnswers("a whole number from 1 to 5", lambda value: type(value) is int and value in allowed)
    given = read_answers(files, key, {RESEMBLANCE: asked})
    known = key["pictures"]
    return [
        Rating(i, known[answer.image]["problem"], known[answer.image]["method"], answer.value)
        for i, own in enumerate(given) for answer in own
    ]  # fmt: skip


def score_ratings(ratings: Sequence[Rating]) -> list[MeanRating]:
    """Each method's mean, and the difference between them: over the features that one participant rated with both
    methods and, as ratings of one participant are alike, over the participants' own mean differences; where there are
    fewer than two such features, by Welch's test over all ratings."""
    first, second = (
        {(r.participant, r.problem): r.value for r in ratings if r.method == method} for method in METHODS
    )  # fmt: skip
    values = [[*first.values()], [*second.values()]]
    means = [mean_rating(method, own) for method, own in zip(METHODS, values, strict=True)]
    pairs = {asked: first[asked] - second[asked] for asked in first if asked in second}
    if len(pairs) < 2:
        return [*means, welch_t_test(*values)]
    people = sorted({participant for participant, _ in pairs})
    own = [fmean(d for (participant, _), d in pairs.items() if participant == person) for person in people]
    return [*means, paired_t_test("pairs", [*pairs.values()]), paired_t_test("participants", own)]


def mean_rating(of: str, values: Sequence[float]) -> MeanRating:
    """The mean of values, with its interval."""
    if not values:
        return MeanRating(of, 0)
    value, n = fmean(values), len(values)
    if n < 2:
        return MeanRating(of, n, value)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n)
    return MeanRating(of, n, value, value - half, value + half)


def paired_t_test(of: str, differences: Sequence[float]) -> MeanRating:
    """The mean difference within pairs, with the paired t-test."""
    found = mean_rating(of, differences)
    if len(set(differences)) < 2:  # t would be 0 / 0, or infinite
        return found
    test = stats.ttest_1samp(differences, 0)
    return replace(found, t=float(test.statistic), df=float(test.df), p=float(test.pvalue))


def welch_t_test(values: Sequence[float], others: Sequence[float]) -> MeanRating:
    """The difference between the means of independent values, with Welch's t-test."""
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
