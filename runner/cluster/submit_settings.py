"""What `python scripts/submit.py` is told of its jobs: the words `submit.<key>=<value>` over conf/submit.yaml."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from classifier_lens.runner.configuration.override_errors import hydra_errors_in_one_line
from classifier_lens.runner.configuration.runner_settings import SubmitSettings
from classifier_lens.runner.configuration.schema import check_settings
from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.results.reader import read_config
from classifier_lens.runner.types import UserError

SUBMIT_CONFIG = CONFIG_FOLDER / "submit.yaml"
# As SLURM reads a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
TIME_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<numbers>\d+(?::\d+){0,2})")
SECONDS_PER_FIELD = {
    False: {1: (60,), 2: (60, 1), 3: (3600, 60, 1)},
    True: {1: (3600,), 2: (3600, 60), 3: (3600, 60, 1)},
}  # s


def read_settings(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the jobs, and the words that are run.py's. Values are quoted as they are for run.py. Raises
    UserError for what does not fit."""
    defaults = read_config(SUBMIT_CONFIG)
    given = dict(parse_override(word) for word in words if word.startswith("submit."))
    own = {key.removeprefix("submit."): value for key, value in given.items()}
    minutes = parse_minutes(own.get("minutes", defaults["minutes"]))
    settings = check_settings(SubmitSettings, {**defaults, **own, "minutes": minutes}, "submit.")
    _check(settings)
    return settings, [word for word in words if not word.startswith("submit.")]


def parse_override(word: str) -> tuple[str, Any]:
    """The key and the value of a word, as run.py reads it. Raises UserError, which shows how to quote."""
    with hydra_errors_in_one_line([word]):
        (override,) = OverridesParser.create().parse_overrides([word])
    if override.is_sweep_override():
        raise UserError(f"{word}: takes one value")
    return override.key_or_group, override.value()


def parse_minutes(limit: object) -> int:
    """A time limit in whole minutes, rounded up. Raises UserError for what SLURM would not read as one."""
    found = TIME_LIMIT.fullmatch(str(limit)) if isinstance(limit, (int, str)) and not isinstance(limit, bool) else None
    if found is None:
        raise UserError(
            f"submit.minutes={limit}: allowed are minutes, or a time as SLURM has it: hours:minutes:seconds or "
            "days-hours:minutes:seconds"
        )
    numbers = [int(number) for number in found["numbers"].split(":")]
    units = SECONDS_PER_FIELD[found["days"] is not None][len(numbers)]
    seconds = 86400 * int(found["days"] or 0) + sum(n * unit for n, unit in zip(numbers, units, strict=True))
    return math.ceil(seconds / 60)


def _check(settings: Mapping[str, Any]) -> None:
    """Raise UserError for settings that fit no job."""
    if settings["signal"] >= (limit := 60 * settings["minutes"]):
        raise UserError(
            f"submit.signal={settings['signal']}: allowed are seconds from 1 to below the time limit of {limit}; a job "
            "that is signalled when it begins does nothing"
        )
    for key in ("name", "partition", "account", "qos", "constraint"):
        if settings[key] is not None:
            check_single_line(f"submit.{key}", settings[key])
    for line in settings["setup"]:
        check_single_line("submit.setup", line)


def check_single_line(key: str, text: object) -> None:
    """Raise UserError for a text that is not one line: what stands in a batch script behind a line's end is run."""
    if not isinstance(text, str) or not text.strip() or not text.replace("\t", " ").isprintable():
        raise UserError(f"{key}={text!r}: allowed is a line of text that is not empty, without control characters")
