"""Segment Anything: sampling of points, selection of the mask, and checkpoints in the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamHQModel, SamHQProcessor, SamImageProcessor, SamModel, SamProcessor

from classifier_lens.models.segmenter.sam import SamNetwork, SamSegmenter, load, point_weights, sample_distant_points
from classifier_lens.runner.types import UserError
from tests.models.segmenter.tiny_sam import PREPROCESSOR, SIZE, write_sam

OPTIONS = {"sam": {"multimask_output": True}, "sam_hq": {"multimask_output": True, "hq_token_only": True}}

WORDS = ["crab"]  # nothing follows from them

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A folder of one type of network in the hub's layout."""
    return cache(lambda kind: write_sam(kind, tmp_path_factory.mktemp(kind)))


def loaded(path: Path | str, kind: str, **changes: Any) -> SamSegmenter:
    settings = {
        "num_points": 5,
        "background_threshold": 0.0,
        "threshold": 0.3,
        "forward_kwargs": OPTIONS[kind],
        **changes,
    }
    return load(str(path), None, **settings)


def draw(n: int, side: int = SIZE) -> tuple[Tensor, Tensor, list[str]]:
    """Images with 8-bit values, maps with one peak, and names."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator) / 255
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    centers = torch.rand(n, 2, generator=generator) * 8
    maps = torch.stack([torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8) for cy, cx in centers])[:, None]
    return images, maps / maps.amax(dim=(2, 3), keepdim=True), [f"picture-{i}" for i in range(n)]


# --- points --------------------------------------------------------------------------------------------------


def test_points_differ_and_lie_where_the_weights_are() -> None:
    generator = torch.Generator().manual_seed(1)
    for seed in range(50):
        weights = torch.rand(20, 30, generator=generator)
        weights = torch.where(weights > 0.9, weights, 0)
        points = sample_distant_points(weights, 5, seed)
        assert points.shape == (5, 2) and len({tuple(p) for p in points.tolist()}) == 5
        assert (weights[points[:, 0], points[:, 1]] > 0).all()


def test_points_depend_on_the_weights_and_the_seed_alone() -> None:
    weights = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    first = sample_distant_points(weights, 5, 7)
    torch.manual_seed(3)
    assert torch.equal(first, sample_distant_points(weights, 5, 7)) and not torch.equal(
        first, sample_distant_points(weights, 5, 8)
    )


def test_the_first_point_is_sampled_in_proportion_to_the_weights() -> None:
    """Weights 1 : 3 give 250 : 750 of 1000 draws; six standard deviations are 82."""
    weights = torch.tensor([[0.0, 0.25], [0.75, 0.0]])
    rows = [int(sample_distant_points(weights, 1, seed)[0, 0]) for seed in range(1000)]
    assert abs(sum(rows) - 750) < 82


def test_points_lie_in_every_part_of_a_map() -> None:
    """Each of two distant patches gets one of two points; independent samples would miss one in every second case."""
    weights = torch.zeros(64, 64)
    weights[:3, :3] = weights[-3:, -3:] = 1.0
    sides = [sorted((sample_distant_points(weights, 2, seed)[:, 0] > 32).tolist()) for seed in range(40)]
    assert sides.count([False, True]) >= 39


def test_there_are_no_more_points_than_pixels() -> None:
    weights = torch.zeros(8, 8)
    assert sample_distant_points(weights, 5, 0).shape == (0, 2)
    weights[2, 3] = weights[5, 1] = 0.5
    assert sorted(sample_distant_points(weights, 5, 0).tolist()) == [[2, 3], [5, 1]]


# --- prompts and selected masks ------------------------------------------------------------------------------


class RecordingNetwork:
    """A network that records its inputs and returns inputs masks and scores."""

    def __init__(self, masks: Tensor, scores: list[float]) -> None:
        self.masks, self.scores, self.inputs = masks, torch.tensor(scores), dict[str, Any]()

    def to(self, device: torch.device) -> RecordingNetwork:
        return self

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        self.inputs = inputs
        return SimpleNamespace(pred_masks=self.masks[None, None], iou_scores=self.scores[None, None])


def quarters() -> Tensor:
    """Three masks (3, 16, 16): the upper left, the upper right and the lower left quarter."""
    masks = torch.full((3, 16, 16), -5.0)
    masks[0, :8, :8] = masks[1, :8, 8:] = masks[2, 8:, :8] = 5.0
    return masks


def segmenter(network: Any, **changes: Any) -> SamSegmenter:
    settings = {"num_points": 1, "background_threshold": 0.0, "threshold": 0.3, "forward_kwargs": {}, **changes}
    return SamSegmenter(
        SamNetwork(network, SamImageProcessor(**PREPROCESSOR), settings.pop("forward_kwargs")), **settings
    )


def peak(side: int, row: int, column: int, base: float = 0.0) -> Tensor:
    maps = torch.full((1, 1, side, side), base)
    maps[..., row, column] = 1.0
    return maps


def test_the_mask_of_the_best_score_has_the_size_of_the_image() -> None:
    mask = segmenter(RecordingNetwork(quarters(), [0.1, 0.9, 0.5]))(
        torch.rand(1, 3, 32, 32), peak(32, 1, 1), WORDS, ["a"]
    )
    expected = torch.zeros(1, 1, 32, 32)
    expected[..., :16, 16:] = 1.0
    assert torch.equal(mask, expected)


def test_a_single_mask_is_used_whatever_the_scores() -> None:
    mask = segmenter(RecordingNetwork(quarters()[:1], [0.1, 0.2, 0.9]))(
        torch.rand(1, 3, 32, 32), peak(32, 1, 1), WORDS, ["a"]
    )
    assert mask.sum() == 16 * 16 and mask[..., :16, :16].all()


def test_points_are_centers_of_pixels() -> None:
    """Row 4, column 7 of 32 is 8 to 10, 14 to 16 of 64; the network itself adds the half pixel to 8.5 and 14.5."""
    network = RecordingNetwork(quarters(), [0.1, 0.9, 0.5])
    segmenter(network, forward_kwargs={"multimask_output": True})(
        torch.rand(1, 3, 32, 32), peak(32, 4, 7), WORDS, ["a"]
    )
    assert network.inputs["input_points"].tolist() == [[[[14.5, 8.5]]]]
    assert network.inputs["input_labels"].tolist() == [[[1]]] and network.inputs["multimask_output"] is True
    assert network.inputs["pixel_values"].shape == (1, 3, SIZE, SIZE)


def test_the_background_is_cut_before_the_root() -> None:
    """As published: for background 0.3 a map value of 0.475 has the weight √(0.175 / 0.7) = 0.5, and 0.386 has 0.35."""
    maps = torch.tensor([[[0.0, 0.3, 0.386, 0.475, 1.0]]])
    expected = torch.tensor([[[0.0, 0.0, 0.3505, 0.5, 1.0]]])
    torch.testing.assert_close(point_weights(maps, 0.3), expected, rtol=0, atol=1e-4)


def test_points_lie_above_the_threshold() -> None:
    network = RecordingNetwork(quarters(), [0.1, 0.9, 0.5])
    maps = peak(32, 4, 7, base=0.38)
    maps[..., 9, 9] = 0.39
    ask = segmenter(network, num_points=5, background_threshold=0.3, threshold=0.38575)
    ask(torch.rand(1, 3, 32, 32), maps, WORDS, ["a"])
    points = {tuple(point) for point in network.inputs["input_points"][0, 0].tolist()}
    assert points == {(14.5, 8.5), (18.5, 18.5)}


def test_points_depend_on_the_name_of_the_image() -> None:
    images, maps, names = draw(1)
    points_by_name: dict[str, Any] = {}
    for name in (*names, "another", *names):
        network = RecordingNetwork(quarters(), [0.1, 0.9, 0.5])
        segmenter(network, num_points=5)(images, maps, WORDS, [name])
        points = network.inputs["input_points"].tolist()
        assert points_by_name.setdefault(name, points) == points
    assert points_by_name[names[0]] != points_by_name["another"]


def test_an_empty_map_gives_an_empty_mask_without_a_call() -> None:
    network = RecordingNetwork(quarters(), [0.1, 0.9, 0.5])
    assert not segmenter(network)(torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 8, 8), WORDS * 2, ["a", "b"]).any()
    assert not network.inputs


def test_another_shape_is_padded_and_cropped() -> None:
    """32 x 64 pixels fill the upper half of the network's input."""
    maps = torch.zeros(1, 1, 32, 64)
    maps[..., 4, 7] = 1.0
    mask = segmenter(RecordingNetwork(quarters(), [0.9, 0.1, 0.5]))(torch.rand(1, 3, 32, 64), maps, WORDS, ["a"])
    expected = torch.zeros(1, 1, 32, 64)
    expected[..., :, :32] = 1.0
    assert (mask != expected).sum() <= 1, "only the quarter's very corner may be rounded"


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_a_published_checkpoint_gives_the_masks_of_transformers(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(kind)
    ours = loaded(folder, kind)
    images, maps, names = draw(3)
    masks = ours(images, maps, names, names)
    assert masks.shape == (3, 1, SIZE, SIZE) and set(masks.unique().tolist()) == {0.0, 1.0}
    network, processor = {
        "sam": (SamModel, SamProcessor), "sam_hq": (SamHQModel, SamHQProcessor)
    }[kind]  # fmt: skip
    reference = network.from_pretrained(folder).eval()
    prepare = processor(SamImageProcessor.from_pretrained(folder))
    for image, points, mask in zip(images, captured_points(ours, images, maps, names), masks, strict=True):
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        inputs = prepare(images=array, input_points=[[points.tolist()]], return_tensors="pt")
        with torch.no_grad():
            outputs = reference(**{k: v for k, v in inputs.items() if "sizes" not in k}, **OPTIONS[kind])
        whole = prepare.post_process_masks(outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        best = 0 if kind == "sam_hq" else int(outputs.iou_scores[0, 0].argmax())
        assert torch.equal(mask[0], whole[0][0, best].float())


def captured_points(ours: SamSegmenter, images: Tensor, maps: Tensor, names: list[str]) -> list[Tensor]:
    """The points (column, row) of the segmenter's prompts for each image."""
    result = []
    for i, name in enumerate(names):
        network = RecordingNetwork(quarters(), [0.1, 0.9, 0.5])
        recorder = SamSegmenter(SamNetwork(network, ours.sam.processor, {}), 5, 0.0, 0.3)
        recorder(images[i : i + 1], maps[i : i + 1], WORDS, [name])
        result.append(network.inputs["input_points"][0, 0].round().long())
    return result


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_a_mask_depends_on_its_image_map_and_name_alone(kind: str, checkpoint: Checkpoint) -> None:
    ours = loaded(checkpoint(kind), kind)
    images, maps, names = draw(3, side=48)
    together = ours(images, maps, names, names)
    for i in (2, 0, 1):
        alone = ours(images[i : i + 1], maps[i : i + 1], WORDS, names[i : i + 1])
        assert torch.equal(alone[0], together[i])


def copied(source: Path, target: Path, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A checkpoint with other weights or another config."""
    target.mkdir()
    (target / "preprocessor_config.json").write_text((source / "preprocessor_config.json").read_text())
    (target / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
    if state is not None:
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_weights_are_loaded_frozen_and_in_full_precision(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A file in half precision, without the copy of a shared weight, as in the hub's files."""
    source = checkpoint("sam")
    state = {k: v.half() for k, v in load_file(source / "model.safetensors").items()}
    state.pop("prompt_encoder.shared_embedding.positional_embedding", None)
    network = loaded(copied(source, tmp_path / "half", state, torch_dtype="float16"), "sam").sam.network
    assert {p.dtype for p in network.parameters()} == {torch.float32} and not network.training
    assert not any(p.requires_grad for p in network.parameters())
    shared = state["shared_image_embedding.positional_embedding"].float()
    assert torch.equal(network.prompt_encoder.shared_embedding.positional_embedding, shared)


def test_missing_parts_are_named_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("sam")
    state = load_file(source / "model.safetensors")
    incomplete = {k: v for k, v in state.items() if k != "mask_decoder.iou_token.weight"}
    (broken := copied(source, tmp_path / "broken")).joinpath("model.safetensors").write_bytes(b"not weights")
    cases: list[tuple[Path | str, dict[str, Any], str]] = [
        (
            "facebook/no-such-network",
            {},
            "neither a folder nor, .* in the hub's cache; .*`.* fetch hub/facebook/no-such-network`",
        ),
        (tmp_path / "nowhere", {}, "neither a folder nor"),
        (copied(source, tmp_path / "empty"), {}, "cannot be loaded .*; expected a folder in transformers' layout"),
        (
            copied(source, tmp_path / "incomplete", incomplete),
            {},
            r"1 weights are missing, such as mask_decoder.iou_token",
        ),
        (broken, {}, "cannot be loaded"),
        (copied(source, tmp_path / "other", state, model_type="clip"), {}, "type clip; allowed are sam, sam_hq, sam2"),
        (
            source,
            {"forward_kwargs": {"hq_token_only": True}},
            "segmenter.forward_kwargs=hq_token_only: sam networks have no such argument",
        ),
    ]
    for path, changes, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            loaded(path, "sam", **changes)
        assert "\n" not in str(caught.value)
