"""Figures: the rows of images and numbers of every task, from the files of run folders alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier_lens.runner.report.figures.drawing import (
    HEADING_HEIGHT,
    IMAGE_SIDE,
    Block,
    Layout,
    Matrix,
    Panel,
    draw,
    wrap_rows,
)
from classifier_lens.runner.report.figures.figure import FigureOptions, main, make_layout, write_figure
from classifier_lens.runner.results.reader import read_run
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.neuron_cf import ATTACKED

COLORS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "white", *["gray"] * 9)


def run_folder(
    root: Path, task: str, records: Sequence[dict[str, Any]], names: Sequence[str], classifier: str = "planted_clean",
    baseline: str = "none", asked: Mapping[str, Any] = {}, parametrization: str = "soft_prompt",
    summary: Mapping[str, Any] = {},
) -> Path:  # fmt: skip
    """A run folder whose records have the named images, each 8 px of one color, by its position in `names`; asked:
    of its task's configuration."""
    folder = root / task / f"planted_ddim-{classifier}" / f"{baseline}0"
    lines = []
    for record in records:
        images = {name: f"images/{record['name']}/{name}.png" for name in names}
        for path, color in zip(images.values(), COLORS, strict=False):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), color).save(folder / path)
        lines.append(json.dumps({**record, "images": images}) + "\n")
    (folder / "results.jsonl").write_text("".join(lines))
    config = {
        "task": {"baseline": baseline, **asked},
        "options": {
            "task": task,
            "generator": "planted_ddim",
            "classifier": classifier,
            "parametrization": parametrization,
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def dispute(k: int, direction: str) -> dict[str, Any]:
    return {
        "name": f"viaduct-{k}-{direction}", "image_name": f"viaduct-{k}", "target": "viaduct", "direction": direction,
        "confidence_before": {"viaduct": 0.51}, "confidence_after": {"viaduct": 0.99 if direction == "over" else 0.04},
        "second_confidence_before": 0.62, "second_confidence_after": 0.13 if direction == "over" else 0.97,
        "image_neighbors_disagreeing": 3, "image_neighbors": 5,
    }  # fmt: skip


def flip(name: str, source: str = "rock crab", target: str = "viaduct", after: float = 0.96) -> dict[str, Any]:
    return {
        "name": name, "image_name": name, "source": source, "target": target,
        "confidence_before": {source: 0.98, target: 0.01}, "confidence_start": {source: 0.6, target: 0.375},
        "confidence_after": {source: 0.03, target: after},
    }  # fmt: skip


def excitation(unit: str, k: int, **others: float) -> dict[str, Any]:
    return {
        "name": f"{unit}-{k}".replace(":", "-"), "image_name": unit, "unit": unit, "best_word": "a $5 crab",
        "word_means": {"a $5 crab": 1.25, "sand": 0.5}, "word_max": 2.75, "training_max": 3.5,
        "activation_after": 4.5 + k, "activations": {unit: 4.5 + k, **others},
    }  # fmt: skip


def push(direction: str, key: str, **changes: Any) -> dict[str, Any]:
    up = direction == "max"
    return {
        "name": f"test-0-{direction}", "image_name": "test-0", "source": "viaduct", "direction": direction,
        f"{key}_before": 1.25, f"{key}_after": 2.5 if up else -0.75, "confidence_before": {"viaduct": 0.5},
        "confidence_after": {"viaduct": 0.875 if up else 0.125}, **changes,
    }  # fmt: skip


def neuron_push(direction: str) -> dict[str, Any]:
    own = {
        "unit": "features:7",
        "activation_attack": 9.5,
        "confidence_attack": 0.25,
        "cam_share_outside_before": 0.25,
        "cam_share_outside_after": 0.75,
    }
    return push(direction, "activation", **own)


def attended(name: str, words: str) -> dict[str, Any]:
    names = [f"attention_{i:02d}_{word}" for i, word in enumerate(words.split())]
    return {
        "name": name, "caption": words, "words": words.split(), "psnr": 27.25, "object_area": 0.125,
        "share_on_object_class": 0.75,
        "share_on_object": {word: i / 10 for i, word in enumerate(names)},
    }  # fmt: skip


ATTENDED = attended("test-0", "a photograph of a red crab in deep water")
GRADIENTS = {
    "name": "test-0", "source": "rock crab", "target": "viaduct", "object_area": 0.125,
    "share_on_object": {"none": 0.25, "much_noise": 0.5}, "probability": {"none": 0.00012, "much_noise": 0.75},
}  # fmt: skip


def portrait(target: str, k: int, score: float = 0.5, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    rivals = {"class_name": {"activation_score": 0.25}, "caption": {"activation_score": 1.0}}
    return {
        "name": f"{target}-{k}".replace(" ", "-"), "target": target, "activation_score": score,
        "baseline_prompts": rivals,
        "prompt": f"a picture of {target} $5", "loss": {"total": loss}, **changes,
    }  # fmt: skip


def audited(target: str, unit: int, label: str | None, objective: str = "both") -> dict[str, Any]:
    return {
        "name": f"{target}-{unit}-{objective}", "target": target, "unit": f"features:{unit}", "objective": objective,
        "verdict": "core" if unit < 5 else "undecided", "r": 0.25, "r_interval": [0.125, 0.5], "annotation": label,
    }  # fmt: skip


AGREED = [
    {"group": "all", "features": 3, "accuracy": 0.75, "balanced_accuracy": 0.625, "kappa": -0.25, "auc": 0.5},
    {"group": "animate, biased", "features": 1, "accuracy": 1.0, "balanced_accuracy": None, "kappa": None, "auc": None},
]
AUDIT: dict[str, Any] = {"asked": {"objectives": ["both", "unit"]}, "summary": {"agreement": AGREED}}
PORTRAIT: dict[str, Any] = {"asked": {"prompt": "a picture of *4"}}
SAMPLES = [f"sample_0{i}" for i in range(1, 6)]


FOLDERS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "disagreement": ([dispute(0, "over"), dispute(0, "under"), dispute(1, "over")],
                     ["start", "result", "image_neighbor_01"]),
    "uvce": ([flip("test-0"), flip("test-1", "viaduct", "rock crab")],
             ["original", "start", "result", "difference", "mask"]),
    "neuron_vis": ([excitation("features:7", 0, **{"features:9": -0.5}),
                    excitation("features:7", 1, **{"features:9": 0.0}),
                    excitation("features:9", 0, **{"features:7": 1.5})],
                   ["start", "result", "training_image", "best_word_image"]),
    "neuron_cf": ([neuron_push("max"), neuron_push("min")],
                  ["original", "start", "result", "mask", "feature_attack", "hirescam_before", "hirescam_after"]),
    "npca_cf": ([push("max", "contribution", component=1), push("min", "contribution", component=1)],
                ["start", "result"]),
    "attention_maps": ([ATTENDED],
                       ["original", "result", "mask", "attention_class_name", *ATTENDED["share_on_object"]]),
    "input_gradients": ([GRADIENTS], ["original", "mask", "gradient_none", "gradient_much_noise"]),
    "diffexplainer_class": ([portrait("viaduct", 0), portrait("rock crab", 0)], ["start", "result", *SAMPLES]),
    "spurious_audit": ([audited("viaduct", 3, "core"), audited("viaduct", 3, "core", "unit"),
                        audited("viaduct", 7, "spurious"), audited("rock crab", 7, None)],
                       ["start", "result", "training_image", "hirescam_training", "class_region"]),
}  # fmt: skip
SETTINGS = {"diffexplainer_class": PORTRAIT, "spurious_audit": AUDIT}


def folder_of(root: Path, task: str) -> Path:
    return run_folder(root, task, *FOLDERS[task], **SETTINGS.get(task, {}))


def layout_of(*folders: Path) -> Layout:
    return make_layout([read_run(folder) for folder in folders])


def captions(layout: Layout) -> list[list[list[str]]]:
    """Blocks, lines, captions."""
    return [[[panel.caption for panel in line] for line in block.rows] for block in layout.blocks]


def names(layout: Layout) -> list[list[list[str]]]:
    """The same of the images' file names."""
    return [[[panel.image.stem for panel in line] for line in block.rows] for block in layout.blocks]


# --- layouts -------------------------------------------------------------------------------------------------


def test_disagreement_shows_both_confidences_before_and_after_in_each_direction(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "disagreement"))
    assert [block.title for block in layout.blocks] == ["viaduct", "viaduct"]
    assert names(layout) == [
        [["start", "result", "image_neighbor_01", "result", "image_neighbor_01"]],
        [["start", "result", "image_neighbor_01"]],
    ]
    assert captions(layout)[0] == [[
        "$p_f$ 0.51\n$p_g$ 0.62",
        "$p_f$ 0.51 → 0.99\n$p_g$ 0.62 → 0.13", "3 of 5 nearest agree",
        "$p_f$ 0.51 → 0.04\n$p_g$ 0.62 → 0.97", "3 of 5 nearest agree",
    ]]  # fmt: skip
    assert [panel.heading for panel in layout.blocks[0].rows[0]][1::2] == ["2: f up, g down", "3: g up, f down"]


def test_uvce_shows_source_and_target_before_and_after(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "uvce"))
    assert [block.title for block in layout.blocks] == ["rock crab → viaduct", "viaduct → rock crab"]
    assert names(layout)[0] == [["original", "start", "result", "difference", "mask"]]
    shown = ["rock crab 0.98\nviaduct 0.01", "rock crab 0.60\nviaduct 0.38", "rock crab 0.03\nviaduct 0.96", "",
             "white: editable"]  # fmt: skip
    assert captions(layout)[0] == [shown]


