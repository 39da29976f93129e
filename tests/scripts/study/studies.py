"""Written run folders that studies are made of, and pages read as a browser would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from classifier_lens.scripts.study.pages import MakeOptions, Study, make_pages

Colour = tuple[int, int, int]
SIDE = 8


def write_run(folder: Path, config: str, answers: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Path:
    """A run folder. answers: records, each with its pictures: a colour, or an array of grey values."""
    lines = []
    for record, pictures in answers:
        images = {kind: f"images/{record['name']}/{kind}.png" for kind in pictures}
        for kind, shown in pictures.items():
            (folder / images[kind]).parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (SIDE, SIDE), shown) if isinstance(shown, tuple) else Image.fromarray(shown)
            picture.save(folder / images[kind])
        lines.append(json.dumps({**record, "images": images}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(lines))
    (folder / "config.yaml").write_text(config)
    return folder


def class_folder(root: Path, n: int) -> Path:
    """A data set of `n` pictures of a viaduct, 16 x 20 px and cyan."""
    for i in range(n):
        (root / "viaduct").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 20), (0, 250, 250)).save(root / "viaduct" / f"{i}.png")
    return root


COLOURS: dict[str, Colour] = {"A": (250, 10, 10), "B": (10, 10, 250)}


def counterfactuals(root: Path, method: str, problems: int = 3, trained: bool = True, **changes: Any) -> Path:
    """A run of `problems` questions whose answers are of the method's colour; the last one's confidence is low."""
    answers = []
    for i in range(problems):
        sure = 0.95 if i < problems - 1 or method == "A" else 0.5
        record = {
            "name": f"test-{i}-viaduct", "source": "rock crab", "target": "viaduct",
            "confidence_after": {"viaduct": sure}, **changes,
        }  # fmt: skip
        answers.append((record, {"original": (9 * i, 200, 0), "result": COLOURS[method]}))
    loader = "classifier_lens.data.image_folder.ImageFolder"
    training = f"{{_target_: {loader}, path: {class_folder(root / 'training', 9)}, seed: 0}}"
    config = "options: {task: uvce, classifier: a, parametrization: embeddings}\n" + (
        f"training: {training}\n" if trained else ""
    )
    return write_run(root / "uvce" / "planted_ddim-planted_clean" / f"secret{method}", config, answers)


AUDIT = """\
task: {objectives: [both, unit]}
options: {task: spurious_audit, classifier: a, parametrization: soft_prompt}
"""
GROUPS = {"viaduct": "biased", "rock crab": "unbiased", "partridge": "medium"}
REAL: Colour = (200, 100, 0)


def audit(
    root: Path, method: str = "A", features: int = 2, samples: int = 2, groups: Mapping[str, str] | None = GROUPS,
    network: str = "planted_clean", without: str = "", **changes: Any,
) -> Path:  # fmt: skip
    """An audit of three classes; each feature's map is dark on the left half and bright on the right. Answers are of
    the method's colour; the second objective's are black."""
    cam = np.zeros((SIDE, SIDE), np.uint8)
    cam[:, SIDE // 2 :] = 255
    answers = []
    for label in GROUPS:
        for rank in range(features, 0, -1):
            for objective in ("both", "unit"):
                colour = COLOURS[method] if objective == "both" else (0, 0, 0)
                pictures: dict[str, Any] = {"result": colour, **{f"sample_{i:02}": colour for i in range(1, samples)}}
                pictures |= {"training_image": REAL, "hirescam_training": cam}
                record = {
                    "name": f"{label.replace(' ', '-')}-{rank}-{objective}", "target": label, "unit": f"u{rank}",
                    "rank": rank, "objective": objective, "annotation": None, **changes,
                    **({} if groups is None else {"group": groups[label]}),
                }  # fmt: skip
                answers.append((record, {kind: shown for kind, shown in pictures.items() if kind != without}))
    return write_run(root / "spurious_audit" / f"planted_lcm-{network}" / f"secret{method}", AUDIT, answers)


def portraits(root: Path, labels: Sequence[str] = (*GROUPS, "lifeboat"), samples: int = 3) -> Path:
    """Two restarts of every class, the second of which has the lower loss and yellow pictures."""
    answers = []
    for label in labels:
        for k, colour in enumerate([(0, 0, 0), (250, 250, 0)]):
            record = {
                "name": f"{label.replace(' ', '-')}-{k}", "target": label, "prompt": "", "activation_score": 1.0,
                "baseline_prompts": {key: {"activation_score": 0.5} for key in ("class_name", "caption")},
                "loss": {"total": 1.0 - k},
            }  # fmt: skip
            answers.append((record, {"result": colour, **{f"sample_{i:02}": colour for i in range(1, samples)}}))
    config = "options: {task: diffexplainer_class, classifier: a, parametrization: soft_prompt}\n"
    return write_run(root / "diffexplainer_class" / "planted_lcm-planted_clean" / "secretC", config, answers)


def make_study(
    build_study: Callable[..., Study], runs: Sequence[Path], options: MakeOptions
) -> tuple[list[Path], dict[str, Any]]:
    """The pages of a study of runs, and its key."""
    *made, key = make_pages(build_study, runs, options)
    return made, json.loads(key.read_text())


@dataclass
class Fieldset:
    """A question of a page. box: the position of its section; inputs: attributes of each."""

    box: int
    question: str
    picture: str | None
    several: bool
    legend: str = ""
    inputs: list[dict[str, str | None]] = field(default_factory=list)

    @property
    def values(self) -> list[Any]:
        return [json.loads(str(given["value"])) for given in self.inputs]


class Page(HTMLParser):
    """What a page holds: pictures as (name, alternative text), by section, and questions."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.boxes: list[list[tuple[str, str]]] = []
        self.questions: list[Fieldset] = []
        self.form: dict[str, str | None] = {}
        self.open: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.form = given
        elif tag == "section":
            self.boxes.append([])
        elif tag == "img":
            self.boxes[-1].append((Path(str(given["src"])).stem, str(given["alt"])))
        elif tag == "fieldset":
            picture, several = given.get("data-image"), "data-multiple" in given
            self.questions.append(Fieldset(len(self.boxes) - 1, str(given["data-question"]), picture, several))
        elif tag == "input":
            assert self.open[-1] == "label", "an input without a label"
            self.questions[-1].inputs.append(given)
        if tag not in ("img", "input", "meta"):
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "legend":
            self.questions[-1].legend += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    @property
    def pictures(self) -> list[str]:
        return [name for box in self.boxes for name, _ in box]

    def filled(self, choose: Callable[[Fieldset], Any]) -> dict[str, Any]:
        """What the browser saves; None leaves a question out."""
        answers: list[dict[str, Any]] = [{} for _ in self.boxes]
        for asked in self.questions:
            if (value := choose(asked)) is None:
                continue
            if asked.picture is None:
                answers[asked.box][asked.question] = value
            else:
                answers[asked.box].setdefault(asked.question, {})[asked.picture] = value
        return {"study": self.form["data-study"], "page": int(str(self.form["data-page"])), "responses": answers}


def save(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """A file of answers."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return file
