"""Rows of prompts that stand for classes: how often their pictures are called so, and what is seen in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

from classifier_lens.data import planted
from classifier_lens.models.generator.prompt_tuning import HardPrompt
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, compute_results, domain_parts
from classifier_lens.scripts.evaluate.oracles import (
    SHORTCUT_CLASSES,
    contains_object,
    oracles_confirm,
    proportion_or_nan,
)

CLEAN, SHORTCUT = "planted_clean", "planted_shortcut"
NUM_RESTARTS = 3
SCORE_THRESHOLD = 0.9  # an activation score
NUM_FREE_TOKENS = 2  # of a hard prompt
OTHER_CAPTION_WORDS = (*planted.CAPTION_PREFIXES, "a texture of", "the shape of a", "with")  # what else captions say
CLASSES_WITHOUT_SHORTCUT = tuple(name for name in planted.CLASSES if name not in SHORTCUT_CLASSES)


def explain_classes(setting: Setting, n: int, network: str) -> list[Result]:
    """Of the first `n` classes the answer of the restart with the lowest loss."""
    overrides = ("task=diffexplainer_class", f"task.num_seeds={NUM_RESTARTS}", f"seed={setting.seed}")
    given = [a for a in compute_results(setting, network, overrides, n * NUM_RESTARTS) if a.record is not None]
    return best_restarts(given)


def best_restarts(given: Sequence[Result]) -> list[Result]:
    """Of each class the answer with the lowest loss."""
    by_class = {a.problem.target: [b for b in given if b.problem.target == a.problem.target] for a in given}
    return [min(own, key=_loss) for own in by_class.values()]


def _loss(given: Result) -> float:
    assert given.record is not None
    return float(given.record["loss"]["total"])


def class_of(given: Result) -> str:
    """The class of a portrait."""
    return planted.CLASSES[given.problem.target]


def activation_scores(given: Sequence[Result], plain_prompt: str | None = None) -> list[float]:
    """The activation scores of portraits, or of a plain prompt beside them."""
    records = [a.record or {} for a in given]
    return [
        r["activation_score"] if plain_prompt is None else r["rivals"][plain_prompt]["activation_score"]
        for r in records
    ]


def prompt_activation_score(setting: Setting, n: int, network: str) -> Estimate:
    """How many classes have a score of 0.9 or more."""
    given = explain_classes(setting, n, network)
    own = activation_scores(given)
    lowest = min(zip(own, map(class_of, given), strict=True))
    note = f"mean {100 * sum(own) / len(own):.1f} %, lowest {100 * lowest[0]:.1f} % ({lowest[1]})"
    return estimates.proportion([score >= SCORE_THRESHOLD for score in own] + [False] * (n - len(own)), note)


def prompt_score_gain(setting: Setting, n: int, network: str, rival: str) -> Estimate:
    """The activation score less that of a plain prompt, mean over classes."""
    given = explain_classes(setting, n, network)
    own, other = activation_scores(given), activation_scores(given, rival)
    low = sum(a < b for a, b in zip(own, other, strict=True))
    note = f"{rival}: {100 * sum(other) / len(other):.1f} %; {low} of {len(own)} classes below it"
    return estimates.mean([a - b for a, b in zip(own, other, strict=True)], note)


def prompt_cue(setting: Setting, n: int) -> Estimate:
    """In how many pictures of the tied classes' prompts both oracles see the cue; the note has the share in which the
    segmenter finds nothing of the class."""
    given = [a for a in explain_classes(setting, n, SHORTCUT) if class_of(a) in SHORTCUT_CLASSES]
    seen: list[bool] = []
    empty: list[bool] = []
    for a in given:
        assert a.samples is not None
        factor, value = planted.SHORTCUTS[class_of(a)]
        seen += oracles_confirm(setting, factor, a.samples, [value] * len(a.samples))
        empty += [not there for there in contains_object(setting, a.samples, [class_of(a)] * len(a.samples))]
    return proportion_or_nan(seen, f"without the object: {100 * sum(empty) / max(len(empty), 1):.1f} %")


def prompt_object(setting: Setting, n: int, network: str, classes: Sequence[str]) -> Estimate:
    """In how many pictures of the prompts of these classes the segmenter finds the class and both oracles read it."""
    seen: list[bool] = []
    for a in explain_classes(setting, n, network):
        if class_of(a) in classes:
            assert a.samples is not None
            wanted = [class_of(a)] * len(a.samples)
            there = contains_object(setting, a.samples, wanted)
            seen += [x and y for x, y in zip(oracles_confirm(setting, "class", a.samples, wanted), there, strict=True)]
    return proportion_or_nan(seen, "")


# --- words ---------------------------------------------------------------------------------------------------


@cache
def cue_tokens(tokenizer: Any, cue: str) -> frozenset[int]:
    """The tokens of a cue's words that no other word of the planted world's captions has."""

    def tokens(words: Iterable[str]) -> set[int]:
        return {i for word in words for i in tokenizer(word, add_special_tokens=False).input_ids}

    phrases = (
        *planted.CLASSES,
        *planted.BACKGROUND_PHRASES.values(),
        *planted.PROP_PHRASES.values(),
        *planted.HUES,
        *OTHER_CAPTION_WORDS,
    )
    words = {word for phrase in phrases for word in phrase.split()}
    return frozenset(tokens(cue.split()) - tokens(words - set(cue.split())))


def hard_prompt_results(setting: Setting, n: int, network: str) -> list[Result]:
    """Hard prompts of the tied classes, `n` restarts in all, without any token of a class's name."""
    overrides = (
        "task=diffexplainer_class",
        "parametrization=hard_prompt",
        f"task.classes=[{','.join(SHORTCUT_CLASSES)}]",
        f"task.num_seeds={-(-n // len(SHORTCUT_CLASSES))}",
        f"task.prompt='a picture of *{NUM_FREE_TOKENS}'",
        f"parametrization.tokens.exclude=[{','.join(planted.CLASSES)}]",
        "parametrization.images_per_result=8",
        f"seed={setting.seed}",
    )
    return [a for a in compute_results(setting, network, overrides, n) if a.record is not None]


