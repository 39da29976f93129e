"""The page of a run folder: complete without a network, honest about what is missing, safe with any name."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from classifier_lens.runner.report import page as report_page
from classifier_lens.runner.report.charts import Chart, make_chart, ticks
from classifier_lens.runner.report.page import PAGE_FILE, main, write_report
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.types import UserError
from tests.durability import damage

KEYS = ("start", "original", "result", "mask", "difference")
NASTY = "</script><img src=x onerror=\"alert('1')\"> & co"


class Page(HTMLParser):
    """What a page refers to and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._data: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.links += [value for key, value in attrs if key in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data
        self._data.append((self.tags[-1][0] if self.tags else "", data))

    def data_of(self, tag: str) -> list[str]:
        """The texts that stand right behind the opening tags of this name."""
        return [data for name, data in self._data if name == tag and data.strip()]

    def count(self, tag: str, kind: str | None = None) -> int:
        """How many tags of this name, and of this class where one is given."""
        return sum(name == tag and (kind is None or kind in (at.get("class") or "").split()) for name, at in self.tags)


def record(i: int, **changes: Any) -> dict[str, Any]:
    """One finished problem as the runner writes it."""
    name = f"test-{i:05d}-rock-crab"
    return {
        "name": name,
        "success": True,
        "criterion": "predicted as rock crab (0.96); wanted: rock crab (0.96)",
        "success_start": False,
        "source": "fiddler crab",
        "target": "rock crab",
        "predicted_before": "fiddler crab",
        "predicted_start": "urn",
        "predicted_after": "rock crab",
        "confidence_before": {"fiddler crab": 0.98, "rock crab": 0.01},
        "confidence_start": {"fiddler crab": 0.31, "rock crab": 0.123},
        "confidence_after": {"fiddler crab": 0.03, "rock crab": 0.962},
        "caption": "a photograph of a fiddler crab",
        "prompt": "a photograph of a rock crab",
        "loss": {"class_log_prob": 0.1, "total": 12.6, "pixel_distance": 0.05},
        "max_steps": 3,
        "best_step": 2,
        "seconds": 31.2,
        "warnings": [],
        "images": {key: f"images/{name}/{key}.png" for key in KEYS},
        "history": [{"step": k, "total": 3.0 / (k + 1), "confidence": 0.3 * k} for k in range(4)],
        "seed": i,
        **changes,
    }


def run_folder(
    tmp_path: Path, records: list[dict[str, Any]], size: tuple[int, int] = (64, 64), task: str = "uvce"
) -> Path:
    """A run folder whose records' images all exist, apart from those outside it."""
    folder = tmp_path / task / "planted_ddim-planted_clean" / "c0ffee"
    folder.mkdir(parents=True)
    for path in (path for item in records for path in item.get("images", {}).values()):
        if not path.startswith(("/", "..")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, "teal").save(folder / path, format="PNG")
    weights = "task: {weights: {class_log_prob: 1.0, pixel_distance: 250.0}}"
    (folder / "config.yaml").write_text(f"command: python run.py task=uvce seed=3\nseed: 3\n{weights}\n")
    (folder / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    status = {"state": "done", "done": len(records), "failed": 0, "pending": 0, "reason": "", "failures": []}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def sentence(page: Page) -> str:
    """The text of a page in one line."""
    return " ".join(page.text.split())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_one_card_per_problem(tmp_path: Path, n: int) -> None:
    folder = run_folder(tmp_path, [record(i, success=i > 0) for i in range(n)])
    page = read(folder)
    assert page.count("article") == n == page.text.count("Absolute difference")
    assert page.count("img") == 5 * n == page.count("a", "enlarge")
    assert page.count("svg", "chart") == 2 * n
    assert page.count("form") == (n > 1)
    assert "planted_clean" in page.text and "planted_ddim" in page.text and "complete" in page.text
    assert "python run.py task=uvce seed=3" in page.text
    assert ("No problem is finished yet" in page.text) == (n == 0)
    if n == 3:
        assert "Success rate 67 % (95 % interval 21–94 %)" in sentence(page)
        assert page.count("span", "no") == 1


def test_title_and_result_stand_before_images_and_numbers(tmp_path: Path) -> None:
    text = sentence(read(run_folder(tmp_path, [record(0), record(1, success=False)])))
    order = (
        "Visual counterfactuals (UVCE): planted_clean",
        "1 of 2 images is now predicted as the target; median confidence 0.96; 31 s per image.",
        "The prediction changes from fiddler crab to rock crab.",
        "Editable region (white)",
        "Confidence",
    )
    assert (places := [text.index(part) for part in order]) == sorted(places)


def test_a_page_shows_the_first_of_many_problems_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(report_page, "MAX_CARDS", 2)
    records = [record(i, success=i > 0, success_start=i == 4, seconds=float(i)) for i in range(5)]
    page = read(run_folder(tmp_path, records))
    text = sentence(page)
    assert page.count("article") == 2 and "The first 2 of 5 finished problems are shown" in text
    assert "4 of 5 images are now predicted as the target; median confidence 0.96; 2.0 s per image. 1 of 5" in text
    assert "Success rate 80 % " in text and "results.jsonl" in page.links


def test_the_preparation_stands_beside_the_time_per_problem(tmp_path: Path) -> None:
    """That of the process which it took longest; what an attempt that is damaged says is nobody's loss."""
    folder = run_folder(tmp_path, [record(0)])
    assert "preparation" not in read(folder).text
    (folder / "attempts").mkdir()
    texts = ('{"prepared": 65.0}', '{"preparation_seconds": 465.0}', '{"prepared": "x"}', '{"prep', "", "{}")
    for i, text in enumerate(texts):
        (folder / "attempts" / f"{i}.json").write_text(text)
    text = sentence(read(folder))
    assert "preparation 7.8 min" in text and "31 s per image" in text


def test_refers_to_its_own_files_only(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [record(0), record(1, images={"result": "images/a b#1?.png"})], size=(512, 320))
    path = write_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == folder / PAGE_FILE
    assert page.links
    for link in page.links:
        assert (folder / unquote(link)).is_file(), link
    assert "http:" not in path.read_text() and "https:" not in path.read_text()
    assert path.read_text().count("url(") == path.read_text().count("url(#inferno)") == 1
    assert "@import" not in path.read_text()
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "results.jsonl", "status.json", "images", PAGE_FILE}


def test_images_carry_size_and_say_what_they_show(tmp_path: Path) -> None:
    images = [attributes for tag, attributes in read(run_folder(tmp_path, [record(0)])).tags if tag == "img"]
    assert all(image["alt"] and image["width"] == "64" for image in images)
    assert [image["alt"] for image in images][::2] == [
        "Original of test-00000-rock-crab, class fiddler crab: predicted as fiddler crab",
        "Counterfactual of test-00000-rock-crab, target rock crab: predicted as rock crab",
        "Editable region (white) of test-00000-rock-crab",
    ]


def test_many_images_of_a_prompt_stand_together_and_the_last_ones_are_folded(tmp_path: Path) -> None:
    many = {f"sample_{j:02}": f"images/a/sample_{j:02}.png" for j in range(1, 13)}
    page = read(run_folder(tmp_path, [record(0, images={"result": "images/a/result.png"} | many)]))
    assert page.count("img") == 13 and page.count("figure") == 1 and page.count("div", "samples") == 2
    assert set(many.values()) <= set(page.links) and "3 more images" in page.text


def test_a_map_lies_over_its_image_in_color_with_a_legend(tmp_path: Path) -> None:
    images = {key: f"images/a/{key}.png" for key in ("original", "result", "hirescam_before", "hirescam_after")}
    page = read(run_folder(tmp_path, [record(0, images=images)], task="neuron_cf"))
    stacks = [attributes["src"] for tag, attributes in page.tags if tag == "img"][2:]
    assert stacks == [images[key] for key in ("original", "hirescam_before", "result", "hirescam_after")]
    assert page.count("img", "map") == 2 == page.count("span", "stack") and "relative to the largest value" in page.text
    assert "relative to the largest value" not in read(run_folder(tmp_path / "plain", [record(0)])).text


@pytest.mark.parametrize(
    ("equal", "line", "shown"),
    [
        (("result", "original"), "No change: the result equals the original.", 2),
        (("result", "start"), "The result equals the initialization", 4),
        ((), "", 5),
    ],
)
def test_equal_images_are_told_and_not_shown_as_a_black_difference(
    tmp_path: Path, equal: tuple[str, ...], line: str, shown: int
) -> None:
    paths = record(0)["images"]
    digests = {path: "same" if key in equal else key for key, path in paths.items()}
    page = read(run_folder(tmp_path, [record(0, file_digests=digests)]))
    assert line in page.text and page.count("img") == shown
    assert ("Absolute difference" in page.text) == ("original" not in equal)


def test_missing_images_are_left_out(tmp_path: Path) -> None:
    bare = record(1)
    del bare["images"]
    folder = run_folder(tmp_path, [record(0), bare])
    (folder / "images/test-00000-rock-crab/mask.png").unlink()
    page = read(folder)
    assert page.count("img") == 4
    assert page.text.count("No images were saved") == 1


def test_images_outside_the_folder_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    images = {"result": "../../../secret.png", "start": str(tmp_path / "secret.png")}
    assert read(run_folder(tmp_path, [record(0, images=images)])).count("img") == 0


def test_names_are_escaped(tmp_path: Path) -> None:
    texts = {key: NASTY for key in ("name", "source", "target", "predicted_before", "predicted_after", "caption")}
    item = record(0, **texts, prompt=NASTY, warnings=[NASTY], confidence_after={NASTY: 0.9}, loss={NASTY: 1.0})
    folder = run_folder(tmp_path, [{**item, NASTY: NASTY}, record(1)])
    (folder / "config.yaml").write_text(f"command: {json.dumps(NASTY)}\n")
    failures = [{"name": NASTY, "error": NASTY}]
    (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": NASTY, "failures": failures}))
    page = read(folder)
    assert page.count("img") == 10
    assert page.count("script") == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(NASTY) >= 10


def test_values_of_a_task_that_is_not_known_are_shown(tmp_path: Path) -> None:
    item = {
        "name": "unit-12",
        "activation_score": 3.14159,
        "layer": "layer4",
        "oracle": {"agrees": True, "margins": [1, 2]},
        "rank": None,
        "loss": 0.5,
        "images": {"result": "images/result.png", "heat_map": "images/heat.png"},
    }
    page = read(run_folder(tmp_path, [item]))
    text = sentence(page).replace(" ", "")
    for shown in (
        "activation score 3.142",
        "layer layer4",
        "rank –",
        "Counterfactual",
        "Heat map",
    ):
        assert shown.replace(" ", "") in text, shown
    assert "agrees" in page.text and "Success rate" not in page.text
    assert page.count("svg", "chart") == 0


def test_no_label_is_a_flattened_key(tmp_path: Path) -> None:
    words = {"a crab": 1.5, "sand": 2.0}
    folder = run_folder(tmp_path, [record(0, word_means=words, activation_after=1.0)], task="neuron_vis")
    summary = {"results": 1, "rock crab": {"activation": 1.0}, "urn": {"activation": 0.5}}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = read(folder)
    assert ": " not in "".join(page.data_of("dt") + page.data_of("th")) and "_" not in "".join(page.data_of("dt"))
    assert {"Mean activation by words", "By name"} <= set(page.data_of("caption"))
    assert ["Name", "Activation"] == page.data_of("th")[:2]


def test_heads_of_tables_are_aligned_like_their_cells(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [], task="spurious_audit")
    (folder / "summary.json").write_text(json.dumps({"features": [{"unit": "f:1", "r": 0.25}]}))
    page = read(folder)
    cells = [attributes.get("class") for tag, attributes in page.tags if tag in ("th", "td")]
    assert cells == [None, "number", None, "number"]


def test_the_weighted_terms_of_a_loss_add_up(tmp_path: Path) -> None:
    text = sentence(read(run_folder(tmp_path, [record(0)])))
    for row in ("−log p(target) 0.1 1 0.1", "Pixel distance 0.05 250 12.5", "Total 12.6"):
        assert row.replace(" ", "") in text.replace(" ", ""), row
    unknown = record(0, loss={"other": 2.0, "total": 9.0})
    assert "Weighted" not in read(run_folder(tmp_path / "other", [unknown])).text


def test_a_soft_prompt_has_nearest_tokens(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [record(0)])
    assert "Nearest vocabulary tokens" not in read(folder).text
    (folder / "config.yaml").write_text("options: {parametrization: soft_prompt}\n")
    assert "Nearest vocabulary tokens" in read(folder).text


def test_failures_and_reason(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [record(0, warnings=["the mask was empty"])])
    status = {
        "state": "stopped",
        "failed": 1,
        "pending": 7,
        "reason": "SIGTERM",
        "failures": [{"name": "test-9", "error": "pixel_distance is not finite at step 4"}],
    }
    (folder / "status.json").write_text(json.dumps(status))
    text = read(folder).text
    for shown in ("stopped early: SIGTERM", "test-9", "not finite at step 4", "the mask was empty"):
        assert shown in text


def test_many_classes_fold_away(tmp_path: Path) -> None:
    after = {f"class {i}": 0.01 * i for i in range(9)}
    page = read(run_folder(tmp_path, [record(0, confidence_after=after, confidence_start={}, confidence_before={})]))
    assert "6 more" in page.text
    assert page.text.index("class 8") < page.text.index("class 7") < page.text.index("class 0")


def test_the_start_stands_between_the_original_and_the_result(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path, [record(0)]))
    assert page.text.index("98.0\u00a0%") < page.text.index("31.0\u00a0%"), "the source's"
    assert page.text.index("1.0\u00a0%") < page.text.index("12.3\u00a0%") < page.text.index("96.2\u00a0%")
    assert "predicted as urn" in page.text and "before the first step" not in page.text


@pytest.mark.parametrize(
    "changes", [{"max_steps": 0}, {"images": {"result": "images/test-00000-rock-crab/result.png"}}]
)
def test_without_steps_or_an_original_the_start_is_no_stage(tmp_path: Path, changes: dict[str, Any]) -> None:
    page = read(run_folder(tmp_path, [record(0, **changes)]))
    assert "12.3\u00a0%" not in page.text and "96.2\u00a0%" in page.text


def test_a_run_whose_starts_succeed_says_so(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path, [record(0, success_start=True), record(1)]))
    assert "1 of 2 succeeds before the first step, by prompt and noise alone." in sentence(page)
    assert page.text.count("optimization did not cause this change") == 1


