"""Where an inverted picture attends to each word of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from classifier_lens.models.generator import inversion
from classifier_lens.models.generator.cross_attention import min_max_normalize
from classifier_lens.models.generator.latent_diffusion import AttentionMapWindow, LatentDiffusion
from classifier_lens.models.generator.prompt_to_prompt import find_words, token_spans
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import CaptionEdit, UserError
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import initialize

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[CounterfactualProblem]]


class Noted:
    """A segmenter that keeps the maps it is given and finds nothing."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, images: Tensor, maps: Tensor, words: Sequence[str], names: Sequence[str]) -> Tensor:
        self.maps.append(maps)
        return torch.zeros_like(images[:, :1])


@pytest.fixture
def problem(make_problems: Problems) -> CounterfactualProblem:
    """Its prompt has the same word twice, and a class of several words."""
    first = make_problems(1)[0]
    words = "great white shark"
    return replace(first, edit=CaptionEdit.unchanged(f"a photograph of a {words} in water", words))


def maps_of(generator: LatentDiffusion, problem: CounterfactualProblem) -> tuple[Tensor, Tensor]:
    assert problem.image is not None
    return generator.word_attention_maps(problem.image, problem.edit.source, problem.edit.source_words, problem.seed)


@pytest.mark.parametrize("stretch", [False, True])
def test_the_phrases_map_is_the_one_that_the_mask_is_made_from(
    stretch: bool, make_generator: Make, problem: CounterfactualProblem
) -> None:
    segmenter = Noted()
    generator = make_generator(segmenter=segmenter, attention_maps=AttentionMapWindow(8, 0.25, 0.75, stretch))
    initialize(generator, [problem])
    own = maps_of(generator, problem)[1][None, None]
    assert torch.equal(segmenter.maps[0], min_max_normalize(own) if stretch else own)


@pytest.mark.parametrize(("side", "first", "last"), [(8, 0.0, 0.5), (8, 0.5, 1.0), (4, 0.0, 1.0)])
def test_each_word_has_the_mean_of_its_tokens_over_heads_layers_and_steps(
    side: int, first: float, last: float, make_generator: Make, problem: CounterfactualProblem
) -> None:
    generator = make_generator(attention_maps=AttentionMapWindow(side, first, last, False))
    found, own = maps_of(generator, problem)
    prompt, steps = problem.edit.source, range(round(4 * first), round(4 * last))
    assert problem.image is not None
    course = generator.invert(problem.image[None], [prompt], [problem.seed])
    recorded = generator.record_attention(course, generator.networks.embed([prompt]), 4)[0]
    layers = [maps for maps in recorded.values() if maps.shape[3] == side * side]
    per_token = sum(maps[0, k].mean(dim=0) for maps in layers for k in steps) / (len(layers) * len(steps))
    assert isinstance(per_token, Tensor)
    torch.testing.assert_close(per_token.sum(dim=-1), torch.ones(side * side))
    spans = token_spans(generator.networks.tokenizer, prompt)
    assert found.shape == (len(prompt.split()), side, side) and len(spans) == 9
    for word, span in zip(found, spans, strict=True):
        expected = per_token[:, span].mean(dim=-1)
        torch.testing.assert_close(word.flatten(), expected / expected.max())
    # Of the class's words, those of more tokens count for more.
    tokens = [spans[w] for w in find_words(prompt, problem.edit.source_words)]
    total = sum(per_token[:, span].sum(dim=-1) for span in tokens)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(own.flatten(), total / total.max())
    assert not torch.allclose(found[0], found[3], atol=1e-3), "the same word at two places has two maps"


def test_a_picture_that_was_begun_alone_is_not_inverted_again(
    make_generator: Make, problem: CounterfactualProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = maps_of(make_generator(), problem)
    generator = make_generator(cache=TensorCache(str(tmp_path)))
    initialize(generator, [problem])
    monkeypatch.delattr(inversion, "ddim_invert")
    for kept, computed in zip(maps_of(generator, problem), plain, strict=True):
        assert torch.equal(kept, computed) and not kept.requires_grad


def test_words_that_do_not_stand_in_the_prompt_are_refused(
    make_generator: Make, problem: CounterfactualProblem
) -> None:
    assert problem.image is not None
    with pytest.raises(UserError, match="does not contain 'viaduct'"):
        make_generator().word_attention_maps(problem.image, problem.edit.source, "viaduct", 0)