def hard_prompt_cue_token(setting: Setting, n: int, network: str) -> Estimate:
    """For how many tied classes the prompt of the restart with the lowest loss holds a token of its cue, tokenised
    as it is written. The note has the prompts, and the share of random prompts of as many tokens that do by chance."""
    given = best_restarts(hard_prompt_results(setting, n, network))
    networks = domain_parts(setting, CLEAN).diffusion.networks
    tokenizer, excluded = (
        networks.tokenizer,
        HardPrompt(None, planted.CLASSES, 1.0, (1.0, 1.0), 1.0).allowed_tokens(networks),
    )
    named, said, chances = [], [], []
    for a in given:
        assert a.record is not None
        own = cue_tokens(tokenizer, planted.SHORTCUTS[class_of(a)][1])
        prompt = a.record["prompt"]
        named.append(bool(own & set(tokenizer(prompt, add_special_tokens=False).input_ids)))
        words, score = prompt.removeprefix("a picture of "), 100 * a.record["activation_score"]
        said.append(f"{class_of(a)}: {words} ({score:.0f} %)")
        chances.append(1 - (1 - len(own & set(excluded)) / len(excluded)) ** NUM_FREE_TOKENS)
    return proportion_or_nan(named, f"{'; '.join(said)}; by chance {100 * sum(chances) / max(len(chances), 1):.1f} %")


ROWS = (
    *(
        Metric(f"planted.prompt_score.{network}", partial(prompt_activation_score, network=network), 10, "%", 1.0)
        for network in (CLEAN, SHORTCUT)
    ),
    *(
        Metric(
            f"planted.prompt_gain.{network}.{short}",
            partial(prompt_score_gain, network=network, rival=rival),
            10,
            "%",
            0.0 if short == "name" else None,
        )
        for network in (CLEAN, SHORTCUT)
        for short, rival in (("name", "class name"), ("caption", "best caption"))
    ),
    Metric("planted.prompt_cue", prompt_cue, 10, "%", 0.80),
    Metric(
        "planted.prompt_object.planted_clean",
        partial(prompt_object, network=CLEAN, classes=planted.CLASSES),
        10,
        "%",
        0.80,
    ),
    Metric(
        "planted.prompt_object.planted_shortcut",
        partial(prompt_object, network=SHORTCUT, classes=CLASSES_WITHOUT_SHORTCUT),
        10,
        "%",
        0.80,
    ),
    Metric("planted.hard_prompt", partial(hard_prompt_cue_token, network=SHORTCUT), 8, "%", 0.75),
    Metric("planted.hard_prompt.planted_clean", partial(hard_prompt_cue_token, network=CLEAN), 8, "%"),
)
