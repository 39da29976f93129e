"""A CLIP tokenizer in the file format of Stable Diffusion, learned from the captions of a small data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from classifier_lens.runner.types import UserError


def learn_merges(words: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The first `count` merges of byte-pair encoding (Sennrich et al., 2016) over ASCII words, `</w>` at their ends.

    Among equally frequent pairs the one with the fewest letters is merged, then the alphabetically first one. The
    trainer of `tokenizers` breaks such ties differently in every process, so that tokenizers would differ.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count and (pairs := Counter(pair for word in spelled for pair in pairwise(word))):
        best = min(pairs, key=lambda pair: (-pairs[pair], len(pair[0] + pair[1]), pair))
        merges.append(best)
        spelled = [merge(word, best) for word in spelled]
    return merges


def merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with every occurrence of the pair merged, from the left."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def train_tokenizer(captions: Sequence[str], num_merges: int, model_max_length: int, folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer learned from each distinct word once; equal captions give equal files.

    Raises UserError if a caption has more than `model_max_length` tokens, including start and end tokens.
    """
    pairs = learn_merges(sorted({word for text in captions for word in text.split()}), num_merges)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [f"{letter}</w>" for letter in letters] + ["".join(p) for p in pairs]
    vocabulary = list(dict.fromkeys(vocabulary)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(p) for p in pairs) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=model_max_length)
    tokenizer.save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    if (longest := max(len(tokenizer(text).input_ids) for text in set(captions))) > model_max_length:
        raise UserError(
            f"token_length={model_max_length}: the longest caption has {longest} tokens; give at least that many"
        )
    return tokenizer
