"""Tokens of words, and how maps move to a changed prompt, for class names of one to three words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.prompt_to_prompt import (
    find_words,
    map_alignment_matrix,
    token_spans,
    word_token_positions,
    word_weights,
)
from classifier_lens.runner.types import CaptionEdit, Problem, UserError
from tests.conftest import initialize

OLD = ("partridge", "rock crab", "steel arch bridge")
NEW = ("viaduct", "tiger shark", "great white shark")
CAPTION = "a photograph of a red {} in water with a flag"


@pytest.fixture(scope="module")
def tokenizer(tiny_pipe: StableDiffusionPipeline) -> Any:
    return tiny_pipe.tokenizer


@pytest.mark.parametrize("name", OLD + NEW)
def test_spans_join_to_the_tokenizers_own_encoding(tokenizer: Any, name: str) -> None:
    prompt = CAPTION.format(name)
    ids = tokenizer(prompt).input_ids
    spans = token_spans(tokenizer, prompt)
    assert len(spans) == len(prompt.split())
    assert [position for span in spans for position in span] == list(range(1, len(ids) - 1))
    for word, span in zip(prompt.split(), spans, strict=True):
        assert tokenizer.decode([ids[i] for i in span]).strip() == word
    assert sum(len(spans[i]) for i in find_words(prompt, name)) > len(name.split()), "a word of several tokens"


def test_words_are_found_whatever_their_case_and_punctuation() -> None:
    assert find_words("A Rock  Crab, on sand.", "rock crab") == range(1, 3)
    assert find_words("a crab and a rock crab", "rock crab") == range(4, 6)
    assert find_words("a crab in snow, with a flag.", "snow, with a") == range(3, 6)


@pytest.mark.parametrize("words", ["tiger shark", "crab rock", "roc", "", "on sand and more"])
def test_words_that_are_not_there_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="does not contain") as caught:
        find_words("a rock crab on sand", words)
    assert f"'{words}'" in str(caught.value) and "a rock crab on sand" in str(caught.value)


def test_a_prompt_that_is_too_long_is_refused(tokenizer: Any) -> None:
    limit = tokenizer.model_max_length
    fits = " ".join(["a"] * (limit - 2))
    assert len(token_spans(tokenizer, fits)) == limit - 2 == len(tokenizer(fits).input_ids) - 2
    with pytest.raises(UserError, match=rf"has {limit + 1} tokens: allowed are {limit}"):
        token_spans(tokenizer, fits + " a")


def test_the_more_alike_word_gets_more() -> None:
    source = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # lengths do not matter
    weights = word_weights(source, torch.tensor([[0.8, 0.6]]))
    torch.testing.assert_close(weights, torch.tensor([[0.8 / 1.4, 0.6 / 1.4]]))


def test_unlike_words_get_nothing_and_rows_sum_to_one() -> None:
    source = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    weights = word_weights(source, torch.tensor([[1.0, 0.0], [-3.0, -4.0]]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    nothing_alike = word_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, -1.0]]))
    torch.testing.assert_close(nothing_alike, torch.tensor([[0.5, 0.5]]))


def test_equal_counts_are_assigned_one_to_one_with_the_greatest_similarity() -> None:
    source = torch.eye(3)
    target = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.2, 0.8], [0.9, 0.8, 0.0]])  # both first and last like the second
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(word_weights(source, target), expected)


@pytest.mark.parametrize(("old", "new"), list(product(OLD, NEW)))
def test_alignment_for_every_number_of_words(tokenizer: Any, old: str, new: str) -> None:
    source, target = CAPTION.format(old), CAPTION.format(new)
    length = tokenizer.model_max_length
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, length, 8, generator=draw)
    matrix = map_alignment_matrix(tokenizer, source, target, old, new, before, after)
    assert matrix.shape == (length, length) and (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(length), msg="every new token takes one whole map")

    old_spans, new_spans = token_spans(tokenizer, source), token_spans(tokenizer, target)
    old_words, new_words = find_words(source, old), find_words(target, new)
    shift = sum(map(len, new_spans)) - sum(map(len, old_spans))

    def one_hot(position: int) -> torch.Tensor:
        return torch.eye(length)[position]

    # The start token, all words before and after, the end token and the padding keep their maps.
    kept_before = range(new_spans[new_words.start][0])
    kept_after = range(new_spans[new_words.stop - 1][-1] + 1, length)
    for position in kept_before:
        assert torch.equal(matrix[:, position], one_hot(position))
    for position in kept_after:
        assert torch.equal(matrix[:, position], one_hot(min(position - shift, length - 1)))

    # Every token of every new word takes the mean of the old words' means, weighted by likeness.
    means = torch.stack([before[old_spans[w]].mean(dim=0) for w in old_words])
    wanted = torch.stack([after[new_spans[w]].mean(dim=0) for w in new_words])
    for row, word in zip(word_weights(means, wanted), new_words, strict=True):
        expected = torch.zeros(length)
        for weight, old_word in zip(row, old_words, strict=True):
            expected[old_spans[old_word]] = weight / len(old_spans[old_word])
        for token in new_spans[word]:
            torch.testing.assert_close(matrix[:, token], expected)


def test_maps_after_alignment_sum_to_one_where_counts_match(tokenizer: Any) -> None:
    """One map per new token is a permutation if words and tokens correspond, so that rows stay probabilities."""
    prompt = CAPTION.format("rock crab")
    embedding = torch.randn(tokenizer.model_max_length, 8, generator=torch.Generator().manual_seed(0))
    matrix = map_alignment_matrix(tokenizer, prompt, prompt, "rock", "rock", embedding, embedding)
    tokens = word_token_positions(tokenizer, prompt, "rock")
    outside = [i for i in range(len(matrix)) if i not in tokens]
    assert torch.equal(matrix[outside][:, outside], torch.eye(len(outside)))
    torch.testing.assert_close(matrix[tokens][:, tokens], torch.full((len(tokens),) * 2, 1 / len(tokens)))


@pytest.mark.parametrize(("old", "new"), [("an urn", "a crab"), ("a crab", "an urn")])
def test_an_article_that_follows_its_name_keeps_its_map(tokenizer: Any, old: str, new: str) -> None:
    source, target = f"an image of {old} on sand", f"an image of {new} on sand"
    old_word, new_word = old.split()[1], new.split()[1]
    embedding = torch.randn(tokenizer.model_max_length, 8, generator=torch.Generator().manual_seed(0))
    matrix = map_alignment_matrix(tokenizer, source, target, old_word, new_word, embedding, embedding)
    before, after = token_spans(tokenizer, source)[3], token_spans(tokenizer, target)[3]
    assert {len(before), len(after)} == {1, 2}, "the counts of tokens may differ"
    for k, token in enumerate(after):
        assert torch.equal(matrix[:, token], torch.eye(len(matrix))[before[min(k, len(before) - 1)]])


def test_prompts_that_differ_elsewhere_are_refused(tokenizer: Any) -> None:
    embedding = torch.randn(tokenizer.model_max_length, 8)
    with pytest.raises(ValueError, match="differ in more than"):
        map_alignment_matrix(
            tokenizer, "a rock crab on sand", "a viaduct in water", "rock crab", "viaduct", embedding, embedding
        )


def test_names_that_are_absent_are_refused(tokenizer: Any) -> None:
    embedding = torch.randn(tokenizer.model_max_length, 8)
    with pytest.raises(UserError, match="'a crab' does not contain 'rock crab'"):
        map_alignment_matrix(tokenizer, "a crab", "a viaduct", "rock crab", "viaduct", embedding, embedding)
    with pytest.raises(UserError, match="does not contain"):
        word_token_positions(tokenizer, "a crab", "lobster")


# --- Prompt-to-Prompt from a problem to what each head of each layer attends to -------------------------------


class Tokens(nn.Module):
    """In the place of a layer's values: token i is the i-th unit vector, in every head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, context: Tensor) -> Tensor:
        n, length, _ = context.shape
        return torch.eye(length).repeat(1, self.heads).expand(n, -1, -1)


