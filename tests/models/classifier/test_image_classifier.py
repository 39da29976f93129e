"""Classifiers: preprocessing, gradients, checks, and every source of weights."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from classifier_lens.data import cifar10, planted
from classifier_lens.models.classifier.feature_layout import flatten_spatial
from classifier_lens.models.classifier.image_classifier import (
    ImageClassifier,
    forward_logits,
)
from classifier_lens.models.classifier.loaders.cifar10 import cifar10_resnet
from classifier_lens.models.classifier.loaders.class_names import imagenet_labels, read_labels
from classifier_lens.models.classifier.loaders.shipped import load_oracle, load_shipped
from classifier_lens.models.classifier.loaders.timm import timm_classifier
from classifier_lens.models.classifier.loaders.user_network import callable_classifier
from classifier_lens.models.network_digest import network_digest
from classifier_lens.runner.types import UserError
from tests.cli import ROOT

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
SHA20 = "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"
needs_cifar10 = pytest.mark.skipif(not CIFAR10.is_dir(), reason="../shared/data/cifar10 is not there")
SHIPPED_CLASSIFIERS = ("planted_clean", "planted_shortcut")
ORACLES = ("oracle_convnext", "oracle_mobilenet")


def wrap(network: Callable[[Tensor], Tensor], outputs: int = 3, size: int = 8, **changes: Any) -> ImageClassifier:
    settings: dict[str, Any] = {
        "labels": [f"c{i}" for i in range(outputs)], "size": size, "mean": [0.0] * 3, "std": [1.0] * 3,
        "interpolation": "bilinear", "domain": "planted", "forward_fn": forward_logits,
        "error_prefix": "classifier.target=x",
    }  # fmt: skip
    return ImageClassifier(network, **(settings | changes))


def linear(outputs: int = 3, size: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, outputs))


def hooks_in(module: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        for m in module.modules()
    )


def test_preprocessing_by_hand() -> None:
    sums = lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0].mean((1, 2))], dim=1)  # noqa: E731
    classifier = wrap(sums, 2, mean=[0.5, 0.0, 0.0], std=[0.25, 1.0, 1.0])
    logits = classifier(torch.ones(1, 3, 16, 16)).logits  # red becomes (1 - 0.5) / 0.25 = 2, the others stay 1
    assert torch.allclose(logits, torch.tensor([[4 / 3, 2.0]]))


def test_resizing_is_antialiased() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    seen = wrap(linear()).preprocess(stripes)
    assert seen.shape[-2:] == (8, 8) and (seen - 0.5).abs().max() < 0.1


def test_network_is_frozen_and_stays_in_evaluation_mode() -> None:
    classifier = wrap(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3)))
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not any(m.training for m in nn.ModuleList([classifier]).train()[0].modules())


def exported(network: nn.Module, training: bool) -> nn.Module:
    """An exported program of any batch."""
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(network.train(training), (torch.rand(2, 3, 8, 8),), dynamic_shapes=(batch,))
    return program.module()


def test_programs_are_frozen_like_modules() -> None:
    """Scripted, traced and exported networks have no `requires_grad_` or `eval` of their own."""
    network, images = linear().eval(), torch.rand(2, 3, 8, 8)
    traced = torch.jit.trace(network, images)
    scripted = torch.jit.script(network)
    for program in (scripted, traced, torch.jit.freeze(torch.jit.script(network)), exported(network, False)):
        classifier = wrap(program)
        torch.testing.assert_close(classifier(images).logits, network(images))
        assert classifier.train() is classifier and not classifier.training
    with pytest.raises(UserError, match="outputs for the same image differ"):
        wrap(exported(nn.Sequential(nn.Dropout(0.5), *linear()), True))


def test_extra_state_is_part_of_the_digest() -> None:
    class WithExtraState(nn.Module):
        def __init__(self, state: Any) -> None:
            super().__init__()
            self.state = state

        def get_extra_state(self) -> Any:
            return self.state

    state = [WithExtraState(value) for value in (1, 2, (1, torch.ones(2)), (1, torch.zeros(2)), None)]
    assert len({network_digest(module) for module in state}) == len(state)
    quantized = [torch.ao.quantization.quantize_dynamic(linear(), {nn.Linear}) for _ in range(2)]
    assert network_digest(quantized[0]) == network_digest(quantized[1]) != network_digest(linear())


def test_normalization_may_be_given_by_arrays_and_tensors() -> None:
    """No digit is lost, whatever the default floating-point type is."""
    close = [torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.48501, 0.456, 0.406])]
    assert wrap(linear(), mean=close[0]).fingerprint != wrap(linear(), mean=close[1]).fingerprint
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert wrap(linear().float(), mean=np.full(3, 0.5, np.float32)).mean.dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


def test_the_digest_depends_on_the_weights() -> None:
    same, changed = linear(), linear()
    with torch.no_grad():
        changed[1].get_parameter("bias")[0] += 1e-3
    assert wrap(linear()).digest == network_digest(same) != network_digest(changed)
    assert len(network_digest(imagenet_labels)) == 64


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (linear(4), {}, "output size 4 does not match its 3 labels"),
        (linear(), {"labels": ["a", "b", "a"]}, "occur more than once: a"),
        (linear(), {"labels": ["a", "b\x1b[31m", "c"]}, "without control characters; one is 'b\\x1b[31m'"),
        (linear(), {"labels": ["a", "\udcff", "c"]}, "without control characters; one is '\\udcff'"),
        (linear(), {"labels": ["a", "b\nc", "d"]}, "texts of one line"),
        (linear(), {"labels": ["a", " ", "c"]}, "one is ' '"),
        (linear(), {"size": 9}, "fails on images of shape (1, 3, 9, 9)"),
        (lambda x: linear()(x) / 0, {}, "not finite"),
        (lambda x: linear()(x.detach()).detach(), {}, "does not reach the image"),
        (lambda x: linear()(x.detach()), {}, "does not reach the image"),
        (lambda x: 0 * linear()(x), {}, "a random image is zero everywhere"),
        (lambda x: linear()((0 * x).sqrt()), {}, "a random image is not finite"),
        (lambda x: {"logits": x}["answer"], {}, "fails on images of shape (1, 3, 8, 8): KeyError: 'answer' (/"),
        (lambda x: torch._assert(x.shape[-1] == 9, "wants 9 px"), {}, "(1, 3, 8, 8): AssertionError: wants 9 px (/"),
        (lambda x: linear()(x) * (1 // 0), {}, "ZeroDivisionError: integer division or modulo by zero (/"),
        (lambda x: open("/no/weights"), {}, "FileNotFoundError: [Errno 2] No such file or directory: '/no/weights' (/"),
        (lambda x: linear()(x) > 0, {}, "its outputs are of type bool; expected floating-point numbers"),
        (lambda x: linear()(x).to(torch.complex64), {}, "of type complex64; expected"),
        (lambda x: linear()(x).argmax(1), {}, "of type int64; expected"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), {}, "some weights have no values yet (lazy"),
        (linear().to("meta"), {}, "some weights have no values yet"),
        (linear(), {"mean": 0.5}, "mean=0.5; allowed are three numbers"),
        (linear(), {"std": ["a", "b", "c"]}, "std=['a', 'b', 'c']; allowed are three numbers"),
        (linear(), {"mean": [0.0]}, "mean=[0.0] std=[1.0, 1.0, 1.0]; allowed are three finite numbers"),
        (linear(), {"std": [1.0, 0.0, 1.0]}, "those of std above 0"),
        (linear(), {"mean": [0.0, float("nan"), 0.0]}, "allowed are three finite numbers"),
        (lambda x: x, {}, "does not match"),
        (linear(), {"interpolation": "nearest"}, "allowed are bilinear, bicubic"),
    ],
)
def test_unfit_networks_are_refused_in_one_line(network: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        wrap(network, **changes)
    assert "classifier.target=x" in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(params=[*SHIPPED_CLASSIFIERS, "timm"], scope="module")
def classifier(request: pytest.FixtureRequest) -> ImageClassifier:
    if request.param == "timm":
        return timm_classifier("test_vit", False, None, None, [], [], [f"c{i}" for i in range(1000)], "imagenet")
    return load_shipped(request.param)


def test_batch_equals_single(classifier: ImageClassifier) -> None:
    images = planted.render(planted.sample_scenes(5, planted.SPLIT_SEEDS["test"])).image
    together, alone = classifier(images), [classifier(image[None]) for image in images]
    assert torch.allclose(together.logits, torch.cat([r.logits for r in alone]), atol=1e-4)
    assert torch.allclose(together.features, torch.cat([r.features for r in alone]), atol=1e-4)


def test_features_are_the_input_of_the_last_layer(classifier: ImageClassifier) -> None:
    response = classifier(torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)))
    last = classifier.network.get_classifier()
    assert torch.allclose(last(response.features), response.logits, atol=1e-5)


def test_gradient_reaches_the_image_also_under_autocast(classifier: ImageClassifier) -> None:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(image).logits
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), image)
    assert logits.dtype == torch.float32 and gradient.isfinite().all() and gradient[0].any() and gradient[1].any()
    assert all(p.grad is None for p in classifier.parameters())


def test_no_hooks_are_left(classifier: ImageClassifier) -> None:
    classifier(torch.rand(1, 3, 64, 64))
    assert hooks_in(classifier) == 0


# --- the last linear layer -----------------------------------------------------------------------------------


def explained(classifier: ImageClassifier) -> float:
    """The largest difference between the logits and the output of the head for the features."""
    with torch.no_grad():
        response = classifier(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    head = classifier.head
    assert head is not None and response.features is not None
    return float((response.features @ head.weight.T + head.bias - response.logits).abs().max())


def test_the_logits_are_the_output_of_the_head_for_the_features(classifier: ImageClassifier) -> None:
    assert explained(classifier) < 1e-5
    head = classifier.head
    assert head is not None and head.weight.dtype == head.bias.dtype == torch.float32
    assert head.weight.shape[0] == len(head.bias) == len(classifier.labels)


def test_a_head_without_a_bias_has_one_of_zeros() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
    plain = wrap(network)
    assert explained(plain) < 1e-6 and plain.head is not None and plain.head.bias.eq(0).all()


class Two(nn.Module):
    """Two linear layers, of which `answer` makes the logits; the one that was registered last is `last`."""

    def __init__(self, answer: Callable[[nn.Module, Tensor], Tensor], outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.answer = nn.Linear(192, 3), nn.Linear(192, outputs), answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(self, images.flatten(1))


NO_HEAD: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "another layer answers": lambda m, x: m.get_submodule("first")(x) + 0 * m.get_submodule("last")(x),
    "the last one is not used": lambda m, x: m.get_submodule("first")(x),
    "both answer": lambda m, x: (m.get_submodule("first")(x) + m.get_submodule("last")(x)) / 2,
    "something follows": lambda m, x: 2 * m.get_submodule("last")(x).tanh(),
}


@pytest.mark.parametrize("kind", NO_HEAD)
def test_there_is_no_head_unless_the_last_linear_layer_gives_the_logits(kind: str) -> None:
    assert wrap(Two(NO_HEAD[kind])).head is None


def test_a_layer_of_another_size_and_a_plain_function_have_no_head() -> None:
    assert wrap(Two(lambda m, x: m.get_submodule("last")(x)[:, :3], outputs=7)).head is None
    assert wrap(lambda x: linear()(x)).head is None


def test_a_transformer_with_two_heads_has_no_head() -> None:
    both = timm_classifier("deit_tiny_distilled_patch16_224", False, None, None, [], [], "imagenet", "imagenet")
    assert both.head is None


# --- activations of modules --------------------------------------------------------------------------------


def small() -> nn.Sequential:
    """Convolution, ReLU, pooling and a linear layer, for 8 px images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_activations_are_the_inputs_and_outputs_of_modules() -> None:
    classifier, images = wrap(small()), torch.rand(2, 3, 8, 8)
    network = classifier.network
    response, result = classifier.forward_with_activations(images, ["0", "1", "1.in", "4.in", "4"])
    assert set(result) == {"0", "1", "1.in", "4.in", "4"}
    torch.testing.assert_close(result["0"], network[0](images))
    assert torch.equal(result["1.in"], result["0"]) and torch.equal(result["1"], result["0"].relu())
    torch.testing.assert_close(result["4.in"], result["1"].mean(dim=(2, 3)))
    assert response.features is not None and torch.equal(result["4.in"], response.features)
    assert torch.equal(result["4"], response.logits)


