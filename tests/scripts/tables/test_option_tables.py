"""Options as the pages of the tasks show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier_lens.scripts.tables import option_tables
from classifier_lens.scripts.tables.option_tables import PAGES, ROOT, TABLE_BLOCK, Option, parse_options

TASKS = sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))

TEXT = """\
defaults:
  - override /sampler: lcm # not an option
_target_: classifier_lens.tasks.uvce.Uvce
mode: class # class | error
plain: ${domain.target}
attribute: # what changes
  source: in snow # a phrase
  deeper: {x: 1}
context_search: # a list for each
  # kind of thing
  {_target_: classifier_lens.tasks.prompts.context_search.ContextSearch, phrases: null}
# none | pixels
# and others
baseline: none
cam: {_target_: classifier_lens.tasks.units.hirescam.HiResCam, layer: null} # where units look
cache: ${cache} # nobody's business
"null": 0 # a rate
"""


def test_keys_with_their_defaults_and_comments() -> None:
    assert parse_options("task", TEXT) == [
        Option("task.mode", "class", "class | error"),
        Option("task.attribute", "", "what changes"),
        Option("task.attribute.source", "in snow", "a phrase"),
        Option("task.context_search", "", "a list for each kind of thing"),
        Option("task.baseline", "none", "none | pixels and others"),
        Option("task.cam", "", "where units look"),
        Option("task.null", "0", "a rate"),
    ]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_page_that_is_up_to_date(task: str) -> None:
    path = PAGES / f"{task}.md"
    text = path.read_text()
    assert option_tables.update_page(text) == text, "python scripts/tables/option_tables.py writes it again"
    assert f"task={task}" in [f"{found[2]}={found[3]}" for found in TABLE_BLOCK.finditer(text)]
    for heading in ("## How to read it", "## Cost", "## Options"):
        assert heading in text
    assert "```bash" in text and "![" in text


def test_every_key_with_a_default_that_a_user_may_set_is_told() -> None:
    """What conf/task/uvce.yaml has beside what it refers to."""
    told = {option.key for option in parse_options("task", (ROOT / "conf" / "task" / "uvce.yaml").read_text())}
    assert told >= {
        "task.mode",
        "task.target",
        "task.preserve",
        "task.mask",
        "task.num_seeds",
        "task.baseline",
        "task.weights",
    }


def test_pages_are_written_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "x.md"
    page.write_text("a\n<!-- options: task=uvce -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(option_tables, "PAGES", tmp_path)
    monkeypatch.setattr(option_tables, "ROOT", tmp_path)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "uvce.yaml").write_text("# the head\n# of the file\nmode: class # a | b\n")
    assert option_tables.main([]) == 0
    assert page.read_text() == (
        "a\n<!-- options: task=uvce -->\n| key | default | meaning |\n|---|---|---|\n"
        "| `task.mode` | `class` | a \\| b |\n<!-- end -->\nb\n"
    )
