"""A user study of two runs' counterfactuals (DiG-IN, App. E, Table 1): pages that ask, and what the answers say.

    python scripts/user_study.py make <run folder A> <run folder B> out=outputs/study participants=30
    python scripts/user_study.py score answers-*.json key=outputs/study-key.json

`make` takes problems that both runs answered with enough confidence, and writes a folder of pages, one per participant
and each in an order of its own, that work from a disk. Nothing in it tells the runs apart: that stands in
`<out>-key.json` beside it, which is not to be handed out. A page saves its answers as a file in the browser. `score`
counts such files; the answers of all participants are pooled, as in Table 1.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.folder import ImageFolder, square  # noqa: E402
from runner.figures import read_arguments  # noqa: E402
from runner.finished import Record, Run, read_run  # noqa: E402
from runner.record import read_png, write, write_png  # noqa: E402
from runner.report import SMALL, TEMPLATES, Rate, parse_json  # noqa: E402
from runner.types import Dataset, UserError, article  # noqa: E402

METHODS = ("A", "B")
REFERENCES = 4  # pictures of the target class beside each question
# Asked of each of the two pictures; `{target}` is the wanted class with its article.
QUESTIONS = {
    "realistic": "Could this picture be real?",
    "features": "Does it show what is typical of {target}?",
    "object": "Was mainly the object changed, and little else?",
}
BETTER, EQUAL = "better", "equal"  # the question about both, and the answer that neither is


@dataclass
class Make:
    """out: folder of the pages; references: a folder <class>/<picture> of pictures that show the classes, None for the
    run's own training pictures; participants: pages; most: problems; least: confidence in the target that both runs
    must have reached; seed: of every choice."""

    out: str = "outputs/study"
    references: str | None = None
    participants: int = 1
    most: int = 30
    least: float = 0.8
    seed: int = 0


@dataclass
class Score:
    """key: that `make` wrote; out: the table, None for `scores.csv` beside the first answers."""

    key: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class Pair:
    """A problem that both runs answered, its pictures' side in pixels and their neutral names: of the original,
    the references and the answers by method."""

    name: str
    source: str
    target: str
    side: int
    original: str
    references: tuple[str, ...]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Count:
    """How often a question was answered with yes for a method, or the method, or neither, was called the better."""

    question: str
    method: str
    rate: Rate


# --- making --------------------------------------------------------------------------------------------------


def make(first: Path, second: Path, chosen: Make) -> list[Path]:
    """Write the pages of a study, the pictures they show and the key; returns the pages and, last, the key."""
    if chosen.participants < 1 or chosen.most < 1:
        raise UserError(f"participants={chosen.participants} most={chosen.most}: allowed are 1 and above")
    out = Path(chosen.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty; give a new folder, or the key would no longer fit")
    runs = [read_run(first), read_run(second)]
    random = Random(f"{chosen.seed} problems")
    asked = common(runs, chosen.least)
    asked = random.sample(asked, min(chosen.most, len(asked)))
    pairs = _copy(runs, asked, reference_data(chosen.references, runs[0], chosen.seed), out / "pictures", random)
    methods = {method: str(run.folder) for method, run in zip(METHODS, runs, strict=True)}
    study = hashlib.sha256(json.dumps([methods, [pair.name for pair in pairs], chosen.seed]).encode()).hexdigest()[:10]
    key = {
        "study": study, "seed": chosen.seed, "methods": methods,
        "pictures": {
            name: {"problem": pair.name, "method": method} for pair in pairs for method, name in pair.answers.items()
        },
    }  # fmt: skip
    pages = [out / f"study-{page + 1}.html" for page in range(chosen.participants)]
    for i, page in enumerate(pages, start=1):
        write(page, render(study, i, pairs, Random(f"{chosen.seed} page {i}")))
    key_file = out.with_name(f"{out.name}-key.json")
    write(key_file, json.dumps(key, indent=1))
    return [*pages, key_file]


def common(runs: Sequence[Run], least: float) -> list[tuple[Record, Record]]:
    """Both runs' answers to the problems that both answered with at least this confidence in the target, by name.

    Raises UserError if a run is of another task, the runs began with other pictures, or none is left.
    """
    for run in runs:
        if run.task != "uvce":
            raise UserError(f"{run.folder}: task={run.task}; a study compares runs of task=uvce")
    first, second = ({r["name"]: r for r in run.records} for run in runs)
    found = []
    for name in sorted(first.keys() & second.keys()):
        both = first[name], second[name]
        if len({(r["source"], r["target"]) for r in both}) > 1 or len(set(_originals(runs, both))) > 1:
            raise UserError(f"{name}: the runs do not answer the same question; give runs of the same pictures")
        if min(r["confidence_after"][r["target"]] for r in both) >= least:
            found.append(both)
    if not found:
        raise UserError(f"least={least}: no problem that both runs answered so; {runs[0].folder}, {runs[1].folder}")
    return found


def _originals(runs: Sequence[Run], both: Sequence[Record]) -> list[bytes]:
    return [run.picture(r, "original").read_bytes() for run, r in zip(runs, both, strict=True)]


def reference_data(references: str | None, run: Run, seed: int) -> Dataset:
    """Where the pictures come from that show the classes: a folder, or what the run calls its training pictures."""
    if references is not None:
        if not Path(references).is_dir():
            raise UserError(f"references={references}: no such folder; wanted is a folder of <class>/<picture>")
        return ImageFolder(references, seed)
    if "training" not in run.config:
        raise UserError(f"{run.folder}: names no training pictures; give references=<folder of <class>/<picture>>")
    try:
        dataset: Dataset = instantiate(run.config["training"])
    except InstantiationException as error:  # data that is not here, or a folder that an older version wrote
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{run.folder}: its training pictures cannot be read ({reason}); give references=") from error
    return dataset


def _copy(
    runs: Sequence[Run], asked: Sequence[tuple[Record, Record]], shown: Dataset, folder: Path, random: Random
) -> list[Pair]:
    """Copy the pictures under neutral names; neither the names nor the order of the copies tell the runs apart."""
    rows = {target: _rows(shown, target) for target in dict.fromkeys(first["target"] for first, _ in asked)}
    sources, pairs = {}, []
    name = lambda: f"{random.getrandbits(48):012x}"  # noqa: E731
    for both in asked:
        first, target = both[0], both[0]["target"]
        original = read_png(runs[0].picture(first, "original"))
        pair = Pair(
            name=first["name"], source=first["source"], target=target, side=original.shape[-1], original=name(),
            references=tuple(name() for _ in range(REFERENCES)), answers={method: name() for method in METHODS},
        )  # fmt: skip
        write_png(folder / f"{pair.original}.png", original)
        for reference, row in zip(pair.references, random.sample(rows[target], REFERENCES), strict=True):
            write_png(folder / f"{reference}.png", square(shown[row].image, pair.side))
        for method, run, r in zip(METHODS, runs, both, strict=True):
            sources[pair.answers[method]] = run.picture(r, "best")
        pairs.append(pair)
    for neutral in sorted(sources):
        write_png(folder / f"{neutral}.png", read_png(sources[neutral]))
    return pairs


def _rows(shown: Dataset, target: str) -> list[int]:
    """Where the pictures of a class are. Raises UserError if they are too few."""
    rows = shown.rows(target)
    if len(rows) < REFERENCES:
        raise UserError(f"references: {len(rows)} pictures of '{target}'; at least {REFERENCES} are needed")
    return rows


def render(study: str, page: int, pairs: Sequence[Pair], random: Random) -> str:
    """A participant's page: problems, and the two pictures of each, in the order that `random` draws.

    The draw does not look at the pictures: of as many problems a seed makes the same order.
    """
    problems = []
    for pair in random.sample(list(pairs), len(pairs)):
        sides = random.sample(METHODS, len(METHODS))
        target = f"{article(pair.target)} {pair.target}"
        problems.append({
            "source": pair.source, "target": pair.target, "original": pair.original, "references": pair.references,
            "pictures": [pair.answers[method] for method in sides], "small": pair.side <= SMALL,
            "questions": {key: text.format(target=target) for key, text in QUESTIONS.items()},
        })  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("study.html.j2")
    return template.render(study=study, page=page, problems=problems, better=BETTER, equal=EQUAL)


# --- scoring -------------------------------------------------------------------------------------------------


def score(files: Sequence[Path], key: Mapping[str, Any]) -> list[Count]:
    """Count the answers of all files; questions that a participant left out do not count.

    Raises UserError for a file of another study, a picture that the key does not know, or a file given twice.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("an answer file is given twice")
    verdicts = [verdict for file in files for verdict in _verdicts(file, key)]
    asked = [(q, method) for q in QUESTIONS for method in METHODS] + [(BETTER, who) for who in (*METHODS, EQUAL)]
    counts = []
    for question, method in asked:
        given = [yes for q, who, yes in verdicts if (q, who) == (question, method)]
        counts.append(Count(question, method, Rate(sum(given), len(given))))
    return counts


