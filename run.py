"""Compose a configuration, build its parts once and hand them over: `python run.py task=uvce classifier=vit_b`."""

import shlex
import sys
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from runner.run import BAD_INPUT, Parts, run
from runner.types import UserError

codes = [0]


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["name"] = f"{choices.task}/{choices.generator}-{choices.classifier}"
    config["command"] = shlex.join(["python", "run.py", *HydraConfig.get().overrides.task])
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    config["environment"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    torch.manual_seed(config["seed"])
    try:
        parts = instantiate({key: config[key] for key in Parts.__dataclass_fields__}, _convert_="all")
        codes.append(run(Parts(**parts), config))
    except (UserError, InstantiationException) as error:
        cause = error if isinstance(error, UserError) else error.__cause__
        if not isinstance(cause, UserError):
            raise
        print(cause, file=sys.stderr)
        codes.append(BAD_INPUT)


if __name__ == "__main__":
    main()
    sys.exit(max(codes))