def test_an_image_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "uvce")
    image = next(folder.rglob("result.png"))
    for content in (b"", image.read_bytes()[:30], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"):
        image.write_bytes(content)
        with pytest.raises(UserError, match=r"result\.png: cannot be read"):
            draw(layout_of(folder), 8)


def test_uvce_without_a_mask_leaves_it_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "uvce", [flip("a")], ["original", "start", "result", "difference"])
    assert names(layout_of(folder)) == [[["original", "start", "result", "difference"]]]


def test_counterfactuals_of_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    first = run_folder(tmp_path, "uvce", [flip("a"), flip("b")], ["original", "result"])
    second = run_folder(tmp_path, "uvce", [flip("b", after=0.42), flip("c")], ["original", "result"], baseline="pixels")
    layout = layout_of(first, second)
    (line,) = layout.blocks[0].rows
    assert len(layout.blocks) == 1 and [panel.heading for panel in line] == ["original", "DiG-IN", "pixels"]
    assert [panel.image.relative_to(tmp_path).parts[2] for panel in line] == ["none0", "none0", "pixels0"]
    assert line[1].caption.endswith("0.96") and line[2].caption.endswith("0.42")
    other = run_folder(tmp_path, "uvce", [flip("b")], ["original", "result"], classifier="planted_shortcut")
    headings = [panel.heading for panel in layout_of(first, other).blocks[0].rows[0]]
    assert headings == ["original", "planted_clean", "planted_shortcut"]
    with pytest.raises(UserError, match="no problem was solved by all runs"):
        layout_of(first, run_folder(tmp_path / "x", "uvce", [flip("a", target="partridge")], ["original", "result"]))


