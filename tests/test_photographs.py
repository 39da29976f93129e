"""Real photographs through the shipped generator: `python run.py classifier=cifar10_resnet20`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from classifier_lens.data import cifar10
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.run import run
from tests.conftest import SHARED

FOLDER = SHARED / "cifar10"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs CIFAR-10 and its classifiers in shared/data")
def test_a_photograph_is_explained_towards_the_strongest_wrong_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CIFAR10", "CIFAR10_RESNETS"):
        monkeypatch.setenv(name, str(FOLDER))
    config = compose_config([
        "classifier=cifar10_resnet20", f"outputs={tmp_path}", "limit=1", "optimizer.steps=1", "augment.crops=2",
        "generator.steps=4", "generator.null_text.inner_steps=3",
        "generator.prompt_to_prompt.cross_replace_steps=[0.4]",
        "logger=none",
    ])  # fmt: skip
    parts = build(config)
    assert run(parts, config) == 0
    folder = next(tmp_path.glob("uvce/cifar10_ddim-cifar10_resnet20/*"))
    result = json.loads((folder / "results.jsonl").read_text())
    example = parts.data[0]
    with torch.no_grad():
        logits = parts.classifier(example.image[None]).logits[0]
    names = parts.classifier.labels
    wrong = [names[i] for i in logits.argsort(descending=True).tolist() if names[i] != example.label]
    assert (result["source"], result["target"]) == (example.label, wrong[0])
    assert result["caption"] in {f"a photograph of {article} {example.label}" for article in ("a", "an")}
    original = read_png(folder / result["images"]["original"])
    assert original.shape == (3, 32, 32) and (original - example.image).abs().max() <= 1 / 255
    assert set(names) == set(cifar10.CLASSES)
