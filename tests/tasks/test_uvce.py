"""Which problems the task poses, in each of its modes, and what is reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from classifier_lens.data.planted import CLASSES, PlantedDataset
from classifier_lens.models.captioner.captioner import TemplateCaptioner
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.protocols import Classifier, Embedder, TaskInputs
from classifier_lens.runner.types import CaptionEdit, Example, Scene, UserError
from classifier_lens.tasks.analysis.predictions import confidences_by_stage
from classifier_lens.tasks.analysis.success import prediction_success
from classifier_lens.tasks.problems.counterfactual_problems import MODES, CounterfactualProblem, clip_of
from classifier_lens.tasks.problems.problem_names import problem_seed
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.uvce import Uvce
from tests.conftest import Identity, TinyClassifier, initialize, reference_of, uvce
from tests.tasks.tiny import Pictures, result_images

WEIGHTS = {"class_log_prob": 1.0, "latent_distance": 25.0, "pixel_distance": 250.0}


class Given(Pictures):
    """A data set of these examples."""

    def __init__(self, *examples: Example) -> None:
        self.examples = list(examples)
        self.labels: tuple[str, ...] = tuple(sorted({example.label for example in examples}))
        self.digest = "given"


def example(label: str, caption: str | None = None, name: str = "mine", seed: int = 0, side: int = 16) -> Example:
    draw = torch.Generator().manual_seed(seed)
    return Example(name, torch.rand(3, side, side + 4, generator=draw).clone, label, caption)


class Sized(Identity):
    resolution = 16


def pose(
    task: Uvce, dataset: Any, seed: int = 0, limit: int | None = None, classifier: Classifier | None = None
) -> tuple[list[CounterfactualProblem], int | None]:
    return task.problems(TaskInputs(dataset, classifier or TinyClassifier(), Sized(), seed, limit))


def top_class(example: Example) -> int:
    """What the tiny classifier calls the middle of a picture, as the task shows it."""
    return int(TinyClassifier()(example.image[None, :, :, 2:-2]).logits.argmax())


# --- to another class ----------------------------------------------------------------------------------------


def test_one_problem_per_picture_in_the_data_sets_order() -> None:
    data = PlantedDataset("test", 8, 0, "independent", None)
    problems, total = pose(uvce(), data)
    assert total == 8 and [p.name for p in problems] == [
        f"{data[i].name}-{CLASSES[p.target].replace(' ', '-')}" for i, p in enumerate(problems)
    ]
    for i, problem in enumerate(problems):
        assert problem.image is not None and problem.image.shape == (3, 16, 16)
        assert CLASSES[problem.source] == data[i].label and problem.image_name == data[i].name
        assert problem.label_index == problem.source
        assert data.nearest_class(data[i].label) == CLASSES[problem.target]
        assert problem.edit.source == data[i].caption
        assert problem.edit.source.replace(problem.edit.source_words, "X") == problem.edit.target.replace(
            problem.edit.target_words, "X"
        )
    assert len({p.seed for p in problems}) == 8


def test_a_limit_takes_the_first_and_still_counts_all() -> None:
    data = PlantedDataset("test", 8, 0, "independent", None)
    everything, total = pose(uvce(target="all"), data)
    some, same_total = pose(uvce(target="all"), data, limit=13)
    assert total == same_total == len(everything) == 8 * 9 and len(some) == 13
    assert [p.name for p in some] == [p.name for p in everything[:13]]
    assert len({p.name for p in everything}) == 72 and all(p.source != p.target for p in everything)


def test_only_pictures_within_the_limit_are_looked_at() -> None:
    class Watched(Given):
        def __getitem__(self, i: int) -> Example:
            assert i == 0, "a large data set must not be decoded"
            return super().__getitem__(i)

    problems, total = pose(uvce(target="viaduct"), Watched(*[example("rock crab")] * 1000), limit=1)
    assert len(problems) == 1 and total == 1000


def test_seeds_draw_others() -> None:
    data = PlantedDataset("test", 4, 0, "independent", None)
    seeds = [{p.seed for p in pose(uvce(), data, seed)[0]} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("rule", ["confusion", "random", "viaduct", "all"])
def test_a_label_may_be_written_in_any_case(rule: str) -> None:
    problems, _ = pose(uvce(target=rule), Given(example("Rock Crab")))
    assert {CLASSES[p.source] for p in problems} == {"rock crab"}
    assert all(p.target != p.source for p in problems)
    assert problems[0].edit.target == f"a photograph of a {CLASSES[problems[0].target]}"


def test_confusion_is_of_the_picture_as_the_generator_shows_it() -> None:
    wide = example("rock crab")
    order = TinyClassifier()(wide.image[None, :, :, 2:-2]).logits[0].argsort(descending=True).tolist()
    strongest = next(k for k in order if CLASSES[k] != "rock crab")
    assert [p.target for p in pose(uvce(target="confusion"), Given(wide))[0]] == [strongest]


def test_bad_labels_and_targets_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.label=rock carb.*nearest are rock crab"):
        pose(uvce(target="viaduct"), Given(example("rock carb")))
    with pytest.raises(UserError, match=r"task\.target=lifebat.*lifeboat"):
        pose(uvce(target="lifebat"), Given(example("rock crab")))
    with pytest.raises(UserError, match="already"):
        pose(uvce(target="rock crab"), Given(example("ROCK crab")))
    with pytest.raises(UserError, match=r"task\.target=nearest"):
        pose(uvce(target="nearest"), Given(example("rock crab")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "colour"}, r"task\.mode=colour: allowed are class, error, attribute"),
        ({"class_name_prompt": "a {lable}"}, r"a \{lable\}.*allowed fields are \{article\} and \{label\}"),
    ],
    ids=["mode", "prompt"],
)
def test_bad_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pose(uvce(target="viaduct", **changes), Given(example("rock crab")))
    assert "\n" not in str(caught.value)


def test_the_claim_is_the_targets_own_picture() -> None:
    """What the generator draws of the target's name alone, and the class that it should have."""
    for problem in pose(uvce(target="all", class_name_prompt="{article} {label}, drawn"), Given(example("rock crab")))[
        0
    ]:
        assert problem.prompt_check == (f"a {CLASSES[problem.target]}, drawn", problem.target)


