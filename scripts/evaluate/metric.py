"""What the rows of the results table share: what a row is, sampled pictures, and counterfactuals by way of the runner.

Everything heavy is built once per process and setting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.cluster.signals import is_stop_code
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.results.run_folder import RunFolder, quantize_8bit, read_png, run_key
from classifier_lens.runner.run import Parts, run
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.evaluate.estimates import Estimate, proportion

BATCH_SIZE = 16  # pictures that are sampled, encoded or judged together
DTYPE_OVERRIDES = {"float32": (), "bfloat16": ("generator.dtype=bfloat16", "optimizer.autocast=bfloat16")}


@dataclass(frozen=True)
class Setting:
    """seed: of the held-out draw; device: auto | cpu | cuda; outputs: where the runs lie; dtype: float32 | bfloat16,
    what the generator's networks compute in, and classifiers while they are descended on."""

    seed: int
    device: str
    outputs: str
    dtype: str = "float32"

    def image_seed(self, i: int) -> int:
        """The seed of picture `i`: no two pictures and seeds of an evaluation share one."""
        return self.seed * 1_000_003 + i


@dataclass(frozen=True)
class Metric:
    """One line of the table.

    name: `<domain>.<what>`, with `.<baseline>` where a baseline answers; function: takes the setting and n >= 2;
    sample_size: the n at which the value itself is judged; unit: `%` (of a share), dB, × or s; threshold: what the
    value has to reach, None where it is only shown; higher_is_better: whether values above it are the good ones;
    interval_threshold: what the interval must lie above besides."""

    name: str
    function: Callable[[Setting, int], Estimate]
    sample_size: int
    unit: str
    threshold: float | None = None
    higher_is_better: bool = True
    interval_threshold: float | None = None


@dataclass(frozen=True)
class Result:
    """A problem and what the runner made of it: its line of results.jsonl, its saved picture (3, h, w), its mask (1, h,
    w), 1 where it was free, and all pictures of a prompt (n, 3, h, w), the saved one first; None where the runner gave
    it up, or there is no mask."""

    problem: Any
    record: Mapping[str, Any] | None
    best: Tensor | None
    mask: Tensor | None
    samples: Tensor | None

    @property
    def confidence(self) -> float:
        """The classifier's confidence in the target, 0 where there is no answer."""
        return 0.0 if self.record is None else float(self.record["confidence_after"][self.record["target"]])

    @property
    def success(self) -> bool:
        """Whether the task calls the answer a success."""
        return self.record is not None and bool(self.record["success"])

    @property
    def is_target_predicted(self) -> bool:
        """Whether the saved picture is predicted as the target, be it that its original was so already."""
        return self.record is not None and self.record["predicted_after"] == self.record["target"]


def target_prediction_rate(given: Sequence[Result]) -> Estimate:
    """How often the saved pictures are predicted as the target; beside it how often their originals were already."""
    already = sum(a.record is not None and a.record["predicted_before"] == a.record["target"] for a in given)
    return proportion([a.is_target_predicted for a in given], f"{already} of {len(given)} before anything changes")


@cache
def domain_parts(setting: Setting, classifier: str) -> Parts:
    """A classifier's own domain: its generator and data, as `python run.py classifier=<classifier>` builds them."""
    return build_parts(compose_config(_overrides(setting, classifier, ())))


@cache
def prepare_problems(
    setting: Setting, classifier: str, overrides: tuple[str, ...], n: int
) -> tuple[Parts, dict[str, Any], tuple[Any, ...]]:
    """The parts, configuration and first `n` problems of a run."""
    parts, config = configure_run(setting, classifier, overrides, n)
    return parts, config, list_problems(parts, config)


def configure_run(setting: Setting, classifier: str, overrides: Sequence[str], n: int) -> tuple[Parts, dict[str, Any]]:
    """The parts and configuration of a run of `n` problems."""
    config = compose_config(_overrides(setting, classifier, (*overrides, f"limit={n}")))
    return build_parts(config), config