def test_activations_come_with_the_response_of_a_call(classifier: ImageClassifier) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert classifier.cam_module is not None
    plain, (traced, result) = classifier(images), classifier.forward_with_activations(images, [classifier.cam_module])
    assert plain.features is not None and traced.features is not None
    assert torch.equal(plain.logits, traced.logits) and torch.equal(plain.features, traced.features)
    again, nothing = classifier.forward_with_activations(images, [])
    assert torch.equal(plain.logits, again.logits) and nothing == {} and set(result) == {classifier.cam_module}


def test_gradients_pass_through_activations(classifier: ImageClassifier) -> None:
    module = classifier.cam_module
    assert module is not None
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    response, result = classifier.forward_with_activations(images, [module])
    assert response.features is not None
    maps = result[module]
    to_map, to_image = torch.autograd.grad(response.features[0].square().sum(), [maps, images], retain_graph=True)
    assert to_map[0].any() and to_image[0].any() and not to_map[1].any() and not to_image[1].any()
    assert torch.autograd.grad(maps[0].sum(), images)[0][0].any()


@pytest.mark.parametrize("fails", [False, True])
def test_recording_leaves_no_hooks(fails: bool) -> None:
    classifier = wrap(small())
    if fails:
        with pytest.raises(RuntimeError):
            classifier.forward_with_activations(torch.rand(2, 5, 8, 8), ["0", "4.in"])
    else:
        classifier.forward_with_activations(torch.rand(2, 3, 8, 8), ["0", "4.in"])
        assert classifier.cam_module is not None
    assert hooks_in(classifier) == 0