class Attended(nn.Module):
    """In the place of a layer's output: with `Tokens` as values that is how much of each token was attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.seen = width, heads, torch.empty(0)

    def forward(self, out: Tensor) -> Tensor:
        self.seen = out.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, pixels, tokens)
        return torch.zeros(*out.shape[:2], self.width)


def at(context: DiffusionContext, i: int) -> dict[str, Tensor]:
    """The embeddings of a step."""
    return {name: base[:, i] for name, base in context.embeddings.items()}


Readable = tuple[LatentDiffusion, dict[str, Attended]]


@pytest.fixture
def readable(make_generator: Callable[..., LatentDiffusion]) -> Readable:
    """A generator of which one can read what every head of every text layer attends to."""
    generator = make_generator(prompt_to_prompt={"cross_replace_steps": [0.5], "background_blend_steps": [0.0]})
    generator.networks.unet = copy.deepcopy(generator.networks.unet)
    seen = {}
    for name in (n.removesuffix(".processor") for n in generator.networks.unet.attn_processors if "attn2" in n):
        layer = generator.networks.unet.get_submodule(name)
        seen[name] = Attended(layer.to_q.in_features, layer.heads)
        layer.to_v, layer.to_out = Tokens(layer.heads), nn.ModuleList([seen[name], nn.Identity()])
    return generator, seen


def edited(
    generator: LatentDiffusion, seen: dict[str, Attended], old: str, new: str
) -> tuple[DiffusionContext, dict[str, Tensor]]:
    """The constants of an exchange of names, with maps in the original's place that tell all heads, pixels and tokens
    apart: (b, steps, heads, pixels, tokens) by layer."""
    edit = CaptionEdit(CAPTION.format(old), CAPTION.format(new), old, new)
    problem = Problem(name="p", seed=5, edit=edit, load=None, image_name="p", preserve="none")
    shapes = {name: maps.shape for name, maps in initialize(generator, [problem]).context.attention_maps.items()}
    assert set(shapes) == set(seen), "every text layer has its maps"
    draw = torch.Generator().manual_seed(0)
    known = {name: (3 * torch.randn(shape, generator=draw)).softmax(dim=-1) for name, shape in shapes.items()}
    record = generator.record_attention
    generator.record_attention = lambda *args: (known, *record(*args)[1:])  # type: ignore[method-assign]
    return initialize(generator, [problem]).context, known


def means(embedding: Tensor, spans: list[list[int]], names: range) -> list[Tensor]:
    return [embedding[spans[i]].mean(dim=0) for i in names]


@torch.no_grad()
@pytest.mark.parametrize(("old", "new"), list(product(OLD, NEW)))
def test_every_head_attends_to_the_new_names_where_it_attended_to_the_old_ones(
    readable: Readable, old: str, new: str
) -> None:
    generator, seen = readable
    context, known = edited(generator, seen, old, new)
    before = token_spans(generator.networks.tokenizer, CAPTION.format(old))
    after = token_spans(generator.networks.tokenizer, CAPTION.format(new))
    first, m, n = 5, len(old.split()), len(new.split())  # "a photograph of a red" stands before the name
    old_names, new_names = range(first, first + m), range(first, first + n)
    source, target = (generator.networks.embed([CAPTION.format(name)])[0] for name in (old, new))
    likeness = torch.stack([
        torch.stack([cosine_similarity(a, b, dim=0) for a in means(source, before, old_names)])
        for b in means(target, after, new_names)
    ])  # fmt: skip

    z = generator.networks.sample_noise([5], 8, 1)[:, 0]
    for i in range(2):  # the half of the four steps in which maps are injected
        generator.step(z, at(context, i), context.variance_noise[:, i], i, context)
        for layer, attended in seen.items():
            null, found = attended.seen
            theirs = known[layer][0, i]
            by_word = torch.stack([theirs[..., before[w]].mean(dim=-1) for w in old_names])
            for k, word in enumerate(new_names):
                maps = found[..., after[word]].movedim(-1, 0)
                torch.testing.assert_close(maps, maps[:1].expand_as(maps), msg="all tokens of a word take one map")
                if m == n:  # one old word each, and that of the best assignment
                    best = max(permutations(range(m)), key=lambda p: sum(likeness[r, c] for r, c in enumerate(p)))
                    torch.testing.assert_close(maps[0], by_word[best[k]])
                else:
                    assert (likeness[k] > 0).all(), "no likeness is cut off here"
                    share = likeness[k] / likeness[k].sum()
                    torch.testing.assert_close(maps[0], torch.einsum("w,whq->hq", share, by_word))
            # All other words keep theirs, wherever they have moved to; so do the first token, the end and the padding.
            assert torch.equal(found[..., 0], theirs[..., 0])
            kept = [
                *zip(before[:first], after[:first], strict=True),
                *zip(before[first + m :], after[first + n :], strict=True),
            ]
            for was, now in kept:
                torch.testing.assert_close(found[..., now], theirs[..., was])
            end, new_end = before[-1][-1] + 1, after[-1][-1] + 1
            rest = min(theirs.shape[-1] - end, theirs.shape[-1] - new_end)
            torch.testing.assert_close(found[..., new_end : new_end + rest], theirs[..., end : end + rest])
            torch.testing.assert_close(null.sum(dim=-1), torch.ones(null.shape[:-1]))
            assert not torch.allclose(null, found, atol=1e-2), "the half without a prompt keeps its own"


@torch.no_grad()
def test_after_its_share_of_the_chain_a_prompt_attends_for_itself(readable: Readable) -> None:
    generator, seen = readable
    context, _ = edited(generator, seen, "rock crab", "great white shark")
    z, free = generator.networks.sample_noise([5], 8, 1)[:, 0], replace(context, cross_replace_steps=torch.zeros(1))
    for i in range(4):
        generator.step(z, at(context, i), context.variance_noise[:, i], i, free)
        own = {layer: attended.seen for layer, attended in seen.items()}
        generator.step(z, at(context, i), context.variance_noise[:, i], i, context)
        for layer, attended in seen.items():
            assert torch.allclose(attended.seen[1], own[layer][1], atol=1e-5) is (i >= 2), (i, layer)
            torch.testing.assert_close(attended.seen[0], own[layer][0])


def test_a_learned_word_of_several_rows_stands_there_whole(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<sand>", "<sand>_1", "<sand>_2", "<one>"])
    prompt = "a crab on <sand> <sand>_1 <sand>_2 and <one>"
    spans = token_spans(own, prompt)
    assert [len(span) for span in spans[3:6]] == [1, 1, 1] and len(spans[-1]) == 1
    for part in ("a crab on <sand>", "a crab on <sand> <sand>_2 <sand>_1"):
        with pytest.raises(UserError, match=r"<sand> has 3 rows; write <sand> <sand>_1 <sand>_2$"):
            token_spans(own, part)
