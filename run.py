"""Compose a configuration, build its parts once and hand them over: `python run.py task=uvce classifier=vit_b`."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.compose import build, resolved
from runner.run import BAD_INPUT, DONE, STOPPED, check_places, run
from runner.types import UserError

codes = [0]


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    context = HydraConfig.get()
    try:
        config = resolved(cfg, context.runtime.choices, context.overrides.task)
        check_places(config)
        codes.append(run(build(config), config))
    except UserError as error:
        print(error, file=sys.stderr)
        codes.append(BAD_INPUT)
    # A signal ends a sweep, too; and of a sweep's job in a queue of its own the code would be lost.
    if codes[-1] == STOPPED or (codes[-1] != DONE and "submitit" in context.launcher._target_):
        sys.exit(codes[-1])


if __name__ == "__main__":
    main()
    sys.exit(max(codes))