def test_an_unknown_module_names_the_nearest(classifier: ImageClassifier) -> None:
    known = [name for name, _ in classifier.network.named_modules() if name]
    last = max((name for name in known if name.count(".") == 0), key=known.index)
    for name in (f"{last}x", f"{last}x.in"):
        with pytest.raises(UserError, match="no module") as caught:
            classifier.forward_with_activations(torch.rand(1, 3, 64, 64), [known[0], name])
        listed = str(caught.value).split("nearest are ")[1].split(", ")
        assert (
            name in str(caught.value) and classifier.error_prefix in str(caught.value) and "\n" not in str(caught.value)
        )
        assert last in listed and set(listed) <= set(known)
    assert hooks_in(classifier) == 0


def test_a_plain_function_has_no_modules() -> None:
    with pytest.raises(UserError, match=r"classifier\.target=x: no module layer4; nearest are none"):
        wrap(lambda x: linear()(x)).forward_with_activations(torch.rand(1, 3, 8, 8), ["layer4"])


def test_a_module_that_the_network_does_not_use_is_refused() -> None:
    with pytest.raises(UserError, match=r"classifier\.target=x: the network does not use the module last"):
        wrap(Two(NO_HEAD["the last one is not used"])).forward_with_activations(torch.rand(1, 3, 8, 8), ["last"])