# --- seeds, preserve and mask --------------------------------------------------------------------------------


def test_several_seeds_ask_the_same_and_begin_elsewhere() -> None:
    data = PlantedDataset("test", 3, 0, "independent", None)
    once, _ = pose(uvce(), data)
    problems, total = pose(uvce(num_seeds=3), data)
    assert total == len(problems) == 9
    assert [p.name for p in problems] == [f"{p.name}-{k}" for p in once for k in range(3)]
    assert len({p.seed for p in problems}) == 9 and [p.seed for p in problems[::3]] == [p.seed for p in once]
    for i, problem in enumerate(problems):
        assert (problem.target, problem.image_name) == (once[i // 3].target, once[i // 3].image_name)


def test_questions_have_seeds_of_their_own() -> None:
    seeds = [problem_seed(seed, i, k) for seed in range(5) for i in range(200) for k in range(5)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("preserve", ["background", "foreground", "all", "none"])
def test_what_is_to_be_kept_is_said_of_every_problem(preserve: str) -> None:
    assert {
        p.preserve for p in pose(uvce(preserve=preserve), PlantedDataset("test", 2, 0, "independent", None))[0]
    } == {preserve}


def test_a_mask_that_the_user_drew_belongs_to_every_problem(tmp_path: Path) -> None:
    drawn = np.zeros((16, 16), dtype=np.uint8)
    drawn[2:5, 3:9] = 255
    Image.fromarray(drawn).save(tmp_path / "m.png")
    problems, _ = pose(uvce(target="all", mask=str(tmp_path / "m.png")), Given(example("rock crab")))
    for problem in problems:
        assert problem.mask is not None and torch.equal(problem.mask, torch.from_numpy(drawn)[None] / 255)
    assert all(p.mask is None for p in pose(uvce(target="all"), Given(example("rock crab")))[0])


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("L", (16, 17)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"task\.mask=.*m\.png: 16 x 17 pixels; expected .* 16 x 16 pixels"):
        pose(uvce(target="viaduct", mask=str(tmp_path / "m.png")), Given(example("rock crab")))


# --- from an error to the truth ------------------------------------------------------------------------------


def test_only_errors_are_asked_about_and_their_target_is_the_truth() -> None:
    pictures = [example("rock crab", name=f"x{i}", seed=i) for i in range(12)]
    shown = [top_class(picture) for picture in pictures]
    right = Example("right", pictures[3].load, CLASSES[shown[3]])
    problems, total = pose(uvce(mode="error"), Given(right, *pictures))
    wrong = [(p, k) for p, k in zip(pictures, shown, strict=True) if CLASSES[k] != "rock crab"]
    assert total is None, "how many errors there are is not known before all pictures were looked at"
    assert [p.image_name for p in problems] == [p.name for p, _ in wrong] and wrong
    for problem, (_, called) in zip(problems, wrong, strict=True):
        assert (problem.source, CLASSES[problem.target]) == (called, "rock crab")
        assert problem.label_index == called, "that the truth is not predicted is what is asked about"
        assert problem.edit == CaptionEdit.unchanged("a photograph of a rock crab", "rock crab"), "no word changes"
        assert problem.prompt_check == ("a photograph of a rock crab", problem.target)
        assert problem.name == f"{problem.image_name}-rock-crab"


def test_an_error_injects_no_maps_and_leaves_the_blending_to_the_generator() -> None:
    assert uvce(mode="error").prompt_to_prompt == {"cross_replace_steps": [0.0]}
    assert uvce().prompt_to_prompt == uvce(mode="attribute").prompt_to_prompt == {}


GROUNDS = {phrase: example("x", seed=i).image[:, :, 2:-2] for i, phrase in enumerate(("on sand", "in snow"))}


class Grounds(Sized):
    """Draws a picture of sand and one of snow."""

    fingerprint = "grounds"

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.stack([GROUNDS[prompt[-7:]] for prompt in prompts])


def test_an_error_may_start_with_the_ground_on_which_the_classifier_is_surest_of_the_truth() -> None:
    pictures = [example("rock crab", "an image of a rock crab on sand", f"x{i}", i) for i in range(12)]
    wrong = next(p for p in pictures if CLASSES[top_class(p)] != "rock crab")
    own, shares = CLASSES.index("rock crab"), {}
    for phrase, picture in GROUNDS.items():
        shares[phrase] = TinyClassifier()(picture[None]).logits.log_softmax(dim=-1)[0, own].item()
    best = max(shares, key=lambda phrase: shares[phrase])
    searched = ContextSearch([["on sand", "in snow"]], False, 2, "a photograph of {phrase}")
    found, _ = uvce(mode="error", context_search=searched).problems(
        TaskInputs(Given(wrong), TinyClassifier(), Grounds(), 0, None)
    )
    assert found[0].edit.target == f"an image of a rock crab {best}" and shares["on sand"] != shares["in snow"]
    assert found[0].words_to_segment == "rock crab", "the mask shows the object, whatever words change"


def test_a_limit_counts_errors() -> None:
    pictures = [example("rock crab", name=f"x{i}", seed=i) for i in range(12)]
    all_of_them, _ = pose(uvce(mode="error"), Given(*pictures))
    some, _ = pose(uvce(mode="error"), Given(*pictures), limit=2)
    assert [p.name for p in some] == [p.name for p in all_of_them[:2]]


def test_no_errors_are_said_in_one_line() -> None:
    picture = example("x")
    right = Example("right", picture.load, CLASSES[top_class(picture)])
    with pytest.raises(UserError, match=r"task\.mode=error: none of the 1 images has a target in this mode"):
        pose(uvce(mode="error"), Given(right))


# --- to another attribute ------------------------------------------------------------------------------------


class Weather:
    """An embedder that knows two phrases: blue pictures are of the first, red ones of the second."""

    fingerprint, logit_scale = "weather", 4.0

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean(dim=(2, 3))[:, [2, 0]], dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(phrase in text.lower()) for phrase in ("in snow", "on sand")] for text in texts])


