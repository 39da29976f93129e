"""Adapters by PEFT's, diffusers' and Kohya's names: added whole, or refused with numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from classifier_lens.models.generator.pipeline.adapters import LORA_FILE, fuse_lora
from classifier_lens.runner.types import UserError

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv_shortcut", "linear_1", "conv_in")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
Tensors = dict[str, Tensor]


@pytest.fixture
def pipe(tiny_pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The tiny pipeline with weights of its own."""
    own = {name: copy.deepcopy(getattr(tiny_pipe, name)).requires_grad_(False) for name in ("unet", "text_encoder")}
    return StableDiffusionPipeline(**{**tiny_pipe.components, **own}, requires_safety_checker=False)


def halves(network: nn.Module, ends: tuple[str, ...], part: str) -> Tensors:
    """Random changes of rank 2, by PEFT's names."""
    torch.manual_seed(0)
    tensors: Tensors = {}
    for name in (name for name, _ in network.named_modules() if name.endswith(ends)):
        shape = network.get_parameter(f"{name}.weight").shape
        tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, *shape[1:])
        tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
    return tensors


def write(folder: Path, tensors: Tensors, name: str = LORA_FILE, metadata: object = None) -> Path:
    folder.mkdir()
    told = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, told)
    return folder


def kohya(tensors: Tensors, alpha: float | None = None) -> Tensors:
    found: Tensors = {}
    for name, value in tensors.items():
        layer, end = name.rsplit(".lora_", 1)
        layer = layer.replace("unet.", "lora_unet_").replace("text_encoder.", "lora_te_text_model_").replace(".", "_")
        found[f"{layer}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
        if alpha is not None:
            found[f"{layer}.alpha"] = torch.tensor(alpha)
    return found


def processors(tensors: Tensors) -> Tensors:
    """As diffusers wrote them before it used PEFT."""
    found: Tensors = {}
    for name, value in tensors.items():
        name = name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        for old in ("to_q", "to_k", "to_v"):
            name = name.replace(f".{old}.lora.", f".processor.{old}_lora.")
        found[name.replace(".to_out.0.lora.", ".processor.to_out_lora.")] = value
    return found


def added(before: nn.Module, after: nn.Module, tensors: Tensors, part: str, scale: float) -> None:
    """Every layer that is named is changed by the scaled product, and nothing else is."""
    expected = {name: value.clone() for name, value in before.state_dict().items()}
    for name, down in tensors.items():
        if name.startswith(f"{part}.") and ".lora_A." in name:
            up, layer = tensors[name.replace("lora_A", "lora_B")], name[len(part) + 1 :].rsplit(".lora_A", 1)[0]
            product = (up.flatten(1) @ down.flatten(1)).view_as(expected[f"{layer}.weight"])
            expected[f"{layer}.weight"] += scale * product
    for name, value in after.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_all_names_mean_the_same(
    pipe: StableDiffusionPipeline, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """W + (alpha / rank) up · down, in UNet and text encoder."""
    unet, text = halves(pipe.unet, LAYERS, "unet"), halves(pipe.text_encoder, TEXT, "text_encoder")
    old_text = {name.replace("text_encoder.", "text_encoder.text_model."): value for name, value in text.items()}
    bare = {name.removeprefix("unet."): value for name, value in unet.items()}
    peft = {f"base_model.model.{name}": value for name, value in bare.items()}
    settings = {"unet.lora_alpha": 6, "unet.alpha_pattern": {"conv_in": 6}, "text_encoder.lora_alpha": 6}
    files = {
        "peft": (write(tmp_path / "1", unet | text), 1.0),
        "with settings": (write(tmp_path / "2", unet | text, metadata=settings), 3.0),
        "text_model": (write(tmp_path / "3", unet | old_text), 1.0),
        "kohya": (write(tmp_path / "4", kohya(unet | text)), 1.0),
        "kohya with alphas": (write(tmp_path / "5", kohya(unet | text, 6.0)), 3.0),
        "one file": (write(tmp_path / "6", unet, "mine.safetensors") / "mine.safetensors", 1.0),
        "bare": (write(tmp_path / "7", bare, "mine.safetensors"), 1.0),
        "processors": (write(tmp_path / "8", processors(unet)), 1.0),
        "PEFT's folder": (write(tmp_path / "9", peft, "adapter_model.safetensors"), 3.0),
    }
    (tmp_path / "9" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    states = {part: copy.deepcopy(getattr(tiny_pipe, part).state_dict()) for part in ("unet", "text_encoder")}
    for name, (path, scale) in files.items():
        for part, state in states.items():
            getattr(pipe, part).load_state_dict(state)
        fuse_lora(pipe, str(path))
        both = name in ("peft", "with settings", "text_model", "kohya", "kohya with alphas")
        for part, tensors in (("unet", unet), ("text_encoder", text if both else {})):
            added(getattr(tiny_pipe, part), getattr(pipe, part), tensors, part, scale)


def test_the_product_is_bit_for_bit_that_of_peft(
    pipe: StableDiffusionPipeline, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    folder = write(tmp_path / "full", halves(pipe.unet, LAYERS, "unet"))
    fuse_lora(pipe, str(folder))
    theirs = StableDiffusionPipeline(
        **{**tiny_pipe.components, "unet": copy.deepcopy(tiny_pipe.unet)}, requires_safety_checker=False
    )
    theirs.load_lora_weights(str(folder))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    for name, value in theirs.unet.state_dict().items():
        assert torch.equal(value, pipe.unet.state_dict()[name]), name


def test_what_does_not_fit_whole_is_refused_with_numbers(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    unet, text = halves(pipe.unet, ("to_k",), "unet"), halves(pipe.text_encoder, TEXT, "text_encoder")
    count, first = len(unet) // 2, dict(list(unet.items())[:2])
    rest = {name.replace("attn", "attn9"): value for name, value in list(unet.items())[2:]}
    wide = {name: torch.randn(2, 2048) if "lora_A" in name else torch.randn(1280, 2) for name in unet}
    half = {name: value for name, value in unet.items() if name not in list(first)[:1]}
    said = {
        f"0 of its {count} changes fit .*{count} are of other widths, such as .*1280 x 2048, here": wide,
        f"1 of its {count} changes fit this pipeline; {count - 1} are of layers that it has not, such as": first | rest,
        f"0 of its {count} changes fit": {name.replace("unet.", "transformer."): v for name, v in unet.items()},
        f"{count} of its {count + 6} changes fit": unet
        | {name.replace("encoder.layers", "encoder_2.layers"): v for name, v in text.items()},
        f"{count - 1} of its {count} changes fit .*1 are of other widths": half,
        "0 of its 6 changes are of the UNet, all of the text encoder": text,
        f"all of its {count} changes are 0": {name: torch.zeros_like(value) for name, value in unet.items()},
        "1 of 1 entries .*hada_w1_a, are no plain low-rank changes": {"lora_unet_x.hada_w1_a": torch.ones(2)},
        f"1 of {2 * count + 1} entries .*magnitude": {**unet, "unet.x.lora_magnitude_vector": torch.ones(2)},
        f"0 of its {count} changes fit.*other widths": {
            name: torch.tensor(1.0) if "up" in name.rsplit(".", 2)[1] else value for name, value in kohya(unet).items()
        },
    }
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    for i, (line, tensors) in enumerate(said.items()):
        with pytest.raises(UserError, match=line) as caught:
            fuse_lora(pipe, str(write(tmp_path / str(i), tensors)))
        assert str(caught.value).startswith(f"generator.lora={tmp_path / str(i)}: ") and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_numbers_that_are_none_of_weights_are_refused(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    unet = halves(pipe.unet, ("to_k",), "unet")
    eight = {name: (9 * value).to(torch.int8) for name, value in unet.items()}
    empty = {name: value[:0] if "lora_A" in name else value[:, :0] for name, value in unet.items()}
    cases: list[tuple[str, Tensors, object]] = [
        ("its change of .* is not finite", {name: value * torch.nan for name, value in unet.items()}, None),
        ("its change of .* is not finite", kohya(unet, float("inf")), None),
        ("changes fit .*of torch.int8, here", eight, None),
        ("changes fit .*of rank 0, here", empty, None),
        ("lora_alpha or alpha_pattern cannot be read", unet, {"unet.lora_alpha": "many"}),
        ("lora_alpha or alpha_pattern cannot be read", unet, {"unet.alpha_pattern": {"(": 2}}),
        ("cannot be read", unet, [1]),
    ]
    for i, (line, tensors, metadata) in enumerate(cases):
        with pytest.raises(UserError, match=line) as caught:
            fuse_lora(pipe, str(write(tmp_path / str(i), tensors, metadata=metadata)))
        assert "\n" not in str(caught.value)


def test_files_that_are_none_are_one_line(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    for name, content in {"a.safetensors": b"junk", "b.bin": b"junk"}.items():
        (tmp_path / name[0]).mkdir()
        (tmp_path / name[0] / name).write_bytes(content)
    with pytest.raises(UserError, match=r"a.safetensors cannot be read"):
        fuse_lora(pipe, str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"holds no file of safetensors; expected pytorch_lora_weights.safetensors"):
        fuse_lora(pipe, str(tmp_path / "b"))
    with pytest.raises(UserError, match="neither a folder nor"):
        fuse_lora(pipe, str(tmp_path / "nowhere"))