# --- the last feature map ------------------------------------------------------------------------------------

# Of timm's smallest networks: the module, and what makes the features of its output.
MAPS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Tensor] | None]] = {
    "test_resnet": ("layer4", lambda network, maps: maps.mean(dim=(2, 3))),
    "test_convnext": ("norm_pre", lambda network, maps: network.forward_head(maps, pre_logits=True)),  # type: ignore[operator]
    "test_efficientnet": ("bn2", lambda network, maps: maps.mean(dim=(2, 3))),
    "test_vit2": ("norm", lambda network, tokens: network.forward_head(tokens, pre_logits=True)),  # type: ignore[operator]
    # Features are the class token: behind the last attention they depend on nothing else.
    "test_vit": ("blocks.5.norm1", None),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_cam_module_is_the_last_spatial_one_that_features_depend_on(name: str) -> None:
    classifier = timm_classifier(name, False, None, None, [], [], "imagenet", "imagenet")
    module, made = MAPS[name]
    assert classifier.cam_module == module and hooks_in(classifier) == 0
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    response, result = classifier.forward_with_activations(images.requires_grad_(), [module])
    maps, features = result[module], response.features
    assert features is not None and maps.ndim in (3, 4) and flatten_spatial(maps).shape[1] == features.shape[1]
    slope = torch.autograd.grad(features[0, 0], maps)[0]
    assert (flatten_spatial(slope)[0] != 0).any(dim=0).sum() > 1, "at more than one position"
    if made is not None:
        torch.testing.assert_close(made(classifier.network, maps), features)


def test_shipped_networks_end_in_a_map_that_is_averaged() -> None:
    for name in SHIPPED_CLASSIFIERS:
        classifier = load_shipped(name)
        assert classifier.cam_module == "layer4"
        response, result = classifier.forward_with_activations(torch.rand(2, 3, 64, 64), ["layer4"])
        torch.testing.assert_close(result["layer4"].mean(dim=(2, 3)), response.features)


def test_the_cam_module_of_a_user_network() -> None:
    assert wrap(small()).cam_module == "1", "after the ReLU; the pooling has one position"
    assert wrap(linear()).cam_module is None, "flattened pixels have no spatial dimensions"
    assert wrap(lambda x: linear()(x)).cam_module is None
    no_features = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert wrap(no_features).cam_module is None and wrap(no_features).head is None
    wide = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert wrap(wide).cam_module == "1", "its features are all of its values"


def test_a_zero_feature_does_not_hide_the_cam_module() -> None:
    network = nn.Sequential(*small()[:4], nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        network[4].get_parameter("bias").copy_(torch.tensor([-100.0, 100.0, -100.0, 100.0, 100.0]))
    assert wrap(network).cam_module == "1"


def test_positions_are_the_last_dimension() -> None:
    maps, tokens = torch.rand(2, 5, 3, 3), torch.rand(2, 7, 5)
    assert torch.equal(flatten_spatial(maps), maps.flatten(2)) and torch.equal(
        flatten_spatial(tokens), tokens.transpose(1, 2)
    )


@pytest.mark.parametrize("name", SHIPPED_CLASSIFIERS)
def test_shipped_classifiers_predict_the_planted_classes(name: str) -> None:
    classifier = load_shipped(name)
    assert classifier.labels == planted.CLASSES and classifier.domain == "planted" and classifier.size == 64
    with torch.no_grad():
        shape = classifier.network.forward_features(torch.zeros(1, 3, 64, 64)).shape
    assert shape[-2:] == (8, 8) and sum(p.numel() for p in classifier.parameters()) < 1e6


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_read_every_factor(name: str) -> None:
    oracle = load_oracle(name)
    scenes = planted.sample_scenes(300, planted.SPLIT_SEEDS["test"], start=5000)
    images = planted.render(scenes).image
    predictions = oracle.predict(images)
    prop = torch.where(scenes.prop == planted.ABSENT, len(planted.PROPS), scenes.prop)
    truth = {"class": scenes.label, "background": scenes.background, "prop": prop, "hue": scenes.hue}
    assert list(oracle.heads) == list(truth) and oracle.heads["prop"][-1] == "none"
    right = {head: (predictions[head].argmax(1) == truth[head]).double().mean().item() for head in truth}
    assert min(right.values()) > 0.96, right
    assert oracle.features(images[:2]).shape[0] == 2


def test_oracles_are_of_different_families() -> None:
    assert len({type(load_oracle(name).classifier.network) for name in ORACLES}) == 2


def test_a_missing_folder_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="planted_clean"):
        load_shipped("nowhere")


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "models/pretrained/classifiers/planted_clean", tmp_path / "c")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"classifier\.path=.*cannot be loaded"):
        load_shipped(folder)


