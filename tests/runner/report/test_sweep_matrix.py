"""A sweep's page: classifiers in rows, targets in columns, the original beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifier_lens.runner.cluster.job_status import RunStatus
from classifier_lens.runner.report import sweep_matrix
from classifier_lens.runner.report.sweep_matrix import sweep_matrices


def run(outputs: Path, classifier: str, target: str, image: str = "test-0", original: bool = True) -> RunStatus:
    """A finished run with one counterfactual."""
    name = f"{image}-{target}"
    record = {
        "name": name, "image_name": image, "target": target, "source": "crab", "success": target == "urn",
        "predicted_before": "crab", "confidence_before": {"crab": 0.9}, "predicted_after": target,
        "confidence_after": {target: 0.8},
        "images": {"result": f"images/{name}/result.png"} | ({"original": "images/original.png"} if original else {}),
    }  # fmt: skip
    folder = outputs / "uvce" / f"gen-{classifier}" / target
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"classifier: {{path: {classifier}}}\ntask: {{target: {target}}}\n")
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    return RunStatus(folder)


def test_runs_of_one_image_make_a_matrix(tmp_path: Path) -> None:
    runs = [run(tmp_path, classifier, target) for classifier in ("a", "b") for target in ("urn", "snow")]
    differing = [{"task.target": "x", "classifier.path": "y"}] * 3 + [{"seed": 1}]
    (matrix,), left_out = sweep_matrices(runs, differing, tmp_path / "page")
    assert matrix.title == "test-0" and matrix.columns == ["urn", "snow"] and matrix.has_originals and left_out == 0
    assert [row.label for row in matrix.rows] == ["a", "b", "b, seed=1"]
    first = matrix.rows[0]
    assert first.original is not None and first.original.text == "crab 0.90"
    ((urn,), (snow,)) = first.cells
    assert (urn.text, urn.success, snow.success) == ("urn 0.80", True, False)
    assert urn.href == "../uvce/gen-a/urn/images/test-0-urn/result.png"
    assert matrix.rows[1].cells[1] == [], "this run has another label"


def test_generated_images_stand_together_and_the_page_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    runs = [run(tmp_path, "a", f"t{i}", f"image-{i}", original=i < 3) for i in range(5)]
    matrices, _ = sweep_matrices(runs, [{}] * 5, tmp_path)
    assert [matrix.title for matrix in matrices] == ["image-0", "image-1", "image-2", "Generated images"]
    assert matrices[-1].columns == ["t3", "t4"] and not matrices[-1].has_originals
    monkeypatch.setattr(sweep_matrix, "MAX_MATRICES", 1)
    assert sweep_matrices(runs, [{}] * 5, tmp_path)[1] == 3
