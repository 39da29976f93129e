"""Laws of prompts with free tokens, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.prompt_diffusion import PromptDiffusion
from classifier_lens.models.generator.prompt_tuning import (
    HardPrompt,
    SoftPrompt,
    alphabetic_tokens,
    decode_prompt,
    fixed_words,
    parse_prompt,
)
from classifier_lens.models.seeded_noise import derive_seed
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.optimization.loop import choose_initialization
from classifier_lens.runner.types import Candidate, CaptionEdit, Controls, Problem, Scene, UserError
from tests.conftest import candidates_of, initialize

Make = Callable[..., LatentDiffusion]
PROMPT = "a photograph of a viaduct on sand"


def asked(prompt: str, seed: int = 3) -> Problem:
    return Problem(
        name=f"p{seed}",
        seed=seed,
        edit=CaptionEdit.unchanged(prompt, "viaduct"),
        load=None,
        image_name="p",
        preserve="none",
    )


def soft(generator: LatentDiffusion, load: str | None = None, **counts: int) -> PromptDiffusion:
    return PromptDiffusion(
        generator,
        SoftPrompt(load),
        **{"num_initializations": 1, "images_per_step": 2, "validation_images": 3, "images_per_result": 2, **counts},
    )


def hard(generator: LatentDiffusion, num_initializations: int = 1, **changes: Any) -> PromptDiffusion:
    settings: dict[str, Any] = {
        "vocabulary": None, "exclude": [], "initial_std": 1.0, "temperatures": (1.0, 0.3), "temperature_decay": 0.9
    }  # fmt: skip
    return PromptDiffusion(
        generator,
        HardPrompt(**(settings | changes)),
        num_initializations,
        images_per_step=2,
        validation_images=3,
        images_per_result=2,
    )


def report_seeds(seed: int, count: int = 2) -> list[int]:
    return [derive_seed(seed, "report", 0, j) for j in range(count)]


def gradient(prompts: PromptDiffusion, controls: Controls, problem: Problem, k: int = 0) -> dict[str, Tensor]:
    context = prompts.step_context(initialize(prompts, [problem]).context, k)
    leaves = {name: values.clone().requires_grad_() for name, values in controls.items()}
    prompts(leaves, context)[-1].views.square().sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


# --- how prompts are written -------------------------------------------------------------------------------------


def test_marks_are_places_of_free_tokens(make_generator: Make) -> None:
    tokenizer = make_generator().networks.tokenizer

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    before, word, after = ids("a picture of"), ids("viaduct"), ids("on sand")
    found = parse_prompt(tokenizer, "a picture of *viaduct on sand")
    assert found.token_ids == before + word + after and found.length == len(found.token_ids) + 2
    assert found.free_positions == tuple(
        range(len(before), len(before) + len(word))
    ) and found.initialized_from_word == (True,) * len(word)
    random = parse_prompt(tokenizer, "*2 of *1")
    assert random.free_positions == (0, 1, 2 + len(ids("of"))) and random.initialized_from_word == (False,) * 3
    assert fixed_words("a picture of *viaduct on *2 sand") == "a picture of on sand"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("a picture of sand", "needs free tokens"), ("a picture of *99", r"has \d+ tokens: allowed are 40")],
)
def test_prompts_without_marks_or_without_room_are_refused(prompt: str, said: str, make_generator: Make) -> None:
    with pytest.raises(UserError, match=said):
        soft(make_generator()).check([asked(prompt)])


def test_a_model_without_free_tokens_refuses_them(make_generator: Make) -> None:
    with pytest.raises(UserError, match="only parametrization=soft_prompt and hard_prompt have free tokens"):
        make_generator().check([asked("a picture of *2")])


def test_a_template_is_spelled_as_it_is_read(make_generator: Make) -> None:
    tokenizer = make_generator().networks.tokenizer
    template = parse_prompt(tokenizer, "a picture of *viaduct on sand")
    chosen = [template.token_ids[place] for place in template.free_positions]
    assert decode_prompt(tokenizer, template, chosen) == "a picture of viaduct on sand"


# --- soft prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "marked",
    [PROMPT.replace("viaduct", "*viaduct"), "*" + PROMPT.replace(" ", "_"), "a *photograph of a viaduct on *sand"],
)
def test_begun_from_words_a_soft_prompt_gives_exactly_their_pictures(marked: str, make_either: Make) -> None:
    generator = make_either()
    prompts = soft(generator)
    start = initialize(prompts, [asked(marked)])
    expected = generator.sample([PROMPT] * 2, report_seeds(3))
    assert torch.equal(prompts.images(start.controls, start.context)[0], expected)
    assert prompts.decode_prompts(start.controls, start.context) == [PROMPT]
    text = prompts.prompt_embeddings(start.controls, start.context, 1)
    assert torch.equal(text, generator.networks.embed([PROMPT]))


def test_gradients_reach_the_free_tokens_and_nothing_else(make_either: Make) -> None:
    generator = make_either()
    prompts, problem = soft(generator), asked("a picture of *3")
    start = initialize(prompts, [problem])
    assert set(start.controls) == {"tokens"} and start.controls["tokens"].shape == (1, 3, 16)
    found = gradient(prompts, start.controls, problem)
    assert found["tokens"].abs().sum(dim=-1).gt(0).all()
    networks = generator.networks
    for network in (networks.vae, networks.unet, networks.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not networks.text_encoder.get_input_embeddings()._forward_hooks, "the lookup is as it was"


def test_the_gradient_agrees_with_finite_differences(make_generator: Make) -> None:
    prompts, problem = soft(make_generator("lcm", steps=2)), asked("a picture of *2 on sand")
    start = initialize(prompts, [problem])
    context = prompts.step_context(start.context, 0)

    def value(tokens: Tensor) -> Tensor:
        """A latent, which nothing is cut from."""
        return prompts({"tokens": tokens}, context)[-1].latent.square().mean()

    tokens = start.controls["tokens"].clone().requires_grad_()
    found = torch.autograd.grad(value(tokens), tokens)[0]
    direction = found / found.norm()
    with torch.no_grad():
        numeric = (value(tokens + 1e-3 * direction) - value(tokens - 1e-3 * direction)) / 2e-3
    torch.testing.assert_close((found * direction).sum(), numeric, rtol=2e-2, atol=1e-4)


def test_every_step_meets_other_pictures_that_its_seed_and_number_decide(make_generator: Make) -> None:
    prompts = soft(make_generator("lcm"))
    problems = [asked("a picture of *2", seed) for seed in (3, 4)]
    context = initialize(prompts, problems).context

    def latents(k: int | None) -> Tensor:
        met: Any = context if k is None else prompts.step_context(context, k)
        return met.step_inputs["latent"]

    assert latents(None).shape == (6, 4, 8, 8) and latents(0).shape == (4, 4, 8, 8)
    assert torch.equal(latents(1), latents(1)) and torch.equal(latents(None), latents(None))
    every = torch.cat([latents(None), latents(0), latents(1), prompts.step_inputs((3, 4), "report", 0)["latent"]])
    final: Any = prompts.evaluation_context(context)
    every = torch.cat([every, final.step_inputs["latent"]])
    assert len(every.flatten(1).unique(dim=0)) == len(every) == 24, "four kinds of z, none of them alike"
    alone: Any = prompts.step_context(initialize(prompts, problems[1:]).context, 1)
    assert torch.equal(alone.step_inputs["latent"], latents(1)[2:])


def test_a_batch_of_prompts_equals_its_prompts(make_either: Make) -> None:
    prompts = soft(make_either())
    problems = [asked("a picture of *2", 3), asked("a *viaduct on sand", 4)]
    together = initialize(prompts, problems)
    scene = prompts(together.controls, together.context)[-1]
    assert scene.views.shape == (2, 3, 3, 16, 16) and torch.equal(scene.image, scene.views[:, 0])
    for i, problem in enumerate(problems):
        alone = initialize(prompts, [problem])
        n = alone.controls["tokens"].shape[1]
        assert torch.equal(alone.controls["tokens"][0], together.controls["tokens"][i, :n])
        own = prompts(alone.controls, alone.context)[-1]
        torch.testing.assert_close(own.views[0], scene.views[i], rtol=0, atol=1e-4)
        shown = prompts.images(together.controls, together.context)[i]
        torch.testing.assert_close(prompts.images(alone.controls, alone.context)[0], shown, rtol=0, atol=1e-4)


def test_random_tokens_are_some_of_letters_and_differ_by_seed_and_start(make_generator: Make) -> None:
    generator = make_generator("lcm")
    prompts = soft(generator, num_initializations=3)
    start = initialize(prompts, [asked("a picture of *4", seed) for seed in (3, 4)])
    known = generator.networks.text_encoder.get_input_embeddings().weight[alphabetic_tokens(generator.networks)]
    tokens = torch.stack([controls["tokens"] for controls, _ in candidates_of(prompts, start)])
    assert tokens.shape == (3, 2, 4, 16)
    assert all((known == token).all(dim=1).any() for token in tokens.flatten(0, 2))
    assert len(tokens.flatten(0, 1).flatten(1).unique(dim=0)) == 6


def test_an_answers_tokens_are_loaded_again(make_generator: Make, tmp_path: Path) -> None:
    generator, file = make_generator("lcm"), tmp_path / "controls.safetensors"
    tokens = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, file)
    start = initialize(soft(generator, str(file)), [asked("a picture of *2", seed) for seed in (3, 4)])
    assert torch.equal(start.controls["tokens"], tokens.expand(2, -1, -1))
    for prompt, path, said in (
        ("a picture of *3", file, "holds 2 x 16 tokens, the prompt needs 3 x 16"),
        ("a picture of *2", tmp_path / "no", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            initialize(soft(generator, str(path)), [asked(prompt)])
    save_file({"logits": tokens}, tmp_path / "other")
    with pytest.raises(UserError, match="holds none tokens"):
        initialize(soft(generator, str(tmp_path / "other")), [asked("a picture of *2")])


# --- hard prompts ------------------------------------------------------------------------------------------------


def dark(scene: Scene) -> Tensor:
    return scene.views.mean(dim=(1, 2, 3, 4))


def test_hard_prompts_are_compared_by_their_own_words(make_generator: Make) -> None:
    """The start is the candidate whose plain prompt is best, without Gumbel noise, on z that no step is judged on."""
    generator = make_generator("lcm")
    prompts = hard(generator, num_initializations=6)
    start = initialize(prompts, [asked("a *2", seed) for seed in (3, 4)])
    choice = choose_initialization(prompts, start, {"dark": (1.0, dark)})
    chosen, _ = prompts.select(start, choice.candidate_indices)
    candidates = [controls for controls, _ in candidates_of(prompts, start)]
    for i, seed in enumerate((3, 4)):
        found = []
        for candidate in candidates:
            words = prompts.decode_prompts(candidate, start.context)[i]
            seeds = prompts.seeds(seed, "fresh", 0)
            found.append(generator.sample([words] * len(seeds), seeds).mean().item())
        best = candidates[found.index(min(found))]
        assert torch.equal(chosen["logits"][i], best["logits"][i])


@pytest.mark.parametrize("make", [soft, hard])
def test_what_starts_show_is_what_the_generator_shows_of_them(make: Any, make_either: Make) -> None:
    """Whatever else is in the batch: prompts of other lengths, other draws, and one that begins as words."""
    prompts = make(make_either(), num_initializations=3)
    problems = [asked("a picture of *2", 3), asked("a *viaduct on *1", 4), asked("a picture of *2", 5)]
    start = initialize(prompts, problems)
    shown = torch.stack([scene.views for scene in prompts.render_candidates(start)])
    for i, problem in enumerate(problems):
        alone = initialize(prompts, [problem])
        own = torch.stack([scene.views[0] for scene in prompts.render_candidates(alone)])
        torch.testing.assert_close(own, shown[:, i], rtol=0, atol=1e-5)  # decoded beside other pictures
        context = replace(alone.context, step_inputs=prompts.step_inputs([problem.seed], "fresh", 0))
        for (candidate, _), views in zip(candidates_of(prompts, alone), own, strict=True):
            torch.testing.assert_close(prompts(candidate, context)[-1].views[0], views, rtol=0, atol=1e-4)


def test_problems_of_equal_draw_share_their_starts(
    make_generator: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are computed once, and kept: a second run finds them in the cache."""
    generator = make_generator("lcm", cache=TensorCache(str(tmp_path)))
    prompts, calls, chain = soft(generator, num_initializations=4), list[int](), generator.denoise

    def counted(latent: Tensor, *others: Any) -> list[Tensor]:
        calls.append(len(latent))
        return chain(latent, *others)

    monkeypatch.setattr(generator, "denoise", counted)
    problems = [replace(asked("a picture of *2", seed), init_seed=7) for seed in (3, 4, 5)]
    start = initialize(prompts, problems)
    tokens = torch.stack([controls["tokens"] for controls, _ in candidates_of(prompts, start)])
    assert torch.equal(tokens, tokens[:, :1].expand_as(tokens)) and not torch.equal(tokens[0], tokens[1])
    calls.clear()
    first = [scene.views for scene in prompts.render_candidates(start)]
    assert sum(calls) == 4 * prompts.counts["fresh"], "of three problems' prompts one is drawn"
    calls.clear()
    again = [scene.views for scene in prompts.render_candidates(initialize(prompts, problems))]
    assert torch.equal(torch.stack(first), torch.stack(again)) and not calls