def test_neuron_vis_shows_what_results_have_to_beat_and_whom_they_excite(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "neuron_vis"))
    assert names(layout) == [
        [["training_image", "best_word_image", "result", "result"]],
        [["training_image", "best_word_image", "result"]],
    ]
    assert captions(layout)[0] == [[
        "activation 3.50", "“a \\$5 crab”\nmean 1.25\nany word ≤ 2.75", "activation 4.50", "activation 5.50",
    ]]  # fmt: skip
    assert layout.matrix is not None
    assert layout.matrix.rows == ["features:7", "features:9"]
    assert layout.matrix.columns == layout.matrix.rows
    assert layout.matrix.values == [[5.0, -0.25], [1.5, 4.5]]  # means over a unit's results


@pytest.mark.parametrize("values", [[[5.0, 5.0]], [[0.0, 100.0]], [[math.nan, 1.0]]])
def test_the_numbers_of_a_matrix_stand_out_from_their_ground(values: list[list[float]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    blocks = [Block("a", [[Panel("a", tmp_path / "a.png", "")]])]
    figure = draw(Layout(blocks, Matrix("m", ["r"], ["c", "d"], values)), 8)
    image, axes = next((axes.images[0], axes) for axes in figure.axes if axes.images and len(axes.texts))
    shown = {int(text.get_position()[0]): text for text in axes.texts}
    assert len(shown) == sum(not math.isnan(value) for value in values[0])
    for column, text in shown.items():
        ground = float(np.dot(image.to_rgba(np.array(values[0][column]))[:3], (0.3, 0.59, 0.11)))
        assert abs(ground - {"white": 1.0, "black": 0.0}[str(text.get_color())]) >= 0.5


def test_a_unit_alone_has_no_others_to_compare_with(tmp_path: Path) -> None:
    layout = layout_of(
        run_folder(tmp_path, "neuron_vis", [excitation("f:1", 0)], ["result", "training_image", "best_word_image"])
    )
    assert layout.matrix is None


def test_neuron_cf_shows_both_directions_the_attack_and_the_maps(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "neuron_cf"))
    assert names(layout) == [
        [["original", "result", "result", "feature_attack"], ["original", "result", "result", "mask"]]
    ]
    assert captions(layout) == [[
        ["activation 1.25\nviaduct 0.50", "activation 2.50\nviaduct 0.88", "activation -0.75\nviaduct 0.12",
         "activation 9.50\nviaduct 0.25"],
        ["outside object 0.25", "outside object 0.75", "outside object 0.75", "white: editable"],
    ]]  # fmt: skip
    heats = [
        panel.heatmap and f"{panel.heatmap.parent.name}/{panel.heatmap.stem}" for panel in layout.blocks[0].rows[1]
    ]
    assert heats == ["test-0-max/hirescam_before", "test-0-max/hirescam_after", "test-0-min/hirescam_after", None]


def test_neuron_cf_without_maps_has_one_line(tmp_path: Path) -> None:
    record = push("max", "activation", unit="f:1", activation_attack=2.0, confidence_attack=0.5)
    folder = run_folder(tmp_path, "neuron_cf", [record], ["original", "result", "feature_attack"])
    assert names(layout_of(folder)) == [[["original", "result", "feature_attack"]]]


def test_npca_cf_of_drawn_images_begins_with_the_start(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "npca_cf"))
    assert layout.blocks[0].title == "viaduct, component 1"
    assert names(layout) == [[["start", "result", "result"]]]
    assert captions(layout) == [[["α 1.25\nviaduct 0.50", "α 2.50\nviaduct 0.88", "α -0.75\nviaduct 0.12"]]]
    assert [panel.heading for panel in layout.blocks[0].rows[0]] == ["1: start", "2: maximized", "3: minimized"]


