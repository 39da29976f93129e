"""User studies of what runs show: pages that ask, and what the answers say.

    python scripts/user_study.py make <run folder A> <run folder B> out=outputs/study participants=30
    python scripts/user_study.py make <run folder A> <run folder B> out=outputs/study study=resemblance
    python scripts/user_study.py make <run of classes> <run of features> out=outputs/study study=content
    python scripts/user_study.py score answers-*.json key=outputs/study-key.json

`make` writes a folder of pages, one per participant and each in an order of its own, that work from a disk. Nothing in
it tells the runs apart: that stands in `<out>-key.json` beside it, which is not to be handed out. A page saves its
answers as a file in the browser. `score` reads such files. Kinds of study:

    preference   which of two runs' counterfactuals is better (two runs of task=uvce); the default
    resemblance  how well features' explanations resemble what the features look at (two runs of task=spurious_audit)
    content      what pictures of a class and of its features contain (task=diffexplainer_class, then spurious_audit)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.command_line import parse_paths_and_options
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study import content, preference, resemblance
from classifier_lens.scripts.study.pages import MakeOptions, Scores, Study, make_pages, read_key, summarize_counts


@dataclass
class ScoreOptions:
    """key: that `make` wrote; out: the table, None for `scores.csv` beside the first answers; study: its kind, None for
    what the key says."""

    key: str | None = None
    out: str | None = None
    study: str | None = None


@dataclass(frozen=True)
class StudyKind:
    """options: of `make`, with its defaults; build_study: what two runs are asked about; score: what files of answers
    say, by the key."""

    options: type[MakeOptions]
    build_study: Callable[[Sequence[RunResults], Any], Study]
    score: Callable[[Sequence[Path], Mapping[str, Any]], Scores]


STUDIES = {
    "preference": StudyKind(
        preference.PreferenceOptions, preference.ask,
        lambda files, key: summarize_counts(preference.score(files, key), "method"),
    ),
    "resemblance": StudyKind(
        resemblance.ResemblanceOptions, resemblance.ask,
        lambda files, key: resemblance.format_scores(resemblance.score_ratings(resemblance.read_ratings(files, key))),
    ),
    "content": StudyKind(
        content.ContentOptions, content.build_study,
        lambda files, key: summarize_counts(content.score(files, key), "group"),
    ),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    commands = {"make": _main_make, "score": _main_score}
    try:
        if not arguments or arguments[0] not in commands:
            raise UserError("usage: user_study.py make <run folder> <run folder> out=… | score <answers> … key=…")
        commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _main_make(arguments: Sequence[str]) -> None:
    said = [argument.removeprefix("study=") for argument in arguments if argument.startswith("study=")]
    name = check_choice("study", said[-1] if said else "preference", STUDIES)
    folders, chosen = parse_paths_and_options(STUDIES[name].options, arguments)
    if len(folders) != 2:
        raise UserError(f"{len(folders)} run folders: wanted are 2")
    for file in make_pages(STUDIES[name].build_study, [Path(folder) for folder in folders], chosen):
        print(file)


def _main_score(arguments: Sequence[str]) -> None:
    files, chosen = parse_paths_and_options(ScoreOptions, arguments)
    if not files or chosen.key is None:
        raise UserError("score: wanted are files of answers and key=<key that `make` wrote>")
    key = read_key(Path(chosen.key))
    kind = check_choice(f"key={chosen.key}: kind", key["kind"], STUDIES)
    if chosen.study not in (None, kind):
        raise UserError(f"study={chosen.study}: the key {chosen.key} is of study={kind}")
    scores = STUDIES[kind].score([Path(file) for file in files], key)
    out = Path(chosen.out) if chosen.out else Path(files[0]).with_name("scores.csv")
    write_durable(out, scores.table())
    for name, folder in key["runs"].items():
        print(f"{name}: {folder}")
    print(*scores.lines, f"table: {out}", sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