def test_a_prompt_without_anything_random_has_one_start(make_generator: Make) -> None:
    prompts = soft(make_generator("lcm"), num_initializations=4)
    start = initialize(prompts, [asked("a *viaduct", seed) for seed in (3, 4)])
    assert start.candidates == [Candidate()]


def test_tokens_that_do_not_come_back_are_judged_as_they_are_typed(make_generator: Make) -> None:
    """Two tokens that spell a word for which the tokenizer has others: the picture is that of the word."""
    generator = make_generator("lcm")
    prompts, tokenizer = hard(generator), generator.networks.tokenizer
    known = HardPrompt(None, [], 1.0, (1.0, 1.0), 1.0).allowed_tokens(generator.networks)

    def comes_back(pair: tuple[int, int]) -> bool:
        text = tokenizer.decode(list(pair), clean_up_tokenization_spaces=False).strip()
        return tuple(tokenizer(text, add_special_tokens=False).input_ids) == pair

    pair = next(pair for pair in product(known, known) if not comes_back(pair))
    start = initialize(prompts, [asked("*2")])
    logits = torch.zeros_like(start.controls["logits"])
    logits[0, [0, 1], [known.index(token) for token in pair]] = 1.0
    context = start.context
    (words,) = prompts.decode_prompts({"logits": logits}, context)
    expected = generator.sample([words] * 3, prompts.seeds(3, "validation", 0))
    torch.testing.assert_close(prompts({"logits": logits}, context)[-1].views[0], expected, rtol=0, atol=1e-5)
    drawn = prompts({"logits": 1e6 * logits}, prompts.step_context(context, 0))[-1].views[0]
    typed = generator.sample([words] * 2, prompts.seeds(3, "fresh", 0))
    assert (drawn - typed).abs().max() > 1e-3, "descent goes by the tokens"