def test_attention_maps_shows_every_word_with_its_share(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "attention_maps"))
    (block,) = layout.blocks
    assert block.title == ATTENDED["caption"] and [len(line) for line in block.rows] == [4, 9]
    assert names(layout)[0][0] == ["original", "result", "original", "mask"]
    assert captions(layout)[0][0] == ["object 0.12", "27.2 dB", "on object 0.75", "white: editable"]
    first, *words = block.rows
    assert first[2].heatmap is not None and first[2].heatmap.stem == "attention_class_name"
    maps = [panel for line in words for panel in line]
    assert [panel.heading for panel in maps] == [f"5: {word}" for word in ATTENDED["words"]]
    assert [panel.heatmap and panel.heatmap.stem for panel in maps] == list(ATTENDED["share_on_object"])
    assert [panel.caption for panel in maps] == [f"on object 0.{i}0" for i in range(9)]
    assert {panel.image.stem for panel in maps} == {"original"}


def test_input_gradients_shows_every_augmentation_with_its_share(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "input_gradients"))
    assert layout.blocks[0].title == "rock crab → viaduct"
    assert names(layout) == [[["original", "mask", "gradient_none", "gradient_much_noise"]]]
    assert captions(layout) == [[["object 0.12", "", "on object 0.25\np 0.00012", "on object 0.50\np 0.75"]]]
    assert [panel.heading for panel in layout.blocks[0].rows[0]][2:] == ["3: none", "4: much noise"]


def test_portraits_show_images_of_the_best_restart_and_what_plain_prompts_reach(tmp_path: Path) -> None:
    records = [portrait("viaduct", 0, loss=2.0), portrait("viaduct", 1, 0.75), portrait("rock crab", 0, loss=3.0)]
    layout = layout_of(run_folder(tmp_path, "diffexplainer_class", records, ["result", "start", *SAMPLES], **PORTRAIT))
    assert [block.title for block in layout.blocks] == ["viaduct", "rock crab"]
    assert names(layout) == [[["result", "sample_01", "sample_02", "sample_03"]]] * 2
    assert [block.rows[0][0].image.parent.name for block in layout.blocks] == ["viaduct-1", "rock-crab-0"]
    assert captions(layout)[0] == [["score 0.75\nclass name 0.25\ncaption 1.00", "", "", ""]]


