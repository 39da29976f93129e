"""Quality per second: what is counted, the page, its picture and the command line, on answers that are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench import quality
from classifier_lens.scripts.bench.quality import TASKS, VARIANTS, QualityTask, format_table, measure_variant
from classifier_lens.scripts.choices import select_names
from classifier_lens.scripts.evaluate.metric import Result, Setting
from tests.test_docs import COMMANDS

SETTING = Setting(0, "cpu", "unused")


def answer(seconds: float, success: bool) -> Result:
    picture = torch.zeros(3, 64, 64)
    return Result(SimpleNamespace(target=0), {"seconds": seconds, "success": success}, picture, None, picture[None])


def asked(given: Sequence[Result], seen: Sequence[bool]) -> QualityTask:
    def answers(setting: Setting, how: tuple[str, ...], n: int) -> Sequence[Result]:
        return given[:n]

    return QualityTask(answers, 4, lambda a: a.success, lambda setting, own: list(seen), ("flipped", "seen"))


def test_problems_without_an_answer_are_misses_and_seconds_are_medians() -> None:
    nothing = Result(SimpleNamespace(target=0), None, None, None, None)
    given = [answer(1.0, True), answer(9.0, True), answer(2.0, False), nothing]
    point = measure_variant(SETTING, asked(given, [True, False, False]), (), 4)
    assert (point.seconds, point.n) == (2.0, 4)
    assert point.success[0] == 0.5 and point.oracle_score[0] == pytest.approx(1 / 3)
    assert point.success[1] < 0.5 < point.success[2]
    with pytest.raises(UserError, match="none of 1 problems has a result"):
        measure_variant(SETTING, asked([nothing], []), (), 1)


def test_the_page_and_the_picture_have_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    given = [answer(1.0, True), answer(3.0, False)]
    monkeypatch.setattr(quality, "TASKS", {"uvce": asked(given, [True, True])})
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    monkeypatch.setattr(quality, "FIGURE_FILE", tmp_path / "quality.png")
    assert quality.main(["variants=LCM,DDIM-20,DDIM-20 g,DDIM-20 b", "n=2", "write=true"]) == 0
    assert capsys.readouterr().out.count("uvce") == 7
    known = json.loads((tmp_path / "quality.json").read_text())
    assert list(known["uvce"]) == [name for name in VARIANTS if name != "DDIM-10"]
    page = (tmp_path / "quality.md").read_text()
    assert page == format_table(known)
    assert page.count("| 2 | 50 % [9, 91] | 100 % [34, 100] | 2 |") == 7
    with Image.open(tmp_path / "quality.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("L").getcolors() or []) > 10


def test_documented_commands_are_understood() -> None:
    asked = [words[2:] for _, words in COMMANDS if words[:2] == ["python", "scripts/bench/quality.py"]]
    assert asked
    for words in asked:
        chosen = parse_options(quality.Options, words)
        assert select_names("only", chosen.only, list(TASKS)) and select_names(
            "variants", chosen.variants, list(VARIANTS)
        )


def test_names_and_their_beginnings() -> None:
    assert select_names("variants", "LCM-4, DDIM-10", list(VARIANTS)) == ["DDIM-10", "LCM-4"]
    assert select_names("only", "all", list(TASKS)) == ["uvce", "disagreement", "prompts"]


@pytest.mark.parametrize(("word", "said"), [
    ("only=nothing", "only=nothing: allowed are uvce; disagreement; prompts"), ("n=1", "n=1: allowed are whole"),
    ("variants=DDPM", "variants=DDPM: allowed are DDIM-20;"), ("speed=1", "speed=1: unknown key; "),
])  # fmt: skip
def test_bad_words_end_in_one_line(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1


def test_the_committed_page_shows_the_committed_numbers() -> None:
    results = json.loads((quality.RESULTS / "quality.json").read_text())
    assert (quality.RESULTS / "quality.md").read_text() == quality.format_table(results)
