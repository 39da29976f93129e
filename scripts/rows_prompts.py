"""Rows of prompts that stand for classes: how often their pictures are called so, and what is seen in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from data import planted
from scripts import metrics
from scripts.judges import TIED, both, found, share_of
from scripts.metrics import Estimate
from scripts.rows import Answer, Row, Setting, answers

CLEAN, SHORTCUT = "planted_clean", "planted_shortcut"
RESTARTS = 3
HIGH = 0.9  # an activation score
FREE = tuple(name for name in planted.CLASSES if name not in TIED)


def portraits(setting: Setting, n: int, network: str) -> list[Answer]:
    """Of the first `n` classes the answer of the restart with the lowest loss."""
    overrides = ("task=diffexplainer_class", f"task.seeds={RESTARTS}", f"seed={setting.seed}")
    given = [a for a in answers(setting, network, overrides, n * RESTARTS) if a.record is not None]
    by_class = {a.problem.target: [b for b in given if b.problem.target == a.problem.target] for a in given}
    return [min(own, key=_loss) for own in by_class.values()]


def _loss(given: Answer) -> float:
    assert given.record is not None
    return float(given.record["loss"]["total"])


def name_of(given: Answer) -> str:
    """The class of a portrait."""
    return planted.CLASSES[given.problem.target]


def scores(given: Sequence[Answer], rival: str | None = None) -> list[float]:
    """The activation scores of portraits, or of a plain prompt beside them."""
    records = [a.record or {} for a in given]
    return [r["activation_score"] if rival is None else r["rivals"][rival]["activation_score"] for r in records]


def prompt_score(setting: Setting, n: int, network: str) -> Estimate:
    """How many classes have a score of 0.9 or more."""
    given = portraits(setting, n, network)
    own = scores(given)
    lowest = min(zip(own, map(name_of, given), strict=True))
    note = f"mean {100 * sum(own) / len(own):.1f} %, lowest {100 * lowest[0]:.1f} % ({lowest[1]})"
    return metrics.share([score >= HIGH for score in own] + [False] * (n - len(own)), note)


def prompt_gain(setting: Setting, n: int, network: str, rival: str) -> Estimate:
    """The activation score less that of a plain prompt, mean over classes."""
    given = portraits(setting, n, network)
    own, other = scores(given), scores(given, rival)
    low = sum(a < b for a, b in zip(own, other, strict=True))
    note = f"{rival}: {100 * sum(other) / len(other):.1f} %; {low} of {len(own)} classes below it"
    return metrics.mean([a - b for a, b in zip(own, other, strict=True)], note)


def prompt_cue(setting: Setting, n: int) -> Estimate:
    """In how many pictures of the tied classes' prompts both oracles see the cue; the note has the share in which the
    segmenter finds nothing of the class."""
    given = [a for a in portraits(setting, n, SHORTCUT) if name_of(a) in TIED]
    seen: list[bool] = []
    empty: list[bool] = []
    for a in given:
        assert a.gallery is not None
        factor, value = planted.SHORTCUTS[name_of(a)]
        seen += both(setting, factor, a.gallery, [value] * len(a.gallery))
        empty += [not there for there in found(setting, a.gallery, [name_of(a)] * len(a.gallery))]
    return share_of(seen, f"without the object: {100 * sum(empty) / max(len(empty), 1):.1f} %")


def prompt_object(setting: Setting, n: int, network: str, classes: Sequence[str]) -> Estimate:
    """In how many pictures of the prompts of these classes the segmenter finds the class and both oracles read it."""
    seen: list[bool] = []
    for a in portraits(setting, n, network):
        if name_of(a) in classes:
            assert a.gallery is not None
            wanted = [name_of(a)] * len(a.gallery)
            there = found(setting, a.gallery, wanted)
            seen += [x and y for x, y in zip(both(setting, "class", a.gallery, wanted), there, strict=True)]
    return share_of(seen, "")


ROWS = (
    *(Row(f"planted.prompt_score.{network}", partial(prompt_score, network=network), 10, "%", 1.0)
      for network in (CLEAN, SHORTCUT)),
    *(Row(f"planted.prompt_gain.{network}.{short}", partial(prompt_gain, network=network, rival=rival), 10, "%",
          0.0 if short == "name" else None)
      for network in (CLEAN, SHORTCUT) for short, rival in (("name", "class name"), ("caption", "best caption"))),
    Row("planted.prompt_cue", prompt_cue, 10, "%", 0.80),
    Row("planted.prompt_object.planted_clean", partial(prompt_object, network=CLEAN, classes=planted.CLASSES), 10,
        "%", 0.80),
    Row("planted.prompt_object.planted_shortcut", partial(prompt_object, network=SHORTCUT, classes=FREE), 10, "%",
        0.80),
)  # fmt: skip