@needs_cifar10
def test_published_resnet20_on_cifar10() -> None:
    classifier = cifar10_resnet(str(CIFAR10), 20, SHA20)
    images, labels, _ = cifar10.read_split(CIFAR10, "test")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:500]
    with torch.no_grad():
        response = classifier(images[rows].float() / 255)
    accuracy = (response.logits.argmax(1) == labels[rows]).double().mean().item()
    assert 0.74 < accuracy < 0.88, accuracy
    assert torch.allclose(classifier.network.linear(response.features), response.logits)
    assert classifier.labels == cifar10.CLASSES and classifier.domain == "cifar10"


@needs_cifar10
def test_another_file_is_refused() -> None:
    with pytest.raises(UserError, match="SHA-256"):
        cifar10_resnet(str(CIFAR10 / "resnet32-d509ac18.th"), 20, SHA20)


def test_a_missing_checkpoint_names_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fetch_weights\.py fetch cifar10_resnet20.*python run\.py") as caught:
        cifar10_resnet(str(tmp_path), 20, SHA20)
    assert "resnet20-12fca82f.th" in str(caught.value)


def test_an_unreachable_hub_names_the_command_that_gets_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classifier_lens.models.hub.try_to_load_from_cache", lambda *_, **__: None)
    session = type("Session", (), {"head": lambda *_, **__: (_ for _ in ()).throw(ConnectionError())})
    monkeypatch.setattr("classifier_lens.models.hub.get_session", session)
    name = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    with pytest.raises(UserError, match=r"fetch_weights\.py fetch timm/vit_base\S+@1c30cbc`.*python run\.py"):
        timm_classifier(name, True, "1c30cbc", None, [], [], "imagenet", "imagenet")