def test_what_a_limit_leaves_out_is_pending(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [record(0)])
    (folder / "manifest.json").write_text(json.dumps({"problems": {"test-00000-rock-crab": {}}, "total": 20}))
    page = " ".join(read(folder).text.split())
    assert "1 of 20 problems finished" in page and "19 beyond the limit of the command" in page
    (folder / "manifest.json").write_text(json.dumps({"problems": {"test-00000-rock-crab": {}}, "total": 1}))
    page = " ".join(read(folder).text.split())
    assert "1 of 1 problems finished" in page and "beyond" not in page


def test_a_success_has_its_criterion_and_a_verdict_is_none(tmp_path: Path) -> None:
    audited = record(1, verdict="spurious")
    del audited["success"], audited["criterion"]
    page = read(run_folder(tmp_path, [record(0), audited]))
    assert page.text.count("predicted as rock crab (0.96); wanted: rock crab (0.96)") == 1
    assert page.count("span", "badge") == 2 and page.count("span", "yes") == 1 and "Success rate 100" in page.text
    assert "Success" not in read(run_folder(tmp_path / "other", [audited])).text


def test_a_page_from_an_empty_folder_is_written_again(tmp_path: Path) -> None:
    assert "No problem is finished yet" in read(tmp_path).text
    assert "No problem is finished yet" in read(tmp_path).text


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "absent")
    folder = run_folder(tmp_path, [record(0)])
    page = write_report(folder).read_text()
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'{"name": "tor\n\xff\n{"name": 3}\n{"name": "x", "images": ["result.png"]}\n42\n')
    capsys.readouterr()
    assert main([str(folder)]) == 0 and (folder / PAGE_FILE).read_text() == page, "other results never suffer"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    reasons = ("is not JSON", "is not JSON", "is no result (name: ", "is no result (images: ", "is not a JSON object")
    for i, (line, why) in enumerate(zip(lines, reasons, strict=True), start=2):
        assert line.startswith(f"{folder / 'results.jsonl'}, line {i}: {why}") and " and is left out; " in line


