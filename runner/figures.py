"""Figures like the paper's from the files of run folders: rows of pictures with captions, as PNG and PDF.

    python -m runner.figures <run folder> [<run folder> ...] [name=...] [out=outputs/figures] [most=12]

Several folders have to be of one task. Their blocks stand one after the other; counterfactuals of several runs stand
beside each other instead, for the problems that all of them answered. Needs matplotlib (the extra `figures`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.drawing import Block, Layout, Matrix, Panel, escaped, save
from runner.report import parse_json
from runner.types import UserError

Record = Mapping[str, Any]  # a line of results.jsonl
Options = TypeVar("Options")

WANTED = "give outputs/<task>/<generator>-<classifier>/<hash>"


@dataclass
class Chosen:
    """What the command line may say beside run folders. name: of the files, None for the task's and the run's;
    out: their folder; most: blocks that are shown at most, the first ones."""

    name: str | None = None
    out: str = "outputs/figures"
    most: int = 12


@dataclass(frozen=True)
class Run:
    """A run folder, read: `task` is the module of the task that made it."""

    folder: Path
    task: str
    config: Mapping[str, Any]
    records: Sequence[Record]

    def picture(self, record: Record, key: str) -> Path:
        """A record's picture. Raises UserError if it has none of this name or the file is gone."""
        path = (record.get("images") or {}).get(key)
        if path is None:
            raise UserError(f"{self.folder}: {record['name']} has no picture '{key}'; run the same command again")
        if not (self.folder / path).is_file():
            raise UserError(f"{self.folder / path}: the picture is missing; was the run folder moved without it?")
        return self.folder / str(path)

    def start(self, record: Record) -> Path:
        """What a problem began with: its original, or the picture that was drawn."""
        return self.picture(record, "original" if "original" in record["images"] else "start")


# --- reading -------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """A run folder's configuration and results. Raises UserError if they are not there or cannot be read."""
    for name in ("config.yaml", "results.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no run folder, {name} is missing; {WANTED}")
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = [parse_json(line, f"{folder / 'results.jsonl'}, line {i}") for i, line in enumerate(lines, start=1)]
    if not records:
        raise UserError(f"{folder}: holds no results yet; the same command continues the run")
    return Run(folder, config["task"]["_target_"].split(".")[-2], config, records)


