"""Learning a tokenizer from captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier_lens.data import planted
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train.tokenizer import learn_merges, train_tokenizer


def test_merges_are_those_of_byte_pair_encoding() -> None:
    """By hand: `a b` stands in all three words, then `ab c</w>` twice, the rest once each, in the alphabet's order."""
    assert learn_merges(["abc", "xabc", "abd"], 10) == [
        ("a", "b"), ("ab", "c</w>"), ("ab", "d</w>"), ("x", "abc</w>"),
    ]  # fmt: skip
    assert learn_merges(["aaa"], 1) == [("a", "a")] and learn_merges(["a"], 5) == []
    assert learn_merges(["ab", "cd"], 1) == [("a", "b</w>")], "of equally frequent pairs the first of the alphabet"
    assert learn_merges(["abc", "xyz"], 1) == [("a", "b")], "but no word's end, which counts as four letters more"
    assert learn_merges(["xyz", "ab"], 1) == [("x", "y")]


def test_a_tokenizer_reads_its_captions_and_no_longer_ones(tmp_path: Path) -> None:
    captions = planted.sample_captioned_scenes(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 100, 40, tmp_path)
    assert all(tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text for text in captions)
    pieces = [len(tokenizer(name).input_ids) - 2 for name in planted.CLASSES]
    assert sum(n > 1 for n in pieces) > 5, "most class names are several tokens"
    with pytest.raises(UserError, match="token_length=9: the longest caption has"):
        train_tokenizer(captions, 100, 9, tmp_path)
