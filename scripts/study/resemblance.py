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

from classifier_lens.runner.results.reader import Record, Run
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study.pages import (
    METHODS,
    Asked,
    Box,
    Gallery,
    Make,
    Panel,
    Question,
    Scores,
    Study,
    check_task,
    common,
    deciding,
    drawn,
    read_answers,
)
from classifier_lens.tasks.analysis.activation_score import tinted

TITLE = "How alike are they?"
INTRODUCTION = (
    "Each box below shows a real picture of which parts are highlighted: there it has its colours, elsewhere it is "
    "grey. Beside it stands a picture that a program made to explain what is in those parts. Say how well the "
    "explanation resembles them."
)
RESEMBLANCE = "resemblance"
SCALE = ((1, "1: no resemblance"), (2, "2"), (3, "3"), (4, "4"), (5, "5: strong resemblance"))
MAP = "cam-training"


@dataclass
class Resemblance(Make):
    """What `Make` says."""

    study: str = "resemblance"


@dataclass(frozen=True)
class Feature:
    """Its pictures' side in pixels and their neutral names: of the highlighted one, and of the explanations by
    method."""

    side: int
    highlighted: str
    explanations: Mapping[str, str]


# --- making --------------------------------------------------------------------------------------------------


def ask(runs: Sequence[Run], chosen: Resemblance) -> Study:
    """Every feature that both audits explained, once with each explanation: the picture that counts, as another method
    may have no more. Raises UserError for other tasks, features or training pictures, and where there is no map."""
    random = Random(f"{chosen.seed} problems")
    gallery = Gallery(random)
    features = [_feature(runs, both, gallery) for both in drawn(_explained(runs), chosen.most, random)]
    return Study(TITLE, INTRODUCTION, dict(zip(METHODS, runs, strict=True)), gallery, partial(boxes, features))


def _explained(runs: Sequence[Run]) -> list[tuple[Record, ...]]:
    for run in runs:
        check_task(run, "spurious_audit", "resemblance")
    records = [deciding(run) for run in runs]
    for run, own in zip(runs, records, strict=True):
        if mapless := [r["name"] for r in own if MAP not in r["images"]]:
            raise UserError(f"{run.folder}: {mapless[0]} has no map of where the feature looks; the network has none")
    found = common(runs, records, ["target", "unit"], ["training", MAP])
    if not found:
        raise UserError(f"{runs[0].folder}, {runs[1].folder}: explain no feature in common; give audits of one network")
    return found


def _feature(runs: Sequence[Run], both: Sequence[Record], gallery: Gallery) -> Feature:
    picture, cam = (runs[0].picture(both[0], name) for name in ("training", MAP))
    named = gallery.add(partial(_highlighted, picture, cam))
    return Feature(read_png(picture).shape[-1], named, gallery.add_answers(runs, both))


def _highlighted(picture: Path, cam: Path) -> Float[Tensor, "3 h w"]:
    """A picture in its colours where its map is bright, in grey elsewhere."""
    return tinted(read_png(picture)[None], read_png(cam)[None, :1])[0]


def boxes(features: Sequence[Feature], random: Random) -> list[Box]:
    """A page's explanations, each in a box of its own, in the order that `random` draws."""
    asked = [(feature, method) for feature in features for method in METHODS]
    return [_box(feature, feature.explanations[method]) for feature, method in random.sample(asked, len(asked))]


def _box(feature: Feature, explanation: str) -> Box:
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
class Mean:
    """A mean rating, or how much larger A's is than B's. of: a method, or how the difference was tested; n: values that
    it is the mean of; low, high: ends of its 95 % interval by Student's t; t, df, p: two-sided test of the difference
    against 0. None: undefined, as too few or only equal values were given."""

    of: str
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    t: float | None = None
    df: float | None = None
    p: float | None = None


def ratings(files: Sequence[Path], key: Mapping[str, Any]) -> list[Rating]:
    """All ratings, one file per participant."""
    allowed = [value for value, _ in SCALE]
    asked = Asked("a whole number from 1 to 5", lambda value: type(value) is int and value in allowed)
    given = read_answers(files, key, {RESEMBLANCE: asked})
    known = key["pictures"]
    return [
        Rating(i, known[answer.picture]["problem"], known[answer.picture]["method"], answer.value)
        for i, own in enumerate(given) for answer in own
    ]  # fmt: skip


def score(given: Sequence[Rating]) -> list[Mean]:
    """Each method's mean, and the difference between them: over the features that one participant rated with both
    methods and, as ratings of one participant are alike, over the participants' own mean differences; where there are
    fewer than two such features, by Welch's test over all ratings."""
    first, second = (
        {(r.participant, r.problem): r.value for r in given if r.method == method} for method in METHODS
    )  # fmt: skip
    values = [[*first.values()], [*second.values()]]
    means = [mean(method, own) for method, own in zip(METHODS, values, strict=True)]
    pairs = {asked: first[asked] - second[asked] for asked in first if asked in second}
    if len(pairs) < 2:
        return [*means, welch(*values)]
    people = sorted({participant for participant, _ in pairs})
    own = [fmean(d for (participant, _), d in pairs.items() if participant == person) for person in people]
    return [*means, paired("pairs", [*pairs.values()]), paired("participants", own)]


def mean(of: str, values: Sequence[float]) -> Mean:
    """The mean of values, with its interval."""
    if not values:
        return Mean(of, 0)
    value, n = fmean(values), len(values)
    if n < 2:
        return Mean(of, n, value)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n)
    return Mean(of, n, value, value - half, value + half)


def paired(of: str, differences: Sequence[float]) -> Mean:
    """The mean difference within pairs, with the paired t-test."""
    found = mean(of, differences)
    if len(set(differences)) < 2:  # t would be 0 / 0, or infinite
        return found
    test = stats.ttest_1samp(differences, 0)
    return replace(found, t=float(test.statistic), df=float(test.df), p=float(test.pvalue))


def welch(values: Sequence[float], others: Sequence[float]) -> Mean:
    """The difference between the means of independent values, with Welch's t-test."""
    n = len(values) + len(others)
    if not values or not others:
        return Mean("Welch", n)
    difference = fmean(values) - fmean(others)
    if min(len(values), len(others)) < 2 or len(set(values)) == len(set(others)) == 1:
        return Mean("Welch", n, difference)
    test = stats.ttest_ind(values, others, equal_var=False)
    low, high = test.confidence_interval()
    return Mean(
        "Welch", n, difference, float(low), float(high), float(test.statistic), float(test.df), float(test.pvalue)
    )


def scores(means: Sequence[Mean]) -> Scores:
    """Means and differences for the table and the console."""
    columns = ["quantity", "of", "mean", "low", "high", "n", "t", "df", "p"]
    rows = [
        ["mean" if m.of in METHODS else "difference", m.of, *map(_cell, (m.value, m.low, m.high)), m.n,
         *map(_cell, (m.t, m.df, m.p))]
        for m in means
    ]  # fmt: skip
    return Scores(columns, rows, list(_lines(means)))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _lines(means: Sequence[Mean]) -> Iterator[str]:
    for m in means:
        name = m.of if m.of in METHODS else f"A − B, {m.of}"
        value = "    –" if m.value is None else f"{m.value:5.2f}"
        ends = "" if m.low is None else f"  [{m.low:.2f}, {m.high:.2f}]"
        test = "" if m.t is None else f"  t = {m.t:.2f}, df = {m.df:.4g}, p = {m.p:.2g}"
        yield f"{name:<19} {value}{ends}  n = {m.n}{test}"
