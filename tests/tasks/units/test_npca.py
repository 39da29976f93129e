"""Neural PCA against scikit-learn's, and which components are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import Head, UserError
from classifier_lens.tasks.units import activation_ranking
from classifier_lens.tasks.units.npca import Components, check_component, class_components, parse_components
from tests.conftest import SHARED
from tests.tasks.tiny import NAMES, SIDE, Maps, Pictures, cache_in, classifier_of, noise, plain

PUBLISHED = SHARED / "spurious_imagenet" / "spurious_components.json"
NOTHING_KEPT = TensorCache(None)


def psi(network: Maps, label: str, dataset: Pictures) -> Tensor:
    """w_k ∘ φ(x) of the class's pictures, in double precision: (n, f)."""
    images = torch.stack([dataset[i].image for i in dataset.indices(label)])
    features = classifier_of(network)(images).features
    return features.double() * network.head.weight[NAMES.index(label)].double()


@pytest.mark.parametrize("label", NAMES)
@pytest.mark.parametrize("count", [90, 7])
def test_they_are_scikit_learns_up_to_their_sign(label: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 90 pictures, 30 of them of the class; and with 7, fewer than features, where variance can only be 0."""
    monkeypatch.setattr(activation_ranking, "BATCH_SIZE", 8)
    network, dataset = Maps(), noise(count)
    own = class_components(classifier_of(network), label, dataset, SIDE, NOTHING_KEPT)
    assert own.vectors.dtype == own.variance.dtype == torch.double
    matrix = psi(network, label, dataset).numpy()
    theirs = PCA(svd_solver="full").fit(matrix)
    full = min(matrix.shape)
    np.testing.assert_allclose(own.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(own.variance[:full], theirs.explained_variance_, rtol=1e-4, atol=1e-14)
    np.testing.assert_allclose(own.variance[full:], 0, atol=1e-14)
    kept = min(matrix.shape[0] - 1, matrix.shape[1])  # beyond it the directions are anybody's choice
    signs = np.sign((own.vectors[:kept].numpy() * theirs.components_[:kept]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(own.vectors[:kept], signs * theirs.components_[:kept], atol=1e-5)
    # ⟨1, v⟩⟨ψ − mean, v⟩ has v twice: its sign does not matter.
    scores = theirs.components_.sum(axis=1) * theirs.transform(matrix)
    images = torch.stack([dataset[i].image for i in dataset.indices(label)])
    found = own.contributions(classifier_of(network)(images).features.double())
    np.testing.assert_allclose(found[:, :kept], scores[:, :kept], rtol=1e-4, atol=1e-8)


def test_features_that_are_not_finite_are_told() -> None:
    """No decomposition of them ends, and no component follows."""
    network = Maps()
    classifier, bias = classifier_of(network), network.maps.bias
    assert bias is not None
    bias.data[1] = torch.nan
    with pytest.raises(UserError, match="fails on the training image x2 .the features of 'urn': not finite."):
        class_components(classifier, "urn", noise(60), SIDE, NOTHING_KEPT)


def test_vectors_are_orthonormal_point_to_the_sum_and_fall_in_variance() -> None:
    own = class_components(classifier_of(Maps()), "urn", noise(60), SIDE, NOTHING_KEPT)
    torch.testing.assert_close(own.vectors @ own.vectors.T, torch.eye(4, dtype=torch.double))
    assert (own.vectors.sum(dim=1) >= 0).all()
    assert (own.variance.diff() <= 0).all() and (own.variance >= 0).all()


@pytest.mark.parametrize("label", NAMES)
@pytest.mark.parametrize("count", [60, 7])
def test_all_contributions_sum_to_the_logit_without_its_bias_and_its_mean(label: str, count: int) -> None:
    """Of any picture, whatever its class, also where the class has fewer pictures than there are features."""
    network, dataset = Maps(), noise(count)
    classifier = classifier_of(network)
    own = class_components(classifier, label, dataset, SIDE, NOTHING_KEPT)
    k, images = NAMES.index(label), torch.stack([e.image for e in noise(10, seed=5).examples])
    response = classifier(images)
    logits = response.logits[:, k] - network.head.bias[k]
    mean = psi(network, label, dataset).sum(dim=1).mean().float()
    torch.testing.assert_close(own.contributions(response.features).sum(dim=1), logits - mean, rtol=1e-4, atol=1e-5)


def test_their_mean_over_the_class_is_zero_and_their_variance_is_known() -> None:
    network, dataset = Maps(), noise(60)
    own = class_components(classifier_of(network), "viaduct", dataset, SIDE, NOTHING_KEPT)
    images = torch.stack([dataset[i].image for i in dataset.indices("viaduct")])
    found = own.contributions(classifier_of(network)(images).features.double())
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(4, dtype=torch.double), rtol=0, atol=1e-7)
    expected = own.vectors.sum(dim=1).abs() * own.variance.sqrt()
    torch.testing.assert_close(found.std(dim=0), expected, rtol=1e-4, atol=1e-9)


def test_a_contribution_by_hand() -> None:
    """w = (2, 1), mean ψ = (1, 1), v = (0.6, 0.8) and (0.8, −0.6): φ = (1, 3) has ψ − mean = (1, 2)."""
    vectors = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    own = Components(torch.tensor([2.0, 1.0]), torch.ones(2), vectors, torch.ones(2))
    found = own.contributions(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.4 * 2.2, 0.2 * -0.4], [0.0, 0.0]]))


def test_only_the_classs_own_pictures_count() -> None:
    few = noise(30)
    own = class_components(classifier_of(Maps()), "urn", few, SIDE, NOTHING_KEPT)
    urns = [few[i].image for i in few.indices("urn")]
    alone = class_components(classifier_of(Maps()), "urn", Pictures(urns, ["urn"] * len(urns)), SIDE, NOTHING_KEPT)
    torch.testing.assert_close(own.mean, alone.mean)
    torch.testing.assert_close(own.variance, alone.variance)


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    network, cache = Maps(), cache_in(tmp_path)
    classifier = classifier_of(network)
    first = class_components(classifier, "urn", noise(12), SIDE, cache)
    network.calls = 0
    second = class_components(classifier, "urn", noise(12), SIDE, cache)
    assert network.calls == 0
    assert all(torch.equal(value, getattr(second, name)) for name, value in vars(first).items())
    class_components(classifier, "urn", noise(12, digest="others"), SIDE, cache)
    assert network.calls, "another data set"
    network.calls = 0
    class_components(classifier, "viaduct", noise(12), SIDE, cache)
    assert network.calls, "another class"


def test_the_same_name_for_another_output_is_another_class(tmp_path: Path) -> None:
    cache, dataset = cache_in(tmp_path), noise(12)
    first, turned = (classifier_of(Maps(), labels) for labels in (NAMES, NAMES[::-1]))
    assert first.digest == turned.digest and turned.head is not None
    weight = turned.head.weight[0].double()
    class_components(first, "urn", dataset, SIDE, cache)
    assert torch.equal(class_components(turned, "urn", dataset, SIDE, cache).weight, weight)


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_needs_two_pictures(count: int) -> None:
    dataset = noise(6, labels=["viaduct"]) if count == 0 else noise(2, labels=["viaduct", "urn"])
    with pytest.raises(UserError, match=rf"task\.components: .* {count} images of 'urn'; at least 2") as caught:
        class_components(classifier_of(Maps()), "urn", dataset, SIDE, NOTHING_KEPT)
    assert "\n" not in str(caught.value)


def test_a_classifier_without_a_last_layer_has_none() -> None:
    for ask in (
        lambda: class_components(classifier_of(plain), "urn", noise(6), SIDE, NOTHING_KEPT),
        lambda: parse_components({"urn": [0]}, classifier_of(plain)),
    ):
        with pytest.raises(UserError, match="has no known last linear layer"):
            ask()


# --- which components are asked for --------------------------------------------------------------------------


def test_classes_by_name_or_position() -> None:
    spec = {"urn": [3, 0], "Viaduct": [1], "0": [2]}
    expected = [("urn", 3), ("urn", 0), ("viaduct", 1), ("rock crab", 2)]
    assert parse_components(spec, classifier_of(Maps())) == expected
    assert parse_components({0: [2]}, classifier_of(Maps())) == [("rock crab", 2)]  # type: ignore[dict-item]


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "components.json"
    path.write_text(json.dumps({"urn": [3], "1": [0]}))
    assert parse_components(str(path), classifier_of(Maps())) == [("urn", 3), ("viaduct", 0)]


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="../shared/data/spurious_imagenet is not there")
def test_the_published_components_of_imagenet_can_be_read() -> None:
    class Thousand(nn.Module):
        labels = tuple(f"class {i}" for i in range(1000))
        head = Head(torch.zeros(1000, 2048), torch.zeros(1000))

    pairs = parse_components(str(PUBLISHED), Thousand())  # type: ignore[arg-type]
    published = json.loads(PUBLISHED.read_text())
    assert len(pairs) == sum(map(len, published.values())) > 0
    assert {f"class {k}" for k in published} == {label for label, _ in pairs}
    assert ("class 738", 6) in pairs and all(0 <= number < 128 for _, number in pairs)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"urns": [0]}, "task.components=urns: no class of the classifier; nearest are urn"),
        ({"3": [0]}, "task.components=3: no class"),
        ({"urn": [0, 4]}, "task.components={urn: [4]}: allowed are 0 … 3"),
        ({"urn": [-1]}, "task.components={urn: [-1]}: allowed are 0 … 3"),
        ({"urn": ["first"]}, "task.components={urn: [first]}: allowed are 0 … 3"),
        ({"urn": 2}, "task.components={urn: 2}: allowed are lists of numbers"),
        ([3], "task.components=[3]: allowed are {class name or index: [numbers]}"),
        ("nowhere.json", "task.components=nowhere.json: No such file"),
    ],
)
def test_others_are_refused_in_one_line(spec: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_components(spec, classifier_of(Maps()))  # type: ignore[arg-type]
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "components.json"
    for text, said in (("{urn", "cannot be read"), ("[1, 2]", "allowed are {class name or index")):
        path.write_text(text)
        with pytest.raises(UserError, match=said) as caught:
            parse_components(str(path), classifier_of(Maps()))
        assert "\n" not in str(caught.value)


# --- the rank ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pictures", "rank"), [(2, 1), (3, 2), (9, 4)])
def test_there_are_as_many_components_as_the_pictures_can_vary(tmp_path: Path, pictures: int, rank: int) -> None:
    """n pictures vary in n − 1 directions, and no more than there are features."""
    data = noise(pictures, labels=["urn"])
    own = class_components(classifier_of(Maps()), "urn", data, SIDE, cache_in(tmp_path))
    assert own.rank == rank and all(own.std(number) > 0 for number in range(rank))
    check_component("urn", rank - 1, own)
    if rank < 4:
        with pytest.raises(
            UserError, match=rf"urn: \[{rank}\]\}}: only {rank} components vary .*; allowed are 0 … {rank - 1}"
        ):
            check_component("urn", rank, own)


def test_equal_pictures_have_no_component(tmp_path: Path) -> None:
    data = Pictures([noise(1)[0].image] * 5, ["urn"] * 5)
    own = class_components(classifier_of(Maps()), "urn", data, SIDE, cache_in(tmp_path))
    with pytest.raises(UserError, match=r"only 0 components vary .*; allowed are none"):
        check_component("urn", 0, own)