def test_unknown_timm_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"no such model; nearest are .*resnet18"):
        timm_classifier("resnet1", False, None, None, [], [], "imagenet", "imagenet")
    with pytest.raises(UserError, match="nope"):
        timm_classifier("resnet18.nope", True, None, None, [], [], "imagenet", "imagenet")


def test_the_number_of_labels_of_timm_has_to_match() -> None:
    with pytest.raises(UserError, match="output size 1000 does not match its 2 labels"):
        timm_classifier("test_resnet", False, None, None, [], [], ["a", "b"], "imagenet")


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "w.pt")
    classifier = timm_classifier("test_resnet", True, None, str(tmp_path / "w.pt"), [], [], ["a", "b"], "imagenet")
    data = timm.data.resolve_model_data_config(classifier.network)
    assert classifier.size == data["input_size"][-1]
    assert classifier.mean.flatten().tolist() == pytest.approx(data["mean"])
    with pytest.raises(UserError, match="no such file"):
        timm_classifier("test_resnet", True, None, str(tmp_path / "none.pt"), [], [], ["a", "b"], "imagenet")
    (tmp_path / "bad.pt").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        timm_classifier("test_resnet", True, None, str(tmp_path / "bad.pt"), [], [], ["a", "b"], "imagenet")


def test_random_weights_are_the_same_in_every_run() -> None:
    first, second = (
        timm_classifier("test_resnet", False, None, None, [], [], "imagenet", "imagenet") for _ in range(2)
    )
    assert first.digest == second.digest