def list_problems(parts: Parts, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The problems of a run."""
    given = TaskInputs(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    return tuple(parts.task.problems(given)[0])


def build_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of a run. Generators and classifiers are loaded once for all runs whose settings of them are equal."""
    keys = {part: (part, json.dumps(config[part], sort_keys=True)) for part in ("generator", "classifier")}
    parts = build(config, **{part: _networks[key] for part, key in keys.items() if key in _networks})
    _networks.update({key: getattr(parts, part) for part, key in keys.items()})
    return parts


_networks: dict[tuple[str, str], Any] = {}


@dataclass(frozen=True)
class FixedProblemsTask:
    """A task whose problems are known: what was searched for to pose them is not searched for again."""

    task: Any
    fixed_problems: Sequence[Any]

    def problems(self, world: TaskInputs) -> tuple[list[Any], int]:
        return list(self.fixed_problems), len(self.fixed_problems)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


@cache
def compute_results(setting: Setting, classifier: str, overrides: tuple[str, ...], n: int) -> tuple[Result, ...]:
    """The runner's answers to the first `n` problems of a run."""
    return run_problems(*prepare_problems(setting, classifier, overrides, n))


def run_problems(parts: Parts, config: dict[str, Any], problems: Sequence[Any]) -> tuple[Result, ...]:
    """The runner's answers to problems; what it answered in an earlier process is read, not repeated.

    Exits with the run's code if it is asked to stop. Raises UserError if problems stay unanswered, as on a full disk.
    """
    with redirect_stdout(sys.stderr):
        code = run(replace(parts, task=FixedProblemsTask(parts.task, problems)), config)
    if is_stop_code(code):
        raise SystemExit(code)
    folder = RunFolder(Path(config["outputs"]) / config["name"] / run_key(config, parts.digests))
    if pending := [p.name for p in problems if not folder.is_done(p.name)]:
        raise UserError(f"{folder.path}: {len(pending)} of {len(problems)} problems have no answer")
    records = {record["name"]: record for record in folder.results([problem.name for problem in problems])}
    return tuple(_answer(problem, records.get(problem.name), folder.path) for problem in problems)


def _answer(problem: Any, record: Mapping[str, Any] | None, folder: Path) -> Result:
    if record is None:
        return Result(problem, None, None, None, None)
    paths = record["images"]
    best, mask = (read_png(folder / paths[key]) if key in paths else None for key in ("best", "mask"))
    shown = ["best", *sorted(key for key in paths if key.startswith("sample_"))]
    gallery = torch.stack([read_png(folder / paths[key]) for key in shown])
    return Result(problem, record, best, None if mask is None else mask[:1], gallery)


def _overrides(setting: Setting, classifier: str, more: Sequence[str]) -> list[str]:
    own = (f"device={setting.device}", f"outputs={setting.outputs}", "logger=none", "batch=8")
    return [f"classifier={classifier}", *own, *DTYPE_OVERRIDES[setting.dtype], *more]


# --- pictures ------------------------------------------------------------------------------------------------


def sample_images(
    generator: LatentDiffusion, prompts: Sequence[str], seeds: Sequence[int], batch: int = BATCH_SIZE
) -> Float[Tensor, "b 3 h w"]:
    """Pictures of prompts, without any edit, as files would hold them; each start latent is drawn from its own seed."""
    parts = [slice(first, first + batch) for first in range(0, len(prompts), batch)]
    return torch.cat([quantize_8bit(generator.sample(prompts[part], seeds[part])).cpu() for part in parts])


@torch.no_grad()
def reconstruct(generator: LatentDiffusion, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """What the VAE makes of pictures, as files would hold it."""
    networks = generator.networks
    parts = [networks.decode(networks.encode(part.to(generator.device))) for part in images.split(BATCH_SIZE)]
    return quantize_8bit(torch.cat(parts)).cpu()