def test_an_image_that_is_none_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path, [record(0), record(1)])
    broken = folder / record(0)["images"]["result"]
    broken.write_bytes(b"")
    write_report(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{broken}: is no PNG image and is left out of the page; ")


@pytest.mark.parametrize("harm", [damage.junk, damage.empty, damage.folder])
@pytest.mark.parametrize("file", ["status.json", "summary.json"])
def test_what_is_said_of_all_results_has_to_be_whole(tmp_path: Path, file: str, harm: damage.Harm) -> None:
    folder = run_folder(tmp_path, [record(0)])
    (folder / file).touch()
    harm(folder / file)
    with pytest.raises(UserError, match=f"{file}: is .*; the run's own command writes it again"):
        write_report(folder)
    assert main([]) == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path, [record(0)])
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / PAGE_FILE)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 0, 0, 1)],
)
def test_wilson_known_values(successes: int, total: int, low: float, high: float) -> None:
    assert SuccessRate(successes, total).interval == pytest.approx((low, high), abs=1e-4)


def test_rate() -> None:
    assert SuccessRate(3, 4).value == 0.75
    assert SuccessRate(0, 0).value == 0.0


def test_chart_lies_within_its_frame() -> None:
    drawn = make_chart("Loss", [(0, 4.0), (1, 2.0), (2, 1.0)], (0.0, 4.0), best=2)
    assert drawn.points == "42.0,30.0 186.0,82.0 330.0,108.0"
    assert drawn.best_point == (330.0, 108.0)
    assert [tick.text for tick in drawn.x] == ["0", "1", "2"]
    assert [tick.text for tick in drawn.y] == ["0", "1", "2", "3", "4"]
    assert (drawn.y[0].position, drawn.y[-1].position) == (Chart.BOTTOM, Chart.TOP)
    assert make_chart("Loss", [(0, 4.0), (1, 2.0)], (0.0, 4.0), best=None).best_point is None


def test_values_that_are_not_finite_leave_the_curve(tmp_path: Path) -> None:
    history = [{"step": k, "total": math.nan if k == 1 else 1.0} for k in range(4)]
    folder = run_folder(tmp_path, [record(0, history=history), record(1, history=history[:2])])
    page = read(folder)
    assert page.count("svg", "chart") == 1
    assert "nan" not in (folder / PAGE_FILE).read_text().lower()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.02, 3.61), (-5e-4, 7e-4), (0, 1000), (2, 2.0001), (0, 20)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert 2 <= len(marks) <= 5
    assert low - 1e-9 <= marks[0] and marks[-1] <= high + 1e-9
    assert ticks(1, 1) == [1]
