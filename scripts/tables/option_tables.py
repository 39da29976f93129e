"""Write the tables of options in docs/tasks/ and docs/reference/keys.md, from the comments of conf/.

    python scripts/tables/option_tables.py

Between `<!-- options: task=uvce -->` and `<!-- end -->` a page has a table of conf/task/uvce.yaml: each key with its
default and its comment. docs/reference/keys.md has such a table for every file of conf/ except the experiments. A test
checks that the pages are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from classifier_lens.runner.paths import ROOT

PAGES = ROOT / "docs" / "tasks"
KEYS_PAGE = ROOT / "docs" / "reference" / "keys.md"
TABLE_BLOCK = re.compile(r"(<!-- options: ([a-z_]+)=([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
KEY_LINE = re.compile(r"""^(?P<indent> *)(?P<key>"?[a-z_]\w*"?):(?: (?P<value>[^#\s].*?))?(?: +# (?P<comment>.*))?$""")
REFERENCE = re.compile(r"\$\{\w+\}$|[>|]-?$")  # reference to another key, or text on the lines below
HEAD = re.compile(r"\A(#.*\n)+")
# Keys that construct an option and have no meaning for a user.
SKIPPED_KEYS = ("defaults", "_target_", "_partial_", "cache", "presets")
CONSTRUCTION_KEYS = ("_target_", "_partial_")

# The groups of docs/reference/keys.md, in the order of the page.
GROUPS = {
    "task": "The problems, the objective and the measurements.",
    "task/annotations": "Human annotations of features for `task=spurious_audit`.",
    "task/retrieval": "Real images for `task=disagreement`.",
    "classifier": "The network to explain; `classifier@rival=` selects the second one of `task=disagreement`.",
    "data": "The images of the problems; `data@training=` selects the training images.",
    "generator": "The diffusion model.",
    "problems": "How many problems are solved if `limit` is not set; the task selects it.",
    "sampler": "DDIM, a consistency model, or `shipped`: a consistency model if the project has one; together with the "
    "domain it selects the generator.",
    "parametrization": "What is optimized.",
    "optimizer": "Steps, learning rates, gradient clipping, early stopping.",
    "augment": "What the classifier sees during optimization.",
    "baseline": "What `task.baseline=<name>` runs in place of the method.",
    "overlay": "Changes of images whose effect on a classifier is measured, by name.",
    "captioner": "Captions of images.",
    "segmenter": "Masks of objects; `segmenter@text_segmenter=` selects the text-prompted one.",
    "clip": "The CLIP model of captioner, retrieval and zero-shot classifiers.",
    "domain": "Defaults that follow from the kind of images; the classifier selects it.",
    "phrases": "Words and phrases for captions and searches.",
    "logger": "What is logged beside the run folder.",
    "safety_checker": "Whether generated images are checked before they are saved.",
    "train": "Settings of the commands in `scripts/train/`, given as `key=value` without the group.",
    "train/shortcuts": "Shortcuts for `scripts/train/classifier.py shortcuts=<name>`.",
}
INTRODUCTION = """# All configuration keys

Generated from the comments in `conf/` by `scripts/tables/option_tables.py`. Each section is a group, each
`group=option` a file `conf/<group>/<option>.yaml`. An option also has the keys of the option from which it inherits.
[Configuration](configuration.md) explains the keys that are set most often; `python run.py --cfg job` prints all
keys of a command with their values. [Reproduce the papers](../guides/reproduce_the_papers.md) lists the experiments.
"""


@dataclass(frozen=True)
class Option:
    """A key of a configuration file, its default as written there, and its comment."""

    key: str
    default: str
    description: str


def parse_options(group: str, text: str, undocumented: bool = False) -> list[Option]:
    """The documented keys of an option's file, a mapping's key before its inner keys; undocumented: also keys without a
    comment that have a value.

    A key's comment is on the lines right above it, on the same line, or on more deeply indented lines right below it.
    """
    parents: list[str] = []
    preceding_comments: list[str] = []
    parsed: list[Option] = []
    follows_option = False  # whether the line before was the last option's
    for line in text.splitlines():
        indent, content = len(line) - len(line.lstrip()), line.strip()
        if content.startswith("#"):
            comment = content.removeprefix("#").strip()
            if follows_option and indent > 0:
                parsed[-1] = replace(parsed[-1], description=f"{parsed[-1].description} {comment}")
            else:
                preceding_comments.append(comment)
            continue
        if follows_option and content.startswith("{") and not parsed[-1].default:
            parsed[-1] = replace(parsed[-1], default=_written(content))
        match, follows_option = KEY_LINE.match(line), False
        if match is not None:
            key, value = match["key"].strip('"'), match["value"] or ""
            parents[indent // 2 :] = [key]
            description = " ".join([*([match["comment"]] if match["comment"] else []), *preceding_comments])
            described = description or (undocumented and value and not REFERENCE.match(value))
            if described and not {parents[0], key} & set(SKIPPED_KEYS):
                parsed.append(Option(".".join([group, *parents] if group else parents), _written(value), description))
                follows_option = True
        preceding_comments = []
    return parsed


def _written(value: str) -> str:
    """A default as written in the file, without construction keys; of several lines the first one."""
    if value.startswith(("[", "{")) and not value.endswith(("]", "}")):
        return f"{value} …"
    if not value.startswith("{") or "_target_" not in value:
        return value
    settings = {key: inner for key, inner in yaml.safe_load(value).items() if key not in CONSTRUCTION_KEYS}
    if not settings:
        return ""
    return yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=1_000, allow_unicode=True).strip()


def options_table(group: str, text: str, undocumented: bool = False) -> str:
    """The options of a file as a Markdown table, empty without options; the head of the file is no comment of an
    option."""
    rows = [_row(option) for option in parse_options(group, HEAD.sub("", text), undocumented)]
    return "\n".join(["| key | default | description |", "|---|---|---|", *rows, ""]) if rows else ""


def _row(option: Option) -> str:
    default = f"`{_cell(option.default)}`" if option.default else ""
    return f"| `{option.key}` | {default} | {_cell(_plain(option.description))} |"


def _cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", r"\|")


def _plain(text: str) -> str:
    """A comment as Markdown text, with markup characters escaped outside code spans."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def update_page(text: str) -> str:
    """A page with up-to-date tables."""

    def table(match: re.Match[str]) -> str:
        file = ROOT / "conf" / match[2] / f"{match[3]}.yaml"
        return f"{match[1]}{options_table(match[2], file.read_text())}{match[4]}"

    return TABLE_BLOCK.sub(table, text)


def keys_page() -> str:
    """The page of all configuration keys."""
    return "\n".join([INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    yield "## config\n\nKeys of the whole run, `conf/config.yaml`.\n"
    yield options_table("", (ROOT / "conf" / "config.yaml").read_text())
    yield "## submit\n\nKeys of `scripts/submit.py`, `conf/submit.yaml`.\n"
    yield options_table("submit", (ROOT / "conf" / "submit.yaml").read_text())
    for group, description in GROUPS.items():
        yield f"## {group}\n\n{description}\n"
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            yield _option_section(group, file)


def _option_section(group: str, file: Path) -> str:
    """Title, comment, ancestors and keys of one option."""
    text = file.read_text()
    head = HEAD.match(text)
    comments = [line.removeprefix("#").strip() for line in head[0].splitlines()] if head else []
    lines = [f"### `{group}={file.stem}`" if not group.startswith("train") else f"### `{file.stem}`", ""]
    lines += [_plain(" ".join(comment for comment in comments if not comment.startswith("@package"))), ""]
    if ancestors := _ancestors(yaml.safe_load(text)):
        lines += [f"Inherits from {', '.join(f'`{name}`' for name in ancestors)}.", ""]
    prefix = {"train": "", "train/shortcuts": ""}.get(group, _key_of(group, file.stem))
    return "\n".join([*lines, options_table(prefix, text, undocumented=True)])


def _key_of(group: str, option: str) -> str:
    """The prefix of an option's keys in the configuration."""
    return f"baseline.{option}" if group == "baseline" else group.replace("/", ".")


def _ancestors(content: Any) -> list[str]:
    """The options of the same group from which a file inherits."""
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    return [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]


def main(arguments: Sequence[str]) -> int:
    """Write all pages."""
    pages = {path: update_page(path.read_text()) for path in sorted(PAGES.glob("*.md"))}
    for path, text in {**pages, KEYS_PAGE: keys_page()}.items():
        path.write_text(text)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
