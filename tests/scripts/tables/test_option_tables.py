"""Options as the pages of the tasks and the reference show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier_lens.scripts.tables import option_tables
from classifier_lens.scripts.tables.option_tables import (
    KEYS_PAGE,
    PAGES,
    ROOT,
    TABLE_BLOCK,
    Option,
    parse_options,
)

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
  # kind of phrase
  {_target_: classifier_lens.tasks.prompts.context_search.ContextSearch, context_phrases: null}
# none | pixels
# and others
baseline: none
cam: {_target_: classifier_lens.tasks.units.hirescam.HiResCam, layer: null} # where units respond
clip: {_target_: classifier_lens.models.clip.load_clip} # built without settings
cache: ${cache} # internal
"null": 0 # a rate
"""


def test_keys_with_their_defaults_and_comments() -> None:
    assert parse_options("task", TEXT) == [
        Option("task.mode", "class", "class | error"),
        Option("task.attribute", "", "what changes"),
        Option("task.attribute.source", "in snow", "a phrase"),
        Option("task.context_search", "{context_phrases: null}", "a list for each kind of phrase"),
        Option("task.baseline", "none", "none | pixels and others"),
        Option("task.cam", "{layer: null}", "where units respond"),
        Option("task.clip", "", "built without settings"),
        Option("task.null", "0", "a rate"),
    ]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_page_that_is_up_to_date(task: str) -> None:
    path = PAGES / f"{task}.md"
    text = path.read_text()
    assert option_tables.update_page(text) == text, "python scripts/tables/option_tables.py writes it again"
    assert f"task={task}" in [f"{match[2]}={match[3]}" for match in TABLE_BLOCK.finditer(text)]
    for heading in ("## Result", "## How to read it", "## When not to trust it", "## Cost", "## Options"):
        assert heading in text
    assert "**Question.**" in text and "```bash" in text and "![" in text


def test_the_page_of_all_keys_is_up_to_date() -> None:
    assert option_tables.keys_page() == KEYS_PAGE.read_text(), "python scripts/tables/option_tables.py writes it again"


def test_every_group_of_conf_is_on_the_page_of_all_keys() -> None:
    groups = {str(path.parent.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {group for group in groups if not group.startswith(("experiment", "hydra", "."))} == set(
        option_tables.GROUPS
    )


def test_every_key_with_a_default_that_a_user_may_set_is_described() -> None:
    """What conf/task/uvce.yaml has beside references to other parts."""
    described = {option.key for option in parse_options("task", (ROOT / "conf" / "task" / "uvce.yaml").read_text())}
    keys = ("mode", "target", "preserve", "mask", "num_seeds", "baseline", "weights")
    assert described >= {f"task.{key}" for key in keys}


def test_markup_in_comments_is_escaped() -> None:
    table = option_tables.options_table("task", "prompt: x # *4: four tokens of a <class>, as `*4` | none\n")
    assert r"\*4: four tokens of a \<class>, as `*4` \| none" in table


def test_pages_are_written_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "x.md"
    page.write_text("a\n<!-- options: task=uvce -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(option_tables, "PAGES", tmp_path)
    monkeypatch.setattr(option_tables, "KEYS_PAGE", tmp_path / "reference" / "keys.md")
    monkeypatch.setattr(option_tables, "ROOT", tmp_path)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "reference").mkdir()
    (tmp_path / "conf" / "task" / "uvce.yaml").write_text("# the head\n# of the file\nmode: class # a | b\n")
    for file in ("config.yaml", "submit.yaml"):
        (tmp_path / "conf" / file).write_text("batch: 4 # problems optimized together\n")
    assert option_tables.main([]) == 0
    table = "| key | default | description |\n|---|---|---|\n| `task.mode` | `class` | a \\| b |\n"
    assert page.read_text() == f"a\n<!-- options: task=uvce -->\n{table}<!-- end -->\nb\n"
    keys = (tmp_path / "reference" / "keys.md").read_text()
    assert f"### `task=uvce`\n\nthe head of the file\n\n{table}" in keys and "| `submit.batch` | `4` |" in keys
