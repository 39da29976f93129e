"""Rows of prompts that stand for classes: how often their pictures are called so, and what is seen in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

from classifier_lens.data import planted
from classifier_lens.models.generator.prompt_tuning import Hard
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Answer, Row, Setting, answers, world
from classifier_lens.scripts.evaluate.oracles import TIED, both, found, share_of

CLEAN, SHORTCUT = "planted_clean", "planted_shortcut"
RESTARTS = 3
HIGH = 0.9  # an activation score
FREE_TOKENS = 2  # of a hard prompt
OTHERS = (*planted.OPENINGS, "a texture of", "the shape of a", "with")  # what else captions say
FREE = tuple(name for name in planted.CLASSES if name not in TIED)


def portraits(setting: Setting, n: int, network: str) -> list[Answer]:
    """Of the first `n` classes the answer of the restart with the lowest loss."""
    overrides = ("task=diffexplainer_class", f"task.seeds={RESTARTS}", f"seed={setting.seed}")
    given = [a for a in answers(setting, network, overrides, n * RESTARTS) if a.record is not None]
    return best_restarts(given)


def best_restarts(given: Sequence[Answer]) -> list[Answer]:
    """Of each class the answer with the lowest loss."""
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
    return estimates.share([score >= HIGH for score in own] + [False] * (n - len(own)), note)


def prompt_gain(setting: Setting, n: int, network: str, rival: str) -> Estimate:
    """The activation score less that of a plain prompt, mean over classes."""
    given = portraits(setting, n, network)
    own, other = scores(given), scores(given, rival)
    low = sum(a < b for a, b in zip(own, other, strict=True))
    note = f"{rival}: {100 * sum(other) / len(other):.1f} %; {low} of {len(own)} classes below it"
    return estimates.mean([a - b for a, b in zip(own, other, strict=True)], note)


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


# --- words ---------------------------------------------------------------------------------------------------


@cache
def own_tokens(tokenizer: Any, cue: str) -> frozenset[int]:
    """The tokens of a cue's words that no other word of the planted world's captions has."""

    def tokens(words: Iterable[str]) -> set[int]:
        return {i for word in words for i in tokenizer(word, add_special_tokens=False).input_ids}

    phrases = (*planted.CLASSES, *planted.PLACES.values(), *planted.PROP_PHRASES.values(), *planted.HUES, *OTHERS)
    words = {word for phrase in phrases for word in phrase.split()}
    return frozenset(tokens(cue.split()) - tokens(words - set(cue.split())))


def worded(setting: Setting, n: int, network: str) -> list[Answer]:
    """Hard prompts of the tied classes, `n` restarts in all, without any token of a class's name."""
    overrides = (
        "task=diffexplainer_class", "controls=hard_prompt", f"task.classes=[{','.join(TIED)}]",
        f"task.seeds={-(-n // len(TIED))}", f"task.prompt='a picture of *{FREE_TOKENS}'",
        f"controls.tokens.exclude=[{','.join(planted.CLASSES)}]", "controls.report=8", f"seed={setting.seed}",
    )  # fmt: skip
    return [a for a in answers(setting, network, overrides, n) if a.record is not None]


def hard_prompt(setting: Setting, n: int, network: str) -> Estimate:
    """For how many tied classes the prompt of the restart with the lowest loss holds a token of its cue, tokenised
    as it is written. The note has the prompts, and the share of random prompts of as many tokens that do by chance."""
    given = best_restarts(worded(setting, n, network))
    networks = world(setting, CLEAN).diffusion.networks
    tokenizer, excluded = networks.tokenizer, Hard(None, planted.CLASSES, 1.0, (1.0, 1.0), 1.0).allowed(networks)
    named, said, chances = [], [], []
    for a in given:
        assert a.record is not None
        own = own_tokens(tokenizer, planted.SHORTCUTS[name_of(a)][1])
        prompt = a.record["prompt"]
        named.append(bool(own & set(tokenizer(prompt, add_special_tokens=False).input_ids)))
        words, score = prompt.removeprefix("a picture of "), 100 * a.record["activation_score"]
        said.append(f"{name_of(a)}: {words} ({score:.0f} %)")
        chances.append(1 - (1 - len(own & set(excluded)) / len(excluded)) ** FREE_TOKENS)
    return share_of(named, f"{'; '.join(said)}; by chance {100 * sum(chances) / max(len(chances), 1):.1f} %")


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
    Row("planted.hard_prompt", partial(hard_prompt, network=SHORTCUT), 8, "%", 0.75),
    Row("planted.hard_prompt.planted_clean", partial(hard_prompt, network=CLEAN), 8, "%"),
)  # fmt: skip
