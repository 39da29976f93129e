"""The function that Hydra calls for each configuration: resolve it, build its parts once, run them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.cluster.signals import RunStopped, SignalHandler, exit_on_signal, is_stop_code
from classifier_lens.runner.logging.console import resilient_streams

with exit_on_signal():  # the imports take seconds
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from classifier_lens.runner.configuration.compose import build, quote_names, resolve_config
    from classifier_lens.runner.configuration.override_errors import hydra_errors_in_one_line, reorder_arguments
    from classifier_lens.runner.errors import is_out_of_memory
    from classifier_lens.runner.logging.progress_bar import preparing
    from classifier_lens.runner.paths import CONFIG_FOLDER
    from classifier_lens.runner.retry import Failure
    from classifier_lens.runner.run import (
        BAD_INPUT,
        DONE,
        FAILED,
        PENDING,
        Parts,
        check_output_folders,
        run,
        run_folder,
    )
    from classifier_lens.runner.types import UserError

_codes: list[int] = []


@dataclass(frozen=True)
class JobResult:
    """How a job ended. reason: why it failed, empty otherwise; folder: of its run, None if it did not start."""

    code: int
    reason: str = ""
    folder: Path | None = None


def run_job(
    make_config: Callable[[], dict[str, Any]], interrupt: SignalHandler, announce: Callable[[Parts], None] | None = None
) -> JobResult:
    """Run a configuration; errors that the user can repair, and an interruption, are printed. announce: called before
    the run with its parts."""
    folder = None
    try:
        config = make_config()
        check_output_folders(config)
        start_time = time.time()
        with preparing():
            parts = build(config)
        if announce is not None:
            announce(parts)
        folder = run_folder(parts, config).path
        return JobResult(run(parts, config, interrupt, start_time), folder=folder)
    except RunStopped as stop:
        result = JobResult(stop.exit_code, stop.message, folder)
    except UserError as error:
        result = JobResult(BAD_INPUT, str(error), folder)
    except Exception as error:  # kernels and allocators raise several types when memory runs out
        if not is_out_of_memory(error):
            raise
        result = JobResult(FAILED, Failure.from_error(error).error, folder)
    print(result.reason, file=sys.stderr, flush=True)
    return result


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def _job(cfg: DictConfig) -> None:
    context = HydraConfig.get()
    words: Any = OmegaConf.to_container(context.overrides.task, resolve=False)  # without interpolation
    interrupt = SignalHandler()
    with interrupt.installed():
        _codes.append(run_job(lambda: resolve_config(cfg, context.runtime, words), interrupt).code)
    interrupt.forward()
    # A signal ends a sweep, too; and the exit code of a job that submitit runs would be lost.
    if is_stop_code(_codes[-1]) or (_codes[-1] != DONE and "submitit" in context.launcher._target_):
        sys.exit(_codes[-1])


def main(words: Sequence[str]) -> int:
    """`python run.py <words>`; returns the exit code, of a sweep that of a failed run."""
    _codes[:] = [DONE]
    with exit_on_signal(), resilient_streams():
        try:
            sys.argv[1:] = quote_names(reorder_arguments(words))
            with hydra_errors_in_one_line(sys.argv[1:], _job.__wrapped__):
                _job()
        except UserError as error:
            print(error, file=sys.stderr)
            _codes.append(BAD_INPUT)
    return worst_code(_codes)


def worst_code(codes: Sequence[int]) -> int:
    """The exit code of several jobs: that of a failed one, if there is any."""
    return max(codes, key=lambda code: (code != DONE, code != PENDING, code))
