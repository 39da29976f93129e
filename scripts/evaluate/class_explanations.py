"""Metrics of class explanations: how often images of optimized prompts are predicted as the class, and their
content."""

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
SCORE_THRESHOLD = 0.9  # of the activation score
NUM_FREE_TOKENS = 2  # of a hard prompt
OTHER_CAPTION_WORDS = (*planted.CAPTION_PREFIXES, "a texture of", "the shape of a", "with")
CLASSES_WITHOUT_SHORTCUT = tuple(name for name in planted.CLASSES if name not in SHORTCUT_CLASSES)


def explain_classes(setting: Setting, n: int, network: str) -> list[Result]:
    """For each of the first `n` classes the result of the restart with the lowest loss."""
    overrides = ("task=diffexplainer_class", f"task.num_seeds={NUM_RESTARTS}", f"seed={setting.seed}")
    results = [
        result for result in compute_results(setting, network, overrides, n * NUM_RESTARTS) if result.record is not None
    ]
    return best_restarts(results)


def best_restarts(results: Sequence[Result]) -> list[Result]:
    """For each class the result with the lowest loss."""
    by_class = {
        result.problem.target: [other for other in results if other.problem.target == result.problem.target]
        for result in results
    }
    return [min(restarts, key=_loss) for restarts in by_class.values()]


def _loss(results: Result) -> float:
    assert results.record is not None
    return float(results.record["loss"]["total"])


def class_of(results: Result) -> str:
    """The class of a class explanation."""
    return planted.CLASSES[results.problem.target]


def activation_scores(results: Sequence[Result], plain_prompt: str | None = None) -> list[float]:
    """Activation scores of class explanations, or of the plain prompt that they are compared with."""
    records = [result.record or {} for result in results]
    return [
        record["activation_score"]
        if plain_prompt is None
        else record["baseline_prompts"][plain_prompt]["activation_score"]
        for record in records
    ]


def prompt_activation_score(setting: Setting, n: int, network: str) -> Estimate:
    """Share of classes with an activation score of at least 0.9."""
    results = explain_classes(setting, n, network)
    scores = activation_scores(results)
    lowest = min(zip(scores, map(class_of, results), strict=True))
    note = f"mean {100 * sum(scores) / len(scores):.1f} %, lowest {100 * lowest[0]:.1f} % ({lowest[1]})"
    return estimates.proportion([score >= SCORE_THRESHOLD for score in scores] + [False] * (n - len(scores)), note)


def prompt_score_gain(setting: Setting, n: int, network: str, rival: str) -> Estimate:
    """The activation score minus that of a plain prompt, mean over classes."""
    results = explain_classes(setting, n, network)
    scores, plain_scores = activation_scores(results), activation_scores(results, rival)
    num_below = sum(a < b for a, b in zip(scores, plain_scores, strict=True))
    note = (
        f"{rival}: {100 * sum(plain_scores) / len(plain_scores):.1f} %; {num_below} of {len(scores)} classes below it"
    )
    return estimates.mean([a - b for a, b in zip(scores, plain_scores, strict=True)], note)


def prompt_cue(setting: Setting, n: int) -> Estimate:
    """Share of the images for classes with a shortcut in which both oracles see the cue; the note has the share in
    which the segmenter finds nothing of the class."""
    results = [result for result in explain_classes(setting, n, SHORTCUT) if class_of(result) in SHORTCUT_CLASSES]
    confirmed: list[bool] = []
    without_object: list[bool] = []
    for result in results:
        assert result.samples is not None
        factor, value = planted.SHORTCUTS[class_of(result)]
        confirmed += oracles_confirm(setting, factor, result.samples, [value] * len(result.samples))
        without_object += [
            not contains_class
            for contains_class in contains_object(setting, result.samples, [class_of(result)] * len(result.samples))
        ]
    return proportion_or_nan(
        confirmed, f"without the object: {100 * sum(without_object) / max(len(without_object), 1):.1f} %"
    )


def prompt_object(setting: Setting, n: int, network: str, classes: Sequence[str]) -> Estimate:
    """Share of the images for these classes in which the segmenter finds the class and both oracles predict it."""
    confirmed: list[bool] = []
    for result in explain_classes(setting, n, network):
        if class_of(result) in classes:
            assert result.samples is not None
            names = [class_of(result)] * len(result.samples)
            contains_class = contains_object(setting, result.samples, names)
            confirmed += [
                x and y
                for x, y in zip(oracles_confirm(setting, "class", result.samples, names), contains_class, strict=True)
            ]
    return proportion_or_nan(confirmed, "")


# --- words ---------------------------------------------------------------------------------------------------


@cache
def cue_tokens(tokenizer: Any, cue: str) -> frozenset[int]:
    """Tokens of the words of a cue that no other word in the captions of the planted world has."""

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
    """Hard prompts for the classes with a shortcut, `n` restarts in total, without tokens of class names."""
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
    return [result for result in compute_results(setting, network, overrides, n) if result.record is not None]


def hard_prompt_cue_token(setting: Setting, n: int, network: str) -> Estimate:
    """Share of classes with a shortcut whose prompt, of the restart with the lowest loss, has a token of the cue when
    it is tokenized as text. The note has the prompts, and the share of random prompts of equal length with such a
    token."""
    results = best_restarts(hard_prompt_results(setting, n, network))
    networks = domain_parts(setting, CLEAN).diffusion.networks
    tokenizer, excluded = (
        networks.tokenizer,
        HardPrompt(None, planted.CLASSES, 1.0, (1.0, 1.0), 1.0).allowed_tokens(networks),
    )
    has_cue_token, descriptions, chance_rates = [], [], []
    for result in results:
        assert result.record is not None
        tokens_of_cue = cue_tokens(tokenizer, planted.SHORTCUTS[class_of(result)][1])
        prompt = result.record["prompt"]
        has_cue_token.append(bool(tokens_of_cue & set(tokenizer(prompt, add_special_tokens=False).input_ids)))
        words, score = prompt.removeprefix("a picture of "), 100 * result.record["activation_score"]
        descriptions.append(f"{class_of(result)}: {words} ({score:.0f} %)")
        chance_rates.append(1 - (1 - len(tokens_of_cue & set(excluded)) / len(excluded)) ** NUM_FREE_TOKENS)
    return proportion_or_nan(
        has_cue_token,
        f"{'; '.join(descriptions)}; by chance {100 * sum(chance_rates) / max(len(chance_rates), 1):.1f} %",
    )


METRICS = (
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
        for short, rival in (("name", "class_name"), ("caption", "caption"))
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