def test_a_hard_prompts_pictures_are_those_of_its_words(make_either: Make) -> None:
    """What is judged, by its tokens, and what is reported, by its text: both are the plain prompt's."""
    generator = make_either()
    prompts = hard(generator)
    start = initialize(prompts, [asked("a *photograph of a *viaduct")])
    (words,) = prompts.decode_prompts(start.controls, start.context)
    assert words == "a photograph of a viaduct"
    expected = generator.sample([words] * 2, report_seeds(3))
    assert torch.equal(prompts.images(start.controls, start.context)[0], expected)
    text = prompts.prompt_embeddings(start.controls, start.context, 1)
    torch.testing.assert_close(text, generator.networks.embed([words]))


def test_what_is_drawn_is_one_token_each_and_its_gradient_is_the_softmaxs(make_generator: Make) -> None:
    generator = make_generator("lcm")
    tokens = hard(generator, temperatures=(0.7, 0.1)).tokens
    assert isinstance(tokens, HardPrompt)
    known = (
        generator.networks.text_encoder.get_input_embeddings().weight[tokens.allowed_tokens(generator.networks)].float()
    )
    logits = tokens.initialize(generator.networks, [parse_prompt(generator.networks.tokenizer, "a *3")], [1])
    drawn = tokens.sample_gumbel(generator.networks, (5, 3), [1], 0)
    assert drawn is not None and drawn.gumbel.shape == (1, 5, 3, len(known)) and drawn.temperature == 0.7
    leaf = logits.clone().requires_grad_()
    vectors = tokens.token_embeddings(generator.networks, leaf, drawn)
    for vector in vectors.detach().flatten(0, 2):
        assert (known - vector).abs().amax(dim=1).min() < 1e-5
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((vectors * weight).sum(), leaf)[0]
    soft_logits = logits.clone().requires_grad_()
    mean = ((soft_logits[:, None] + drawn.gumbel) / 0.7).softmax(dim=-1) @ known
    torch.testing.assert_close(found, torch.autograd.grad((mean * weight).sum(), soft_logits)[0])


