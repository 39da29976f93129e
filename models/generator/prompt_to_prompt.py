"""Words and tokens of prompts: the tokens of a word, and the alignment of attention maps with an edited prompt."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from classifier_lens.runner.types import UserError


def find_words(prompt: str, words: str) -> range:
    """Positions of `words` among the words of the prompt, without regard to letter case and punctuation around words.

    Raises UserError if the prompt does not contain them next to each other in this order.
    """
    plain, searched = ([w.strip(".,;:!?\"'()").lower() for w in text.split()] for text in (prompt, words))
    for start in range(len(plain) - len(searched) + 1):
        if searched and plain[start : start + len(searched)] == searched:
            return range(start, start + len(searched))
    raise UserError(f"caption '{prompt}' does not contain '{words}': it has to contain the words that are replaced")


def token_spans(tokenizer: Any, prompt: str) -> list[list[int]]:
    """The positions of the tokens of each word of the prompt; position 0 is the start token.

    Byte-pair encoding never crosses a blank, so that the prompt's tokens are those of its words. Raises UserError if
    the prompt is longer than the tokenizer allows, and for a part of a learned word.
    """
    _check_learned(tokenizer, prompt)
    spans, position = [], 1
    for word in prompt.split():
        n = len(tokenizer(word, add_special_tokens=False).input_ids)
        spans.append(list(range(position, position + n)))
        position += n
    if position + 1 > tokenizer.model_max_length:
        raise UserError(f"prompt '{prompt}' has {position + 1} tokens: allowed are {tokenizer.model_max_length}")
    return spans


def _check_learned(tokenizer: Any, prompt: str) -> None:
    """Raise UserError for an incomplete learned word of several rows (`<it>`, `<it>_1`, …): its first row alone has
    another meaning."""
    learned, words = tokenizer.get_added_vocab(), prompt.split()
    for word in (word for word in words if f"{word}_1" in learned):
        rows = [word, *(name for i in range(1, len(learned)) if (name := f"{word}_{i}") in learned)]
        start = words.index(word)
        if words[start : start + len(rows)] != rows:
            raise UserError(f"prompt '{prompt}': the learned word {word} has {len(rows)} rows; write {' '.join(rows)}")


def word_token_positions(tokenizer: Any, prompt: str, words: str) -> list[int]:
    """Positions of all tokens of `words` in the prompt."""
    spans = token_spans(tokenizer, prompt)
    return [t for w in find_words(prompt, words) for t in spans[w]]


def word_weights(source: Float[Tensor, "n d"], target: Float[Tensor, "m d"]) -> Float[Tensor, "m n"]:
    """The weights of the source words' maps in the map of each target word; rows sum to 1.

    Equal numbers of words are assigned one to one with the largest total cosine similarity; otherwise the weights are
    the positive similarities, normalized (equal weights if none is positive).
    """
    similarity = torch.nn.functional.cosine_similarity(target[:, None], source[None], dim=-1)
    if len(source) == len(target):
        rows, columns = linear_sum_assignment(similarity.detach().cpu().double().numpy(), maximize=True)
        weights = torch.zeros_like(similarity)
        weights[torch.as_tensor(rows), torch.as_tensor(columns)] = 1.0
        return weights
    positive = similarity.clamp(min=0)
    empty = positive.sum(dim=1, keepdim=True) == 0
    positive = torch.where(empty, torch.ones_like(positive), positive)
    return positive / positive.sum(dim=1, keepdim=True)


def _words_at(prompt: str, positions: list[int]) -> list[str]:
    """The words at some positions of the prompt, "an" as "a"."""
    return ["a" if word.lower() in ("a", "an") else word for word in (prompt.split()[i] for i in positions)]


def map_alignment_matrix(
    tokenizer: Any, source: str, target: str, source_words: str, target_words: str,
    source_embedding: Float[Tensor, "l d"], target_embedding: Float[Tensor, "l d"],
) -> Float[Tensor, "l l"]:  # fmt: skip
    """The matrix A with `target_maps = source_maps @ A` (Prompt-to-Prompt for unequal word counts).

    Every token of a target word gets the weighted mean of the source words' maps, the map of a word being the mean over
    its tokens; all other words, the start token and the padding keep their maps at shifted positions. "a" and "an" are
    the same word.
    """
    old_spans, new_spans = token_spans(tokenizer, source), token_spans(tokenizer, target)
    old_words, new_words = find_words(source, source_words), find_words(target, target_words)
    length = len(source_embedding)
    matrix = torch.zeros(length, length)

    def mean_embedding(embedding: Tensor, span: list[int]) -> Tensor:
        return embedding[span].mean(dim=0)

    weights = word_weights(
        torch.stack([mean_embedding(source_embedding, old_spans[w]) for w in old_words]),
        torch.stack([mean_embedding(target_embedding, new_spans[w]) for w in new_words]),
    )
    for row, word in zip(weights, new_words, strict=True):
        for new in new_spans[word]:
            for weight, old_word in zip(row, old_words, strict=True):
                matrix[old_spans[old_word], new] = weight.item() / len(old_spans[old_word])

    unchanged_old = [i for i in range(len(old_spans)) if i not in old_words]
    unchanged_new = [i for i in range(len(new_spans)) if i not in new_words]
    if _words_at(source, unchanged_old) != _words_at(target, unchanged_new):
        raise ValueError(f"'{source}' and '{target}' differ in more than '{source_words}' -> '{target_words}'")
    for i, j in zip(unchanged_old, unchanged_new, strict=True):
        for k, new in enumerate(new_spans[j]):
            matrix[old_spans[i][min(k, len(old_spans[i]) - 1)], new] = 1.0
    matrix[0, 0] = 1.0
    old_end, new_end = 1 + sum(map(len, old_spans)), 1 + sum(map(len, new_spans))
    for new in range(new_end, length):
        matrix[min(new - new_end + old_end, length - 1), new] = 1.0
    return matrix