def test_a_hard_prompt_is_the_title_and_a_soft_ones_nearest_words_are_not(tmp_path: Path) -> None:
    titles = []
    for kind, baseline in (("hard_prompt", "none"), ("soft_prompt", "none"), ("hard_prompt", "pixels")):
        folder = run_folder(
            tmp_path / kind, "diffexplainer_class", [portrait("viaduct", 0)], ["result"], baseline=baseline,
            parametrization=kind, **PORTRAIT,
        )  # fmt: skip
        titles.append(layout_of(folder).blocks[0].title)
    assert titles == ["viaduct, “a picture of viaduct $5”", "viaduct", "viaduct"]


def test_portraits_of_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    """A column each, as many images of every one; a class that one run lacks stands without it."""
    records, images = [portrait("viaduct", 0), portrait("rock crab", 0)], ["result", *SAMPLES]
    own = run_folder(tmp_path, "diffexplainer_class", records, images, **PORTRAIT)
    other = run_folder(
        tmp_path, "diffexplainer_class", [portrait("viaduct", 0, 1.0)], ["result", "sample_01"],
        baseline="mahendran_vedaldi", **PORTRAIT,
    )  # fmt: skip
    layout = layout_of(own, other)
    assert names(layout) == [[["result", "result"], ["sample_01", "sample_01"]], [["result"], ["sample_01"]]]
    headings = [[panel.heading for panel in line] for line in layout.blocks[0].rows]
    assert headings == [["DiffExplainer", "mahendran vedaldi"], ["", ""]]
    assert [caption.split("\n")[0] for caption in captions(layout)[0][1]] == ["score 0.50", "score 1.00"]
    assert captions(layout)[0][0] == ["", ""]
    one = run_folder(
        tmp_path, "diffexplainer_class", [portrait("viaduct", 0)], ["result"], baseline="feature_attack", **PORTRAIT
    )
    assert names(layout_of(own, one))[0] == [["result", "result"]]


def test_portraits_are_told_apart_by_their_prompts(tmp_path: Path) -> None:
    prompts = ["a texture of *4", "the shape of *4"]
    folders = [
        run_folder(
            tmp_path / prompt, "diffexplainer_class", [portrait("viaduct", 0)], ["result"], asked={"prompt": prompt},
        )
        for prompt in prompts
    ]  # fmt: skip
    assert [panel.heading for panel in layout_of(*folders).blocks[0].rows[0]] == prompts


def test_an_audit_shows_images_maps_and_prompts_in_the_color_of_the_label(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, "spurious_audit"))
    assert [block.title for block in layout.blocks] == ["viaduct", "rock crab"]
    assert names(layout)[0] == [
        ["training_image", "training_image"],
        ["training_image", "training_image"],
        ["result", "result"],
    ]
    first, maps, prompted = layout.blocks[0].rows
    assert [panel.heading for panel in first] == ["1: feature 3", "1: feature 7"]
    assert [panel.heatmap and panel.heatmap.stem for panel in maps] == ["hirescam_training"] * 2
    assert [panel.caption for panel in prompted] == [
        "core\nr 0.25 (0.12 to 0.50)\nannotation: core", "undecided\nr 0.25 (0.12 to 0.50)\nannotation: spurious",
    ]  # fmt: skip
    for line in layout.blocks[0].rows:
        assert [panel.color for panel in line] == ["tab:green", "tab:red"]
    assert layout.blocks[1].rows[0][0].color is None
    assert captions(layout)[1][-1] == ["undecided\nr 0.25 (0.12 to 0.50)"]


def test_an_audit_says_how_far_it_agrees_with_people(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "spurious_audit")
    matrix = layout_of(folder).matrix
    assert matrix is not None and matrix.rows == ["all (3)", "animate, biased (1)"]
    assert matrix.columns == ["agree", "balanced", "Cohen's κ", "AUC of r"]
    assert matrix.values[0] == [75, 62.5, -25, 50]
    assert matrix.values[1][0] == 100 and all(math.isnan(value) for value in matrix.values[1][1:])
    other = run_folder(
        tmp_path, "spurious_audit", *FOLDERS["spurious_audit"], classifier="planted_background_shortcut", **AUDIT
    )  # fmt: skip
    both = layout_of(folder, other).matrix
    assert both is not None and both.rows[1:3] == [
        "planted_clean animate, biased (1)",
        "planted_background_shortcut all (3)",
    ]
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary.json: is missing"):
        layout_of(folder)