def groups(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Records that agree in all of the keys, in the order of their appearance."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(found.values())


# --- layouts: one per task -----------------------------------------------------------------------------------

DISPUTES = {"over": "f up, g down", "under": "g up, f down"}
PUSHES = {"max": "maximised", "min": "minimised"}


def disagreement(runs: Sequence[Run]) -> Layout:
    """Per drawn picture the start and, per direction, the result (Fig. 3 and 4), with the real picture nearest to it
    where some were looked for (Fig. 5)."""
    return Layout([
        Block(own[0]["target"], [_dispute(run, own)])
        for run in runs for own in groups(run.records, "target", "picture")
    ])  # fmt: skip


def _dispute(run: Run, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    before = first["confidence_before"][first["target"]], first["rival_confidence_before"]
    panels = [Panel("start", run.picture(first, "start"), "$p_f$ {:.2f}\n$p_g$ {:.2f}".format(*before))]
    for r in own:
        after = r["confidence_after"][r["target"]], r["rival_confidence_after"]
        caption = f"$p_f$ {before[0]:.2f} → {after[0]:.2f}\n$p_g$ {before[1]:.2f} → {after[1]:.2f}"
        panels.append(Panel(DISPUTES[r["direction"]], run.picture(r, "best"), caption))
        if "near-1" in r["images"]:
            alike = f"{r['near_same']} of {r['near_found']} real ones alike"
            panels.append(Panel("nearest real one", run.picture(r, "near-1"), alike))
    return panels


BASELINES = {"none": "DiG-IN", "start_only": "start only"}


def uvce(runs: Sequence[Run]) -> Layout:
    """A run's counterfactuals with what led to them (Fig. 6 to 8 and 18); of several runs only the counterfactuals."""
    return _compared(runs) if len(runs) > 1 else Layout([_flip(runs[0], r) for r in runs[0].records])


def _flip(run: Run, r: Record) -> Block:
    panels = [
        Panel("original", run.picture(r, "original"), _source_and_target(r, "before")),
        Panel("start", run.picture(r, "start")),
        Panel("counterfactual", run.picture(r, "best"), _source_and_target(r, "after")),
        Panel("difference", run.picture(r, "difference")),
    ]
    if "mask" in r["images"]:
        panels.append(Panel("white may change", run.picture(r, "mask")))
    return Block(f"{r['source']} → {r['target']}", [panels])


def _compared(runs: Sequence[Run]) -> Layout:
    """Original and every run's answer to it."""
    answers = [{(r["name"], r["source"], r["target"]): r for r in run.records} for run in runs]
    blocks = []
    for question in (q for q in answers[0] if all(q in other for other in answers)):
        first = answers[0][question]
        panels = [Panel("original", runs[0].picture(first, "original"), _source_and_target(first, "before"))]
        for run, label, answer in zip(runs, _labels(runs), answers, strict=True):
            r = answer[question]
            panels.append(Panel(label, run.picture(r, "best"), _source_and_target(r, "after")))
        blocks.append(Block(f"{first['source']} → {first['target']}", [panels]))
    if not blocks:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: answered no question in common; give runs of one data set"
        )
    return Layout(blocks)


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells runs apart: classifier, baseline or, where neither does, their hash."""
    classifiers = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    baselines = [BASELINES.get(run.config["task"]["baseline"], run.config["task"]["baseline"]) for run in runs]
    own = (labels for labels in (classifiers, baselines) if len(set(labels)) == len(runs))
    return next(own, [run.folder.resolve().name for run in runs])


def neuron_vis(runs: Sequence[Run]) -> Layout:
    """Per unit the training picture that excites it most, the best word's and the results (Fig. 29 to 31), and how far
    the results excite their own unit and the others (Fig. 9)."""
    units = [(run, own) for run in runs for own in groups(run.records, "unit")]
    names = list(dict.fromkeys(own[0]["unit"] for _, own in units))
    rows = [[_mean_activation(own, name) for name in names] for _, own in units]
    title = "mean activation of every unit (column) in the results of each (row)"
    matrix = Matrix(title, [own[0]["unit"] for _, own in units], names, rows) if len(names) > 1 else None
    return Layout([Block(f"unit {own[0]['unit']}", [_unit(run, own)]) for run, own in units], matrix)


def _mean_activation(records: Sequence[Record], unit: str) -> float:
    """NaN where the unit is of another module, or of another run."""
    values = [r["activations"][unit] for r in records if unit in r["activations"]]
    return fmean(values) if values else math.nan


def _unit(run: Run, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    mean, highest = first["word_means"][first["word"]], first["word_max"]
    words = f"“{escaped(first['word'])}”\nmean {mean:.2f}\nany word ≤ {highest:.2f}"
    return [
        Panel("best training picture", run.picture(first, "training"), f"activation {first['training_max']:.2f}"),
        Panel("best word", run.picture(first, "worded"), words),
        *(Panel("result", run.picture(r, "best"), f"activation {r['activation_after']:.2f}") for r in own),
    ]


def neuron_cf(runs: Sequence[Run]) -> Layout:
    """Per picture and unit the original, what maximises and minimises the unit and the feature attack (Fig. 10), below
    them where the unit looks, with the share of it outside the object, and the mask (Fig. 34)."""
    return Layout([
        Block(f"{own[0]['source']}, unit {own[0]['unit']}", [line for line in _push(run, own) if line])
        for run in runs for own in groups(run.records, "picture", "unit")
    ])  # fmt: skip


def _push(run: Run, own: Sequence[Record]) -> tuple[list[Panel], list[Panel]]:
    first = own[0]
    attacked = (
        f"activation {first['activation_attack']:.2f}\n{escaped(first['source'])} {first['confidence_attack']:.2f}"
    )
    attack = Panel("feature attack", run.picture(first, "attack"), attacked)
    pictures = [*_steered(run, own, "activation", "activation"), attack]
    shown = [("before", first, run.start(first)), *(("after", r, run.picture(r, "best")) for r in own)]
    cams = [
        Panel(f"HiResCAM, {when}", picture, _outside(r, when), run.picture(r, f"cam-{when}"))
        for when, r, picture in shown if f"cam-{when}" in r["images"]
    ]  # fmt: skip
    return pictures, cams + (
        [Panel("white may change", run.picture(first, "mask"))] if "mask" in first["images"] else []
    )


def _outside(r: Record, when: str) -> str:
    share = r.get(f"cam_outside_{when}")
    return "" if share is None else f"outside {share:.2f}"


def npca_cf(runs: Sequence[Run]) -> Layout:
    """Per picture and component what it began with and what maximises and minimises the component (Fig. 11 and 35)."""
    return Layout([
        Block(f"{own[0]['source']}, component {own[0]['component']}", [_steered(run, own, "contribution", "α")])
        for run in runs for own in groups(run.records, "picture", "source", "component")
    ])  # fmt: skip


def _steered(run: Run, own: Sequence[Record], key: str, name: str) -> list[Panel]:
    """The start and each direction's result; captions: what was steered and the confidence of its class."""
    first = own[0]
    heading = "original" if "original" in first["images"] else "start"
    label = escaped(first["source"])

    def caption(r: Record, when: str) -> str:
        return f"{name} {r[f'{key}_{when}']:.2f}\n{label} {r[f'confidence_{when}'][r['source']]:.2f}"

    results = (Panel(PUSHES[r["direction"]], run.picture(r, "best"), caption(r, "after")) for r in own)
    return [Panel(heading, run.start(first), caption(first, "before")), *results]


def _source_and_target(r: Record, when: str) -> str:
    """Both classes' confidences, a line each."""
    return "\n".join(f"{escaped(name)} {r[f'confidence_{when}'][name]:.2f}" for name in (r["source"], r["target"]))


WORDS = 7  # maps of words on a line at most


def attention_maps(runs: Sequence[Run]) -> Layout:
    """Per picture its reconstruction, the map of the class's words and the mask, below them every word's map (Fig. 12),
    with the share of each map on the object."""
    return Layout([Block(r["caption"], _attention(run, r)) for run in runs for r in run.records])


def _attention(run: Run, r: Record) -> list[list[Panel]]:
    picture = run.picture(r, "original")
    first = [
        Panel("original", picture, f"object {r['area']:.2f}"),
        Panel("reconstruction", run.picture(r, "best"), f"{r['psnr']:.1f} dB"),
        Panel("class", picture, f"on object {r['within_class']:.2f}", run.picture(r, "class")),
        Panel("white is free", run.picture(r, "mask")),
    ]
    maps = [
        Panel(word, picture, f"on object {share:.2f}", run.picture(r, name))
        for word, (name, share) in zip(r["words"], r["within"].items(), strict=True)
    ]
    each = -(-len(maps) // -(-len(maps) // WORDS))  # lines of the same length
    return [first, *(maps[i : i + each] for i in range(0, len(maps), each))]


def input_gradients(runs: Sequence[Run]) -> Layout:
    """Per picture the mask and the target's gradient under each augmentation (Fig. 13), with the share of it on the
    object and the target's probability."""
    return Layout([
        Block(f"{r['source']} → {r['target']}", [_gradients(run, r)]) for run in runs for r in run.records
    ])  # fmt: skip


def _gradients(run: Run, r: Record) -> list[Panel]:
    panels = [
        Panel(name.replace("_", " "), run.picture(r, f"gradient-{name}"),
              f"on object {share:.2f}\np {r['probability'][name]:.2g}")
        for name, share in r["within"].items()
    ]  # fmt: skip
    original = Panel("original", run.picture(r, "original"), f"object {r['area']:.2f}")
    return [original, Panel("white is free", run.picture(r, "mask")), *panels]


LAYOUTS: dict[str, Callable[[Sequence[Run]], Layout]] = {
    "disagreement": disagreement, "uvce": uvce, "neuron_vis": neuron_vis, "neuron_cf": neuron_cf, "npca_cf": npca_cf,
    "attention_maps": attention_maps, "input_gradients": input_gradients,
}  # fmt: skip


def lay_out(runs: Sequence[Run]) -> Layout:
    """The figure of runs of one task. Raises UserError for several tasks and one that no figure is made for."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) != 1:
        raise UserError(f"the run folders are of several tasks ({', '.join(tasks)}); give those of one")
    if tasks[0] not in LAYOUTS:
        raise UserError(f"{runs[0].folder}: task={tasks[0]} has no figure; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[tasks[0]](runs)


# --- files ---------------------------------------------------------------------------------------------------


def compose(folders: Sequence[Path], chosen: Chosen) -> list[Path]:
    """The figure of one or several run folders as files, PNG first."""
    if chosen.most < 1:
        raise UserError(f"most={chosen.most}: allowed are 1 and above")
    runs = [read_run(folder) for folder in folders]
    layout = lay_out(runs)
    name = chosen.name or "-".join([runs[0].task, *(run.folder.resolve().name for run in runs)])
    if Path(name).name != name:
        raise UserError(f"name={name}: is no file name; out= gives the folder")
    sources = ", ".join("/".join(run.folder.resolve().parts[-3:]) for run in runs)
    return save(replace(layout, blocks=layout.blocks[: chosen.most]), Path(chosen.out) / name, sources)


# --- the command line ----------------------------------------------------------------------------------------


def read_arguments(arguments: Sequence[str], defaults: Options) -> tuple[list[str], Options]:
    """The paths among the arguments, and a dataclass of options with what `key=value` says of it.

    Raises UserError for an unknown key and a value that is not allowed.
    """
    schema = OmegaConf.structured(defaults)
    paths = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not (separator and key.isidentifier()):
            paths.append(argument)
            continue
        if key not in schema:
            raise UserError(f"{argument}: allowed are paths and {', '.join(f'{k}=' for k in schema)}")
        try:
            schema[key] = value
        except OmegaConfBaseException as error:
            raise UserError(f"{argument}: {str(error).splitlines()[0]}") from error
    chosen: Any = OmegaConf.to_object(schema)
    return paths, chosen


def main(arguments: Sequence[str]) -> int:
    """Compose the figure of the run folders named on the command line and print its files."""
    try:
        folders, chosen = read_arguments(arguments, Chosen())
        if not folders:
            raise UserError("usage: python -m runner.figures <run folder> [<run folder> ...] [name=] [out=] [most=]")
        for file in compose([Path(folder) for folder in folders], chosen):
            print(file)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