class ZeroShot(TinyClassifier):
    """A classifier that has an embedder."""

    clip: Embedder = Weather()


def coloured(red: float, blue: float) -> Tensor:
    return torch.tensor([red, 0.0, blue])[:, None, None].expand(3, 16, 16)


SNOW = "a photograph of a viaduct In Snow at noon"


def test_only_captions_with_the_phrase_are_asked_about() -> None:
    data = Given(
        example("viaduct", SNOW, "a"), example("viaduct", "a viaduct in rain", "b"), example("viaduct", SNOW, "c")
    )
    problems, total = pose(uvce(mode="attribute"), data, classifier=ZeroShot())
    assert [p.name for p in problems] == ["a-on-sand", "c-on-sand"] and total is None
    for problem in problems:
        assert problem.edit == CaptionEdit(SNOW, "a photograph of a viaduct on sand at noon", "in snow", "on sand")
        assert (problem.source, problem.target, problem.prompt_check) == (0, 1, None)
        assert problem.label_index == CLASSES.index("viaduct")
    with pytest.raises(UserError, match=r"task\.mode=attribute: none of the 1 images"):
        pose(uvce(mode="attribute"), Given(example("viaduct", "a viaduct in rain")), classifier=ZeroShot())


def test_an_attribute_needs_a_classifier_with_texts() -> None:
    assert clip_of(ZeroShot()) is ZeroShot.clip
    with pytest.raises(UserError, match=r"task\.mode=attribute: needs a zero-shot classifier"):
        clip_of(TinyClassifier())