def test_imagenet_labels_are_1000_different_names() -> None:
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[2], labels[134], labels[517], labels[888]) == (
        "great white shark", "crane bird", "construction crane", "viaduct",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a", "b"}, "labels: is a set"),
        ({0: "a", 1: "b"}, "labels: is a dict"),
        (b"ab", "labels: is a bytes"),
        (3, "labels: is a int"),
        (["a", None], r"labels\[1\]=None: is not a name"),
        (["a", " "], r"labels\[1\]= : is not a name"),
        ([["a"], ["b"]], r"labels\[0\]=\['a'\]: is not a name"),
    ],
)
def test_labels_that_are_not_a_list_of_names_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"classifier.{message}.*expected a list of names, in the order") as caught:
        read_labels(labels)
    assert "\n" not in str(caught.value)


def test_labels_of_every_kind_of_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crab\n")
    assert read_labels(tmp_path / "names.txt") == ("crab",)
    kinds: list[Any] = [np.array(["crab", "7"]), ("crab ", 7), [" crab", np.int64(7)], ("crab", "7")]
    for labels in kinds:
        assert read_labels(labels) == ("crab", "7")


def test_labels_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classifier\.labels=.*none\.txt"):
        read_labels(str(tmp_path / "none.txt"))


def test_a_user_network_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/reference/classifiers.md").read_text()
    module, python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    command = next(block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "my_network.py" in block)
    monkeypatch.chdir(tmp_path)
    Path("my_network.py").write_text(module)
    Path("names.txt").write_text("\n".join(planted.CLASSES) + "\n")
    values: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(python, values)
    overrides = OmegaConf.from_dotlist([word for word in command.split() if word.startswith("classifier.")])
    cfg = OmegaConf.merge(
        {"domain": "planted", "classifier": OmegaConf.load(ROOT / "conf/classifier/callable.yaml")}, overrides
    )
    torch.manual_seed(0)
    built = instantiate(cfg.classifier, _convert_="all")
    image = torch.rand(2, 3, 64, 64)
    assert built.labels == planted.CLASSES and built.digest == values["classifier"].digest
    assert torch.equal(built(image).logits, values["classifier"](image).logits)


def test_callables_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
def load(): return network
def answer(images): return network(images)
"""
    (tmp_path / "someones_networks.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    image = torch.rand(1, 3, 8, 8)
    kinds = [
        callable_classifier(f"someones_networks:{name}", ["a", "b"], 8, [0] * 3, [1] * 3, "bilinear", "planted")
        for name in ("network", "load", "answer")
    ]
    assert len({tuple(kind(image).logits[0].tolist()) for kind in kinds}) == 1
    assert all(torch.equal(kind(image).features, image.flatten(1)) for kind in kinds[:2])
    assert kinds[2](image).features is None, "a plain function does not show what its last layer reads"
    for target, message in (
        ("someones_networks", "allowed are module:name"),
        ("nowhere:x", "cannot import nowhere"),
        ("someones_networks:none", "has no callable none"),
        ("missing.py:x", "cannot import missing.py"),
    ):
        with pytest.raises(UserError, match=message):
            callable_classifier(target, ["a", "b"], 8, [0] * 3, [1] * 3, "bilinear", "planted")


@pytest.mark.parametrize("option", sorted(path.stem for path in (ROOT / "conf/classifier").glob("*.yaml")))
def test_every_option_binds_its_loader(option: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("config", overrides=[f"classifier={option}"]).classifier
    keys = {str(key) for key in cfg} - {"_target_"}
    assert keys == set(inspect.signature(get_method(cfg._target_)).parameters)


SAID_IN_HEADS = {
    "license": "icense|Apache-2.0|CC-BY|MIT|BSD",
    "input size": r"\d px",
    "labels": "abels",
    "accuracy": "ccurac| %",
    "figure": "Fig\\.|figure",
}


@pytest.mark.parametrize("option", sorted(path.stem for path in (ROOT / "conf/classifier").glob("*.yaml")))
def test_every_option_begins_with_a_description(option: str) -> None:
    text = (ROOT / f"conf/classifier/{option}.yaml").read_text()
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert not [message for message, pattern in SAID_IN_HEADS.items() if not re.search(pattern, head)]
