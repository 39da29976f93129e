"""The shipped table of ImageNet's classes follows from WordNet."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier_lens.data.imagenet_hierarchy import HIERARCHY_FILE
from classifier_lens.scripts.tables.imagenet_hierarchy import (
    Synset,
    hierarchy_table,
    hypernym_closure,
    main,
    read_nouns,
    wordnet_license,
)

WORDNET = Path("/usr/share/wordnet")
# Lines as in WordNet's data.noun; words are counted in hexadecimal, pointers in decimal numbers.
NOUNS = (
    "  1 This software and database is being provided to you, the LICENSEE, by  ",
    "  2 ",
    "00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which is  ",
    "00000002 05 n 02 cartilaginous_fish 0 chondrichthian 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | fish  ",
    "00000003 05 n 0a shark 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 003 @ 00000002 n 0000 #m 00000009 n 0000 "
    "@i 00000001 n 0000 | a | b  ",
)


def test_words_and_kinds_are_read_from_a_line() -> None:
    assert read_nouns(NOUNS) == {
        "00000001": Synset("entity", ()), "00000002": Synset("cartilaginous fish", ("00000001",)),
        "00000003": Synset("shark", ("00000002", "00000001")),
    }  # fmt: skip
    assert wordnet_license(NOUNS) == "This software and database is being provided to you, the LICENSEE, by\n\n"


def test_a_table_has_classes_first_and_then_what_is_above_them() -> None:
    nouns = read_nouns(NOUNS)
    assert hypernym_closure(["00000003"], nouns) == ["00000001", "00000002"] and hypernym_closure(
        ["00000002"], nouns
    ) == ["00000001"]
    assert hierarchy_table(["n00000003"], ["great shark"], nouns) == [
        ("0", "n00000003", "great shark", "n00000002 n00000001"), ("", "n00000001", "entity", ""),
        ("", "n00000002", "cartilaginous fish", "n00000001"),
    ]  # fmt: skip


def test_the_script_needs_wordnet(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="data.noun: no such file; install WordNet 3.0"):
        main(str(tmp_path), str(tmp_path / "out.csv"))


@pytest.mark.skipif(not WORDNET.is_dir(), reason=f"{WORDNET} is not there")
def test_the_shipped_table_is_what_the_script_writes(tmp_path: Path) -> None:
    main(str(WORDNET), str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_bytes() == HIERARCHY_FILE.read_bytes()