@pytest.mark.parametrize(("temperature", "used"), [(None, 1 / 4.0), (0.5, 0.5)])
def test_an_attribute_is_a_softmax_over_the_two_prompts(temperature: float | None, used: float) -> None:
    task = uvce(mode="attribute", temperature=temperature)
    problems, _ = pose(task, Given(example("viaduct", SNOW)), classifier=ZeroShot())
    weight, term = task.objective(problems, reference_of(1), ZeroShot())["class_log_prob"]
    image = coloured(0.6, 0.8)[None]  # similarities 0.8 to the source and 0.6 to the target
    expected = -torch.log_softmax(torch.tensor([0.8, 0.6]) / used, 0)[1]
    assert weight == 1.0 and term(Scene(image, image, image[:, None])).tolist() == pytest.approx([expected.item()])

    pictures = result_images(coloured(0.6, 0.8), coloured(1.0, 0.0), coloured(0.0, 1.0))
    found = task.measure(problems[0], pictures, ZeroShot())
    shares = [torch.softmax(torch.tensor(s) / used, 0).tolist() for s in ([0.8, 0.6], [1.0, 0.0], [0.0, 1.0])]
    before, start, after = (pytest.approx({"in snow": s[0], "on sand": s[1]}) for s in shares)
    assert found == {
        "success": True, "success_start": False, "source": "in snow", "target": "on sand",
        "criterion": f"predicted as the target, on sand ({shares[2][1]:.2f})",
        "predicted_before": "in snow", "predicted_start": "in snow", "predicted_after": "on sand",
        "confidence_before": before, "confidence_start": start, "confidence_after": after,
    }  # fmt: skip


def test_an_attribute_that_stays_is_no_success() -> None:
    task = uvce(mode="attribute")
    (problem,), _ = pose(task, Given(example("viaduct", SNOW)), classifier=ZeroShot())
    pictures = result_images(coloured(0.0, 1.0), coloured(0.6, 0.8), coloured(1.0, 0.0))
    found = task.measure(problem, pictures, ZeroShot())
    assert found["success"] is False and found["predicted_after"] == "in snow"
    assert found["success_start"] is True and found["predicted_start"] == "on sand"


# --- what every mode has in common ---------------------------------------------------------------------------


def test_there_is_a_kind_of_question_for_every_mode() -> None:
    assert set(MODES) == {"class", "error", "attribute"}
    for mode in MODES:
        assert uvce(mode=mode).captioner is not None


def test_the_objective_has_the_three_weighted_terms(
    make_generator: Callable[..., LatentDiffusion], make_problems: Callable[[int], list[CounterfactualProblem]]
) -> None:  # fmt: skip
    problems = make_problems(2)
    generator = make_generator()
    start = initialize(generator, problems)
    objective = uvce().objective(problems, start.reference, TinyClassifier())
    assert {name: weight for name, (weight, _) in objective.items()} == WEIGHTS
    scene = generator(start.controls, start.context)[-1]
    for _, term in objective.values():
        assert term(scene).shape == (2,) and (term(scene) >= 0).all()


def test_what_is_measured() -> None:
    (problem,), _ = pose(uvce(target="viaduct"), Given(example("rock crab")))
    draw = torch.Generator().manual_seed(3)
    original, best = torch.rand(2, 3, 16, 16, generator=draw)
    before, start, after = TinyClassifier()(torch.stack([original, 1 - best, best])).logits.softmax(dim=1)
    found = dict[str, Any](uvce().measure(problem, result_images(original, best, 1 - best), TinyClassifier()))
    assert (found["source"], found["target"]) == ("rock crab", "viaduct")
    assert found["predicted_before"] == CLASSES[int(before.argmax())]
    assert found["predicted_start"] == CLASSES[int(start.argmax())]
    assert found["predicted_after"] == CLASSES[int(after.argmax())]
    assert found["success"] is (found["predicted_before"] != "viaduct" == found["predicted_after"])
    named = {"rock crab", "viaduct", *(found[f"predicted_{stage}"] for stage in ("before", "start", "after"))}
    for stage, p in (("before", before), ("start", start), ("after", after)):
        assert set(found[f"confidence_{stage}"]) == named
        for name in named:
            assert found[f"confidence_{stage}"][name] == pytest.approx(p[CLASSES.index(name)].item())