def _verdicts(file: Path, key: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(question, method, yes) for each answer in a file; which is the better is a yes or a no for each method and for
    neither."""
    answers = read_object(file)
    if answers.get("study") != key["study"]:
        raise UserError(f"{file}: answers the study {answers.get('study')}, the key is that of {key['study']}")
    method = {picture: known["method"] for picture, known in key["pictures"].items()}
    for answer in answers["answers"]:
        for question in QUESTIONS:
            for picture, yes in answer.get(question, {}).items():
                if picture not in method or not isinstance(yes, bool):
                    raise UserError(
                        f"{file}: {question}={{{picture}: {yes}}}; wanted is a picture of the key, true or false"
                    )
                yield question, method[picture], yes
        if (better := answer.get(BETTER)) is not None:
            if better not in {*method, EQUAL}:
                raise UserError(f"{file}: {BETTER}={better}; wanted is a picture of the key, or {EQUAL}")
            for who in (*METHODS, EQUAL):
                yield BETTER, who, method.get(better, EQUAL) == who


def read_object(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises UserError if there is none."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return parse_json(file.read_text(encoding="utf-8"), str(file))


def table(counts: Sequence[Count]) -> str:
    """Shares with their 95 % Wilson intervals, as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["question", "method", "yes", "answers", "share", "low", "high"])
    for c in counts:
        low, high = c.rate.interval
        share = f"{c.rate.value:.4f}" if c.rate.total else ""
        rows.writerow([c.question, c.method, c.rate.successes, c.rate.total, share, f"{low:.4f}", f"{high:.4f}"])
    return text.getvalue()


