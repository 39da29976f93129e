"""Compose a configuration, build its parts once and hand them over: `python run.py task=uvce classifier=vit_b`."""

import sys
import time
from typing import Any

from runner.interrupt import Interrupt, Stopped, at_once, stopped
from runner.streams import lasting

with at_once():  # the imports take seconds
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from runner.compose import build, names_quoted, resolved
    from runner.faults import out_of_memory
    from runner.overrides import arranged, in_one_line
    from runner.progress import preparing
    from runner.retry import Failure
    from runner.run import BAD_INPUT, DONE, FAILED, PENDING, check_places, run
    from runner.types import UserError

codes = [0]


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
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
            codes.append(run(parts, config, interrupt, began))
        except Stopped as stop:
            print(stop.line, file=sys.stderr, flush=True)
            codes.append(stop.code)
        except UserError as error:
            print(error, file=sys.stderr)
            codes.append(BAD_INPUT)
        except Exception as error:
            if not out_of_memory(error):
                raise
            print(Failure.of(error).error, file=sys.stderr, flush=True)
            codes.append(FAILED)
    interrupt.pass_on()
    # A signal ends a sweep, too; and of a sweep's job in a queue of its own the code would be lost.
    if stopped(codes[-1]) or (codes[-1] != DONE and "submitit" in context.launcher._target_):
        sys.exit(codes[-1])


if __name__ == "__main__":
    with at_once(), lasting():
        try:
            sys.argv[1:] = names_quoted(arranged(sys.argv[1:]))
            with in_one_line(sys.argv[1:], main.__wrapped__):
                main()
        except UserError as error:
            print(error, file=sys.stderr)
            codes.append(BAD_INPUT)
    sys.exit(max(codes, key=lambda code: (code != DONE, code != PENDING, code)))  # of a sweep, what went wrong