def test_an_audit_without_labels_or_maps_shows_what_it_has(tmp_path: Path) -> None:
    records = [audited("viaduct", 3, None)]
    folder = run_folder(tmp_path, "spurious_audit", records, ["result", "training_image"], asked=AUDIT["asked"])
    assert layout_of(folder).matrix is None and names(layout_of(folder)) == [[["training_image"], ["result"]]]


def test_a_colored_panel_has_heading_and_frame_of_its_color(tmp_path: Path) -> None:
    figure = draw(layout_of(folder_of(tmp_path, "spurious_audit")), 8)
    (heading,) = [text for text in figure.texts if text.get_text() == "1: feature 3"]
    assert heading.get_color() == "tab:green"
    frames = [{spine.get_edgecolor() for spine in ax.spines.values()} for ax in figure.axes]
    assert len(frames[0]) == 1 and frames[0] != frames[1] and frames[0] == frames[2]


def test_blocks_of_several_runs_follow_each_other(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / place, "npca_cf") for place in ("a", "b")]
    assert len(layout_of(*folders).blocks) == 2


# --- drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "axes"),
    [("disagreement", 8), ("uvce", 10), ("neuron_vis", 8), ("neuron_cf", 8), ("npca_cf", 3), ("attention_maps", 13),
     ("input_gradients", 4), ("diffexplainer_class", 8), ("spurious_audit", 10)],
)  # fmt: skip
def test_a_figure_has_axes_for_every_image_and_is_written_twice(tmp_path: Path, task: str, axes: int) -> None:
    folder = folder_of(tmp_path, task)
    layout = layout_of(folder)
    figure = draw(wrap_rows(layout, 8), 8)
    assert len(figure.axes) == axes
    places = [ax.get_position().bounds for ax in figure.axes]
    assert all(x >= 0 and y >= 0 and x + w <= 1 and y + h <= 1 for x, y, w, h in places)
    assert len({(round(x, 4), round(y, 4)) for x, y, _, _ in places}) == axes
    shown = {text.get_text() for text in figure.texts}
    assert shown >= {panel.caption for block in layout.blocks for line in block.rows for panel in line}
    png, pdf = write_figure([folder], FigureOptions(name="figure", out=str(tmp_path / "out")))
    assert (png, pdf) == (tmp_path / "out" / "figure.png", tmp_path / "out" / "figure.pdf")
    assert pdf.read_bytes()[:5] == b"%PDF-"
    with Image.open(png) as image:
        assert image.size == tuple(np.round(figure.get_size_inches() * 200).astype(int))


def test_images_are_drawn_where_their_axes_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "uvce")
    figure = draw(layout_of(folder), 8)
    png, _ = write_figure([folder], FigureOptions(name="figure", out=str(tmp_path)))
    with Image.open(png) as image:
        for ax, color in zip(figure.axes, ("red", "lime", "blue", "yellow", "cyan"), strict=False):
            x, y, w, h = ax.get_position().bounds
            middle = int((x + w / 2) * image.width), int((1 - y - h / 2) * image.height)
            assert image.getpixel(middle)[:3] == Image.new("RGB", (1, 1), color).getpixel((0, 0))  # type: ignore[index]


def test_long_captions_are_broken_and_make_room(tmp_path: Path) -> None:
    short, long = flip("a"), flip("b", "a very long name of a class that nobody can read", "viaduct")
    figures = [
        draw(
            layout_of(run_folder(tmp_path / r["source"], "uvce", [r], ["original", "start", "result", "difference"])), 8
        )
        for r in (short, long)
    ]
    assert figures[1].get_size_inches()[1] > figures[0].get_size_inches()[1] > IMAGE_SIDE
    assert max(len(line) for t in figures[1].texts[2:] for line in t.get_text().split("\n")) <= 24