def lines(counts: Sequence[Count]) -> Iterator[str]:
    """The same for the console."""
    for c in counts:
        low, high = (100 * end for end in c.rate.interval)
        share = f"{100 * c.rate.value:5.1f} %" if c.rate.total else "      –"
        yield f"{c.question:<10} {c.method:<6} {share}  [{low:.1f}, {high:.1f}]  {c.rate.successes} of {c.rate.total}"


# --- the command line ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    commands = {"make": _main_make, "score": _main_score}
    try:
        if not arguments or arguments[0] not in commands:
            raise UserError("usage: user_study.py make <run folder A> <run folder B> out=… | score <answers> … key=…")
        commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _main_make(arguments: Sequence[str]) -> None:
    folders, chosen = read_arguments(arguments, Make())
    if len(folders) != 2:
        raise UserError(f"{len(folders)} run folders: wanted are 2")
    for file in make(Path(folders[0]), Path(folders[1]), chosen):
        print(file)


def _main_score(arguments: Sequence[str]) -> None:
    files, chosen = read_arguments(arguments, Score())
    if not files or chosen.key is None:
        raise UserError("score: wanted are files of answers and key=<key that `make` wrote>")
    key = read_object(Path(chosen.key))
    if missing := {"study", "methods", "pictures"} - key.keys():
        raise UserError(f"key={chosen.key}: is no key, {', '.join(sorted(missing))} is missing")
    counts = score([Path(file) for file in files], key)
    out = Path(chosen.out) if chosen.out else Path(files[0]).with_name("scores.csv")
    write(out, table(counts))
    for method, folder in key["methods"].items():
        print(f"{method}: {folder}")
    print(*lines(counts), f"table: {out}", sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