def test_draws_follow_the_softmax_and_cool_down(make_generator: Make) -> None:
    generator = make_generator("lcm")
    tokens = hard(generator, vocabulary=["sand", "snow"], temperatures=(1.0, 0.3)).tokens
    count = len(tokens.allowed_tokens(generator.networks))  # type: ignore[attr-defined]
    logits = torch.zeros(1, 1, count)
    logits[..., 0] = 2.0
    draws = [tokens.sample_gumbel(generator.networks, (500, 1), [k], 0) for k in range(4)]
    first = torch.cat([(logits[:, None] + d.gumbel).argmax(dim=-1).flatten() == 0 for d in draws if d is not None])
    expected = logits.softmax(dim=-1)[0, 0, 0].item()
    assert first.float().mean().item() == pytest.approx(expected, abs=0.03)
    heat = [
        d.temperature for k in (0, 1, 50) if (d := tokens.sample_gumbel(generator.networks, (1, 1), [1], k)) is not None
    ]
    assert heat == pytest.approx([1.0, 0.9, 0.3])


def test_only_allowed_tokens_are_chosen(make_generator: Make) -> None:
    networks = make_generator().networks

    def chosen(**changes: Any) -> set[str]:
        tokens = hard(make_generator(), **changes).tokens
        assert isinstance(tokens, HardPrompt)
        return set(networks.tokenizer.convert_ids_to_tokens(tokens.allowed_tokens(networks)))

    everything = chosen()
    assert all(token.removesuffix("</w>").isalpha() for token in everything) and len(everything) > 60
    sand = set(networks.tokenizer.tokenize("sand"))
    assert chosen(vocabulary=["sand"]) == sand and chosen(exclude=["sand"]) == everything - sand
    with pytest.raises(UserError, match="no token left"):
        chosen(vocabulary=["sand"], exclude=["sand"])
    with pytest.raises(UserError, match="is not among the allowed tokens"):
        initialize(hard(make_generator(), exclude=["sand"]), [asked("a *sand")])


def test_hard_prompts_have_gradients_where_they_are_free(make_either: Make) -> None:
    prompts, problem = hard(make_either()), asked("a picture of *2")
    found = gradient(prompts, initialize(prompts, [problem]).controls, problem, k=1)
    assert set(found) == {"logits"} and found["logits"].abs().sum(dim=-1).gt(0).all()


def test_streams_are_seeds_of_their_own() -> None:
    seeds = [derive_seed(s, kind, k) for s in (0, 1) for kind in ("a", "b") for k in (0, 1)]
    assert len(set(seeds)) == 8 and derive_seed(0, "a", 0) == seeds[0] and all(0 <= s < 2**56 for s in seeds)
