"""Write the tables of options in docs/tasks/, from the comments of conf/.

    python scripts/tables/option_tables.py

Between `<!-- options: task=uvce -->` and `<!-- end -->` of a page stands a table of what conf/task/uvce.yaml says: each
key with its default and its comment. A test keeps the pages as this script leaves them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from classifier_lens.runner.paths import ROOT

PAGES = ROOT / "docs" / "tasks"
TABLE_BLOCK = re.compile(r"(<!-- options: ([a-z_]+)=([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
KEY_LINE = re.compile(r"""^(?P<indent> *)(?P<key>"?[a-z_]\w*"?):(?: (?P<value>[^#\s].*?))?(?: +# (?P<comment>.*))?$""")
# What says how an option is put together, not what it does.
SKIPPED_KEYS = ("defaults", "_target_", "_partial_", "cache")


@dataclass(frozen=True)
class Option:
    """A key of a configuration file, its default as it is written, and what its comment says."""

    key: str
    default: str
    description: str


def parse_options(group: str, text: str) -> list[Option]:
    """The keys of an option's file that have a comment, with the key of a mapping before its inner ones'.

    Lines of comment right above a key belong to it, as do one behind it and those right below it that stand deeper.
    """
    parents: list[str] = []
    above: list[str] = []
    found: list[Option] = []
    fresh = False  # whether the line before was the last option's
    for line in text.splitlines():
        indent, words = len(line) - len(line.lstrip()), line.strip().removeprefix("# ")
        if words != line.strip():
            if fresh and indent > 0:
                found[-1] = replace(found[-1], description=f"{found[-1].description} {words}")
            else:
                above.append(words)
            continue
        match, fresh = KEY_LINE.match(line), False
        if match is not None:
            key, value = match["key"].strip('"'), match["value"] or ""
            parents[indent // 2 :] = [key]
            meaning = " ".join([*([match["comment"]] if match["comment"] else []), *above])
            if meaning and not {parents[0], key} & set(SKIPPED_KEYS):
                default = "" if "_target_" in value else value
                found.append(Option(".".join([group, *parents]), default, meaning))
                fresh = True
        above = []
    return found


def options_table(group: str, name: str) -> str:
    """The options of conf/<group>/<name>.yaml as a table of Markdown; the head of the file is no option's comment."""
    body = re.sub(r"\A(#.*\n)+", "", (ROOT / "conf" / group / f"{name}.yaml").read_text())
    rows = [
        f"| `{option.key}` | {f'`{_cell(option.default)}`' if option.default else ''} | {_cell(option.description)} |"
        for option in parse_options(group, body)
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    """A text as a cell of Markdown."""
    return text.replace("|", r"\|")


def update_page(text: str) -> str:
    """A page with its tables as conf/ has them now."""
    return TABLE_BLOCK.sub(lambda found: f"{found[1]}{options_table(found[2], found[3])}{found[4]}", text)


def main(arguments: Sequence[str]) -> int:
    """Write all pages again."""
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(update_page(path.read_text()))
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
