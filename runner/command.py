"""The job that Hydra starts for each configuration: compose it, build its parts once, run them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from classifier_lens.runner.cluster.signals import Interrupt, Stopped, at_once, stopped
from classifier_lens.runner.logging.console import lasting

with at_once():  # the imports take seconds
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from classifier_lens.runner.configuration.compose import build, names_quoted, resolved
    from classifier_lens.runner.configuration.override_errors import arranged, in_one_line
    from classifier_lens.runner.errors import out_of_memory
    from classifier_lens.runner.logging.progress_bar import preparing
    from classifier_lens.runner.paths import CONF
    from classifier_lens.runner.retry import Failure
    from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED, PENDING, check_places, run
    from classifier_lens.runner.types import UserError

_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    context = HydraConfig.get()
    interrupt = Interrupt()
    with interrupt.listening():
        try:
            words: Any = OmegaConf.to_container(context.overrides.task, resolve=False)  # as they were given
            config = resolved(cfg, context.runtime, words)
            check_places(config)
            began = time.time()
            with preparing():
                parts = build(config)
            _codes.append(run(parts, config, interrupt, began))
        except Stopped as stop:
            print(stop.line, file=sys.stderr, flush=True)
            _codes.append(stop.code)
        except UserError as error:
            print(error, file=sys.stderr)
            _codes.append(BAD_INPUT)
        except Exception as error:
            if not out_of_memory(error):
                raise
            print(Failure.of(error).error, file=sys.stderr, flush=True)
            _codes.append(FAILED)
    interrupt.pass_on()
    # A signal ends a sweep, too; and of a sweep's job in a queue of its own the code would be lost.
    if stopped(_codes[-1]) or (_codes[-1] != DONE and "submitit" in context.launcher._target_):
        sys.exit(_codes[-1])


def main(words: Sequence[str]) -> int:
    """`python run.py <words>`; returns the exit code, of a sweep's runs that of the one which went wrong."""
    _codes[:] = [DONE]
    with at_once(), lasting():
        try:
            sys.argv[1:] = names_quoted(arranged(words))
            with in_one_line(sys.argv[1:], _job.__wrapped__):
                _job()
        except UserError as error:
            print(error, file=sys.stderr)
            _codes.append(BAD_INPUT)
    return max(_codes, key=lambda code: (code != DONE, code != PENDING, code))
