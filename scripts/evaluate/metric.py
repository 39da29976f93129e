"""What all metrics share: their definition, generated images, and results of the runner.

Networks and results are cached per process and setting.
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
from classifier_lens.runner.result_schema import MASK, RESULT, SAMPLES
from classifier_lens.runner.results.run_folder import RunFolder, quantize_8bit, read_png, run_key
from classifier_lens.runner.run import Parts, run
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.evaluate.estimates import Estimate, proportion

BATCH_SIZE = 16  # images that are generated, encoded or classified together
DTYPE_OVERRIDES = {"float32": (), "bfloat16": ("generator.dtype=bfloat16", "optimizer.autocast=bfloat16")}


@dataclass(frozen=True)
class Setting:
    """seed: of the held-out images; device: auto | cpu | cuda; outputs: folder of the runs; dtype: float32 | bfloat16,
    of the generator's networks, and of classifiers during optimization."""

    seed: int
    device: str
    outputs: str
    dtype: str = "float32"

    def image_seed(self, i: int) -> int:
        """The random seed of image `i`: different for all images and evaluation seeds."""
        return self.seed * 1_000_003 + i


@dataclass(frozen=True)
class Metric:
    """One line of a results table.

    name: `<domain>.<metric>`, with `.<baseline>` for results of a baseline; function: takes the setting and n >= 2;
    sample_size: the n at which the value itself is compared with the threshold; unit: `%` (of a share), dB, × or s;
    threshold: which the value has to reach, None for a metric without verdict; higher_is_better: whether the value has
    to be above the threshold; interval_threshold: which the lower end of the interval has to exceed in addition."""

    name: str
    function: Callable[[Setting, int], Estimate]
    sample_size: int
    unit: str
    threshold: float | None = None
    higher_is_better: bool = True
    interval_threshold: float | None = None


@dataclass(frozen=True)
class Result:
    """A problem and the runner's result: its line of results.jsonl, its saved image (3, h, w), its mask (1, h, w), 1 in
    the editable region, and all images of a prompt (n, 3, h, w), the saved one first; None if the problem failed, or if
    there is no mask."""

    problem: Any
    record: Mapping[str, Any] | None
    best: Tensor | None
    mask: Tensor | None
    samples: Tensor | None

    @property
    def confidence(self) -> float:
        """The classifier's confidence in the target, 0 without a result."""
        return 0.0 if self.record is None else float(self.record["confidence_after"][self.record["target"]])

    @property
    def success(self) -> bool:
        """Whether the task counts the result as a success."""
        return self.record is not None and bool(self.record["success"])

    @property
    def is_target_predicted(self) -> bool:
        """Whether the saved image is predicted as the target, even if the original already was."""
        return self.record is not None and self.record["predicted_after"] == self.record["target"]


def target_prediction_rate(results: Sequence[Result]) -> Estimate:
    """How often the saved images are predicted as the target; the note has how often their originals already were."""
    already = sum(
        result.record is not None and result.record["predicted_before"] == result.record["target"] for result in results
    )
    return proportion(
        [result.is_target_predicted for result in results], f"{already} of {len(results)} originals already"
    )


@cache
def domain_parts(setting: Setting, classifier: str) -> Parts:
    """The generator and data of a classifier's domain, as `python run.py classifier=<classifier>` builds them."""
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
    results = TaskInputs(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    return tuple(parts.task.problems(results)[0])


def build_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of a run. Generators and classifiers with equal settings are loaded once."""
    keys = {part: (part, json.dumps(config[part], sort_keys=True)) for part in ("generator", "classifier")}
    parts = build(config, **{part: _networks[key] for part, key in keys.items() if key in _networks})
    _networks.update({key: getattr(parts, part) for part, key in keys.items()})
    return parts


_networks: dict[tuple[str, str], Any] = {}


@dataclass(frozen=True)
class FixedProblemsTask:
    """A task with known problems, so that the searches for them are not repeated."""

    task: Any
    fixed_problems: Sequence[Any]

    def problems(self, task_inputs: TaskInputs) -> tuple[list[Any], int]:
        return list(self.fixed_problems), len(self.fixed_problems)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


@cache
def compute_results(setting: Setting, classifier: str, overrides: tuple[str, ...], n: int) -> tuple[Result, ...]:
    """The runner's results for the first `n` problems of a run."""
    return run_problems(*prepare_problems(setting, classifier, overrides, n))


def run_problems(parts: Parts, config: dict[str, Any], problems: Sequence[Any]) -> tuple[Result, ...]:
    """The runner's results for problems; results of an earlier process are read, not computed again.

    Exits with the run's code if a signal stops it. Raises UserError if problems have no result, as on a full disk.
    """
    with redirect_stdout(sys.stderr):
        code = run(replace(parts, task=FixedProblemsTask(parts.task, problems)), config)
    if is_stop_code(code):
        raise SystemExit(code)
    folder = RunFolder(Path(config["outputs"]) / config["name"] / run_key(config, parts.digests))
    if pending := [p.name for p in problems if not folder.is_done(p.name)]:
        raise UserError(
            f"{folder.path}: {len(pending)} of {len(problems)} problems have no result; the same command continues"
        )
    records = {record["name"]: record for record in folder.results([problem.name for problem in problems])}
    return tuple(_result(problem, records.get(problem.name), folder.path) for problem in problems)


def _result(problem: Any, record: Mapping[str, Any] | None, folder: Path) -> Result:
    if record is None:
        return Result(problem, None, None, None, None)
    paths = record["images"]
    best, mask = (read_png(folder / paths[key]) if key in paths else None for key in (RESULT.key, MASK.key))
    fields = [RESULT, *SAMPLES.images(paths)]
    samples = torch.stack([read_png(folder / paths[field.key]) for field in fields])
    return Result(problem, record, best, None if mask is None else mask[:1], samples)


def _overrides(setting: Setting, classifier: str, more: Sequence[str]) -> list[str]:
    common_overrides = (f"device={setting.device}", f"outputs={setting.outputs}", "logger=none", "batch=8")
    return [f"classifier={classifier}", *common_overrides, *DTYPE_OVERRIDES[setting.dtype], *more]


# --- images --------------------------------------------------------------------------------------------------


def sample_images(
    generator: LatentDiffusion, prompts: Sequence[str], seeds: Sequence[int], batch: int = BATCH_SIZE
) -> Float[Tensor, "b 3 h w"]:
    """Images of prompts without an edit, in 8 bits; each initial latent is sampled with its own seed."""
    parts = [slice(first, first + batch) for first in range(0, len(prompts), batch)]
    return torch.cat([quantize_8bit(generator.sample(prompts[part], seeds[part])).cpu() for part in parts])


@torch.no_grad()
def reconstruct(generator: LatentDiffusion, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Reconstructions of images by the autoencoder, in 8 bits."""
    networks = generator.networks
    parts = [networks.decode(networks.encode(part.to(generator.device))) for part in images.split(BATCH_SIZE)]
    return quantize_8bit(torch.cat(parts)).cpu()