def test_success_is_a_prediction_that_changes_to_the_target() -> None:
    """In each of the three images a one of four classes is predicted; the target is b."""

    def predicted(before: str, start: str, after: str) -> tuple[bool, bool]:
        p = torch.eye(4)[["abcd".index(name) for name in (before, start, after)]]
        found = prediction_success(confidences_by_stage(p, "abcd", range(4)), "b")
        return found["success"], found["success_start"]

    assert predicted("a", "a", "b") == (True, False)
    assert predicted("a", "b", "b") == (True, True), "the words alone had done it"
    assert predicted("a", "b", "a") == (False, True)
    assert predicted("c", "a", "b") == (True, False), "what the original is predicted as need not be its label"
    assert predicted("a", "a", "c") == (False, False)
    assert predicted("b", "b", "b") == (False, False), "nothing changed"


def test_the_criterion_of_a_success_has_its_numbers() -> None:
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.25, 0.75]])
    found = prediction_success(confidences_by_stage(p, ["crab", "urn"], [0, 1]), "urn")
    assert found["criterion"] == "predicted as the target, urn (0.75)"
    unmoved = prediction_success(confidences_by_stage(p[[0, 1, 1]], ["crab", "urn"], [0, 1]), "urn")
    assert unmoved["criterion"] == "predicted as crab (0.70); target: urn (0.30)"
    same = prediction_success(confidences_by_stage(p[[2, 2, 2]], ["crab", "urn"], [0, 1]), "urn")
    assert same["criterion"] == "the original is predicted as urn already: no change can be found"


def test_nothing_is_added_to_the_pictures() -> None:
    (problem,), _ = pose(uvce(target="viaduct"), Given(example("rock crab")))
    assert uvce().illustrate(problem, result_images(coloured(0, 0)), TinyClassifier()) == {}


def answer(picture: str, target: str, confidence: float, success: bool) -> dict[str, Any]:
    return {
        "image_name": picture,
        "target": target,
        "confidence_after": {target: confidence, "other": 0.9},
        "success": success,
    }


def test_the_summary_counts_successes() -> None:
    found = uvce().summarize([answer("a", "x", 0.9, True), answer("b", "x", 0.2, False), answer("c", "y", 0.7, True)])
    assert found == {"results": 3, "successes": 2}
    assert uvce().summarize([]) == {"results": 0, "successes": 0}


def test_the_spread_is_over_the_answers_to_one_question() -> None:
    """By hand: 0.2 and 0.4 lie 0.1 from their mean, 0.5 and 0.5 not at all; a lone answer says nothing."""
    found = uvce().summarize([
        answer("a", "x", 0.2, True), answer("a", "x", 0.4, True), answer("a", "y", 0.5, True),
        answer("a", "y", 0.5, True), answer("b", "x", 0.9, True),
    ])  # fmt: skip
    assert found["mean_confidence_std"] == pytest.approx(0.05)


def test_captions_are_the_captioners() -> None:
    task = uvce(target="viaduct", captioner=TemplateCaptioner("in the style of {article} {label}"))
    assert pose(task, Given(example("rock crab")))[0][0].edit.source == "in the style of a rock crab"


def test_an_attributes_region_may_be_the_objects() -> None:
    data = PlantedDataset("test", 40, 0, "independent", None)
    own = {"source": "in snow", "target": "on sand"}
    changed, _ = pose(uvce(mode="attribute", attribute={**own, "mask_words": "changed"}), data, classifier=ZeroShot())
    objects, _ = pose(uvce(mode="attribute", attribute={**own, "mask_words": "class"}), data, classifier=ZeroShot())
    assert len(changed) == len(objects) > 1 and {p.words_to_segment for p in changed} == {"in snow"}
    assert all(p.words_to_segment in CLASSES and p.words_to_segment in p.edit.source for p in objects)
    with pytest.raises(UserError, match=r"task\.attribute\.mask_words=all: allowed are changed, class"):
        pose(uvce(mode="attribute", attribute={**own, "mask_words": "all"}), data, classifier=ZeroShot())
