"""The function that Hydra calls for each configuration: resolve it, build its parts once, run them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
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
    from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED, PENDING, check_output_folders, run
    from classifier_lens.runner.types import UserError

_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def _job(cfg: DictConfig) -> None:
    context = HydraConfig.get()
    interrupt = SignalHandler()
    with interrupt.installed():
        try:
            words: Any = OmegaConf.to_container(context.overrides.task, resolve=False)  # without interpolation
            config = resolve_config(cfg, context.runtime, words)
            check_output_folders(config)
            start_time = time.time()
            with preparing():
                parts = build(config)
            _codes.append(run(parts, config, interrupt, start_time))
        except RunStopped as stop:
            print(stop.message, file=sys.stderr, flush=True)
            _codes.append(stop.exit_code)
        except UserError as error:
            print(error, file=sys.stderr)
            _codes.append(BAD_INPUT)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(Failure.from_error(error).error, file=sys.stderr, flush=True)
            _codes.append(FAILED)
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
    return max(_codes, key=lambda code: (code != DONE, code != PENDING, code))
