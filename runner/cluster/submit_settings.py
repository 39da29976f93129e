"""Settings of submitted jobs: the overrides `submit.<key>=<value>` of conf/submit.yaml."""

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
# SLURM's formats of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
TIME_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<numbers>\d+(?::\d+){0,2})")
SECONDS_PER_FIELD = {
    False: {1: (60,), 2: (60, 1), 3: (3600, 60, 1)},
    True: {1: (3600,), 2: (3600, 60), 3: (3600, 60, 1)},
}  # s


def read_settings(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the jobs, and the overrides of run.py. Values are quoted as for run.py. Raises UserError for
    invalid settings."""
    defaults = read_config(SUBMIT_CONFIG)
    overrides = dict(parse_override(word) for word in words if word.startswith("submit."))
    values = {key.removeprefix("submit."): value for key, value in overrides.items()}
    minutes = parse_minutes(values.get("minutes", defaults["minutes"]))
    settings = check_settings(SubmitSettings, {**defaults, **values, "minutes": minutes}, "submit.")
    _check(settings)
    return settings, [word for word in words if not word.startswith("submit.")]


def parse_override(word: str) -> tuple[str, Any]:
    """Key and value of an override, parsed as by run.py. Raises UserError, which shows how to quote the value."""
    with hydra_errors_in_one_line([word]):
        (override,) = OverridesParser.create().parse_overrides([word])
    if override.is_sweep_override():
        raise UserError(f"{word}: cannot be swept, all jobs share it; give one value")
    return override.key_or_group, override.value()


def parse_minutes(limit: object) -> int:
    """A time limit in minutes, rounded up. Raises UserError for a format that SLURM does not know."""
    match = TIME_LIMIT.fullmatch(str(limit)) if isinstance(limit, (int, str)) and not isinstance(limit, bool) else None
    if match is None:
        raise UserError(
            f"submit.minutes={limit}: allowed are minutes, or a time in SLURM's format: hours:minutes:seconds or "
            "days-hours:minutes:seconds"
        )
    numbers = [int(number) for number in match["numbers"].split(":")]
    units = SECONDS_PER_FIELD[match["days"] is not None][len(numbers)]
    seconds = 86400 * int(match["days"] or 0) + sum(n * unit for n, unit in zip(numbers, units, strict=True))
    return math.ceil(seconds / 60)


def _check(settings: Mapping[str, Any]) -> None:
    """Raise UserError for settings with which no job could run."""
    if settings["signal"] >= (limit := 60 * settings["minutes"]):
        raise UserError(
            f"submit.signal={settings['signal']}: allowed are seconds from 1 to below the time limit of {limit}; a job "
            "that gets the signal at its start does nothing"
        )
    for key in ("name", "partition", "account", "qos", "constraint"):
        if settings[key] is not None:
            check_single_line(f"submit.{key}", settings[key])
    for line in settings["setup"]:
        check_single_line("submit.setup", line)


def check_single_line(key: str, text: object) -> None:
    """Raise UserError for a text of several lines, since a batch script would execute the further lines."""
    if not isinstance(text, str) or not text.strip() or not text.replace("\t", " ").isprintable():
        raise UserError(f"{key}={text!r}: allowed is a line of text that is not empty, without control characters")
