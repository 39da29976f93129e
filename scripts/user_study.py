"""User studies of the images of runs: pages with questions, and scores of the responses.

    python scripts/user_study.py make <run folder A> <run folder B> out=outputs/study participants=30
    python scripts/user_study.py make <run folder A> <run folder B> out=outputs/study study=resemblance
    python scripts/user_study.py make <run of classes> <run of features> out=outputs/study study=content
    python scripts/user_study.py score responses-*.json key=outputs/study-key.json

`make` writes a folder of pages, one per participant in random order, that work from a disk. Nothing in the folder tells
the runs apart; `<out>-key.json` beside it does, so do not hand it out. A page saves its responses as a file in the
browser. `score` reads such files. Kinds of study:

    preference   which of two runs' counterfactuals is better (two runs of task=uvce); the default resemblance  how well
    explanations of features resemble highlighted parts of images (two runs of task=spurious_audit) content      what
    images of a class and of its features show (task=diffexplainer_class, then spurious_audit)"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.command_line import parse_paths_and_options, split_options
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study import content, preference, resemblance
from classifier_lens.scripts.study.pages import MakeOptions, Study, make_pages
from classifier_lens.scripts.study.responses import Scores, read_key, summarize_counts


@dataclass
class ScoreOptions:
    """Options of `score`. key: file that `make` wrote; out: the table, None for `scores.csv` beside the first file;
    study: kind of study, None for that of the key."""

    key: str | None = None
    out: str | None = None
    study: str | None = None


@dataclass
class KindOption:
    """The option of `make` that decides which others there are."""

    study: str = "preference"


@dataclass(frozen=True)
class StudyKind:
    """options: of `make`; build_study: the study of two runs; score: the scores of files of responses, with the key."""

    options: type[MakeOptions]
    build_study: Callable[[Sequence[RunResults], Any], Study]
    score: Callable[[Sequence[Path], Mapping[str, Any]], Scores]


STUDIES = {
    "preference": StudyKind(
        preference.PreferenceOptions, preference.build_study,
        lambda files, key: summarize_counts(preference.score(files, key), "method"),
    ),
    "resemblance": StudyKind(
        resemblance.ResemblanceOptions, resemblance.build_study,
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
            raise UserError("usage: user_study.py make <run folder> <run folder> out=… | score <responses> … key=…")
        commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _main_make(arguments: Sequence[str]) -> None:
    name = check_choice("study", split_options(KindOption, arguments)[0].study, STUDIES)
    folders, options = parse_paths_and_options(STUDIES[name].options, arguments)
    if len(folders) != 2:
        raise UserError(f"{len(folders)} run folders: make needs 2")
    for file in make_pages(STUDIES[name].build_study, [Path(folder) for folder in folders], options):
        print(file)


def _main_score(arguments: Sequence[str]) -> None:
    files, options = parse_paths_and_options(ScoreOptions, arguments)
    if not files or options.key is None:
        raise UserError("score: give files of responses and key=<file that `make` wrote>")
    key = read_key(Path(options.key))
    kind = check_choice(f"key={options.key}: kind", key["kind"], STUDIES)
    if options.study not in (None, kind):
        raise UserError(f"study={options.study}: the key {options.key} belongs to study={kind}; leave study out")
    scores = STUDIES[kind].score([Path(file) for file in files], key)
    out = Path(options.out) if options.out else Path(files[0]).with_name("scores.csv")
    write_durable(out, scores.table())
    for name, folder in key["runs"].items():
        print(f"{name}: {folder}")
    print(*scores.lines, f"table: {out}", sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