def test_a_line_without_headings_leaves_no_room_for_them(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    heights = [
        draw(Layout([Block("title", [[Panel("a", tmp_path / "a.png")], [Panel(below, tmp_path / "a.png")]])]), 8)
        .get_size_inches()[1]
        for below in ("b", "")
    ]  # fmt: skip
    assert heights[0] - heights[1] == pytest.approx(HEADING_HEIGHT)


@pytest.mark.parametrize(("count", "lengths"), [(1, [1]), (7, [7]), (8, [4, 4]), (13, [7, 6]), (15, [5, 5, 5])])
def test_long_rows_become_rows_of_about_the_same_length(tmp_path: Path, count: int, lengths: list[int]) -> None:
    layout = Layout([Block("title", [[Panel("a", tmp_path / "a.png")] * count])])
    assert [len(row) for row in wrap_rows(layout, 7).blocks[0].rows] == lengths


def test_small_images_are_enlarged_smoothly(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    figure = draw(Layout([Block("", [[Panel("", tmp_path / "a.png")]])]), 8)
    figure.savefig(tmp_path / "b.png", dpi=200)
    x, y, w, h = figure.axes[0].get_position().bounds
    with Image.open(tmp_path / "b.png") as image:
        row = np.asarray(image.convert("L"))[int((1 - y - h / 2) * image.height)]
    shades = set(row[int((x + 0.1 * w) * len(row)) : int((x + 0.9 * w) * len(row))].tolist())
    assert len(shades) > 10  # an edge of hard pixels has two


def test_a_matrix_says_its_numbers() -> None:
    from matplotlib.figure import Figure

    from classifier_lens.runner.report.figures.drawing import _draw_matrix

    figure = Figure(figsize=(6, 4))
    _draw_matrix(figure, 0.1, Matrix("title", ["a", "b"], ["own", "others"], [[5.25, 0.5], [math.nan, -1.0]]))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["5.2", "0.5", "-1.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_the_first_blocks_are_shown_and_the_same_files_come_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "uvce")
    sizes = []
    for most in (1, 2):
        png, pdf = write_figure([folder], FigureOptions(name="figure", out=str(tmp_path / "out"), max_blocks=most))
        with Image.open(png) as image:
            sizes.append(image.size)
    assert sizes[0][1] < sizes[1][1]
    before = png.read_bytes(), pdf.read_bytes()
    write_figure([folder], FigureOptions(name="figure", out=str(tmp_path / "out")))
    assert (png.read_bytes(), pdf.read_bytes()) == before


# --- the command line and what it refuses --------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, "npca_cf")
    assert main([str(folder), f"out={tmp_path}/out"]) == 0
    expected = [str(tmp_path / "out" / f"npca_cf-none0.{kind}") for kind in ("png", "pdf")]
    assert capsys.readouterr().out.split() == expected
    assert all(Path(file).is_file() for file in expected)
    assert main([str(folder), f"out={tmp_path}/png", "pdf=false", "image_size=160", "max_columns=1"]) == 0
    (png,) = (tmp_path / "png").iterdir()
    with Image.open(png) as image:
        assert png.name == "npca_cf-none0.png" and "npca_cf/" in image.info["Title"] and image.width == 510


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage:"), (["{folder}", "color=red"], "color=red: unknown key; "),
        (["{folder}", "max_blocks=0"], "max_blocks=0: allowed are whole numbers from 1"),
        (["{folder}", "max_blocks=a"], "max_blocks=a: allowed are whole numbers"),
        (["{folder}", "image_size=64"], "image_size=64: allowed are whole numbers from 160"),
        (["{folder}", "name=../x"], "name=../x: is not a file name"),
        (["absent"], "absent: is no run folder, config.yaml"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = folder_of(tmp_path, "uvce")
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_what_a_folder_lacks_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, "uvce")
    image = folder / "images" / "test-1" / "mask.png"
    image.unlink()
    with pytest.raises(UserError, match=r"test-1/mask.png: the image is missing"):
        layout_of(folder)
    with pytest.raises(UserError, match="test-0 has no image 'feature_attack'"):
        read_run(folder).image_path(read_run(folder).records[0], ATTACKED)
    whole = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(whole + '{"name": "tor')
    assert [record["name"] for record in read_run(folder).records] == [
        json.loads(w)["name"] for w in whole.splitlines()
    ]
    assert "results.jsonl, line 3: is not JSON and is left out" in capsys.readouterr().err
    (folder / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no results yet"):
        read_run(folder)
    with pytest.raises(UserError, match="config.yaml is missing"):
        read_run(tmp_path)
    (folder / "config.yaml").write_text("task: {_target_: tasks.uvce.Uvce}\n")
    with pytest.raises(UserError, match=r"has no options\.task, as in runs of an earlier version; run its command"):
        read_run(folder)


def test_one_known_task_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several tasks \(uvce, npca_cf\)"):
        layout_of(folder_of(tmp_path, "uvce"), folder_of(tmp_path, "npca_cf"))
    with pytest.raises(UserError, match="task=new has no figure; allowed are disagreement, uvce"):
        layout_of(run_folder(tmp_path, "new", [flip("a")], ["result"]))
