"""Tiny models that every test may use; all weights random but seeded."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from classifier_lens.data import planted
from classifier_lens.models.captioner.captioner import TemplateCaptioner
from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.latent_diffusion import (
    AttentionMapWindow,
    LatentDiffusion,
    LatentDiffusionSettings,
)
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.samplers import NullTextInversion, ddim, lcm
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.models.segmenter.segmenter import AttentionSegmenter
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.resolvers import register_resolvers
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Context,
    Controls,
    Head,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Reference,
    Response,
    Scene,
    UserError,
)
from classifier_lens.scripts.train.tokenizer import train_tokenizer
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.uvce import Uvce
from tests.cli import Cli
from tests.hydra_cache import cached_compositions
from tests.loader_cache import cached_loaders

ROOT = Path(__file__).resolve().parent.parent
register_resolvers()  # what conf/ refers to, for tests that compose without the runner
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """At these sizes several threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def disks_are_not_waited_for() -> Iterator[None]:
    """Files of tests need not outlast a power cut; the tests of that say themselves what is synchronized."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def signals_arrive() -> None:
    """A shell starts background jobs with SIGINT ignored, `nohup` any process with SIGHUP ignored, and the tests that
    send these signals would wait for their effect."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def compositions_are_cached() -> Iterator[None]:
    """Hydra parses each file of conf/ once per session, and composes each command once."""
    with cached_compositions():
        yield


@pytest.fixture(autouse=True, scope="session")
def models_are_cached() -> Iterator[None]:
    """The tiny pipeline and each shipped classifier are read once per session."""
    with cached_loaders():
        yield


@pytest.fixture(autouse=True, scope="session")
def imports_stay() -> None:
    """Of what the imports have made nothing goes: the garbage collector need not look through it again and again. It
    also runs more seldom than by default, which took 8 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)


@pytest.fixture(scope="module")
def frozen_objects() -> None:
    """What the tests before have left is not looked through where a failed batch collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """Stable Diffusion's classes at a size that runs in milliseconds: 16 px pictures, 8 x 8 latents."""
    torch.manual_seed(0)
    captions = planted.sample_captioned_scenes(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 100, 40, tmp_path_factory.mktemp("tokenizer"))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16,
        scaling_factor=0.5,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=40, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, projection_dim=16,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_lcm_pipe(tiny_pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The tiny pipeline with the UNet of a consistency model, which is told a guidance scale."""
    torch.manual_seed(1)
    shape = {key: value for key, value in tiny_pipe.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**{**shape, "time_cond_proj_dim": 8})
    return StableDiffusionPipeline(**{**tiny_pipe.components, "unet": unet}, requires_safety_checker=False)


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a folder on disk."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_student(tiny_lcm_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of the tiny consistency model in a folder on disk."""
    folder = tmp_path_factory.mktemp("student")
    tiny_lcm_pipe.unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def cli(tiny_folder: Path, tiny_student: Path, tmp_path: Path) -> Cli:
    """Commands on the tiny pipeline, with an empty folder of outputs."""
    return Cli.at(tmp_path, tiny_folder, tiny_student)


@pytest.fixture
def make_generator(
    tiny_pipe: StableDiffusionPipeline, tiny_lcm_pipe: StableDiffusionPipeline
) -> Callable[..., LatentDiffusion]:
    """A LatentDiffusion over the tiny pipeline, over that of a consistency model for sampler="lcm"; keyword arguments
    replace settings."""

    def make(sampler: str = "ddim", steps: int = 4, guidance_scale: float = 3.0, **changes: Any) -> LatentDiffusion:
        settings: dict[str, Any] = {
            "resolution": 16, "last_x0_predictions": 1, "gradient_checkpointing": "none",
            "backprop_steps": None, "background_blend_start": 0,
            "attention_maps": AttentionMapWindow(8, 0.0, 0.5, False),
            "mask_postprocess": dict.fromkeys(("latents", "pixels"), MaskPostprocess(0, 3, 0.7, 3)),
            "prompt_to_prompt": {"cross_replace_steps": [0.3, 0.5], "background_blend_steps": [0.0, 0.5]},
            "segmenter": AttentionSegmenter(0.3), "cache": TensorCache(None),
            "lr_scale": {"latent": 1.0, "text": 1.0, "null": 1.0},
        }  # fmt: skip
        chain_settings = LatentDiffusionSettings(**{**settings, **changes})
        if sampler == "lcm":
            networks = Networks(tiny_lcm_pipe, "tiny lcm")
            return LatentDiffusion(networks, lcm(networks, steps, guidance_scale, None, [0.0, 1.0], 50), chain_settings)
        networks = Networks(tiny_pipe, "tiny")
        return LatentDiffusion(
            networks,
            ddim(networks, steps, guidance_scale, NullTextInversion(0.01, 3, 1e-5, 2e-5, False), [0.0, 1.0]),
            chain_settings,
        )

    return make


@pytest.fixture(params=["ddim", "lcm"])
def make_either(
    request: pytest.FixtureRequest, make_generator: Callable[..., LatentDiffusion]
) -> Callable[..., LatentDiffusion]:
    """Generators of both samplers, one after the other."""
    return partial(make_generator, sampler=request.param)


class TinyClassifier:
    """Ten classes from the mean colours of a picture's quarters, by a fixed random matrix.

    Its modules are `quarters`, which gives the mean colours (b, 3, 2, 2), and `linear`, which gives the logits.
    """

    labels: tuple[str, ...] = planted.CLASSES
    size = 16
    digest = fingerprint = "tiny"
    domain: str | None = "planted"
    cam_module: str | None = "quarters"

    def __init__(self) -> None:
        self.weight = 20 * torch.randn(12, 10, generator=torch.Generator().manual_seed(0)).T
        self.head: Head | None = Head(self.weight, torch.zeros(10))

    def __call__(self, images: torch.Tensor) -> Response:
        return self.forward_with_activations(images, [])[0]

    def forward_with_activations(
        self, images: torch.Tensor, modules: Sequence[str]
    ) -> tuple[Response, dict[str, torch.Tensor]]:
        maps = torch.nn.functional.adaptive_avg_pool2d(images, 2)
        features = maps.flatten(1)
        logits = features @ self.weight.T.to(images.dtype)
        given = {"quarters.in": images, "quarters": maps, "linear.in": features, "linear": logits}
        if unknown := [name for name in modules if name not in given]:
            raise UserError(f"classifier: no module {unknown[0]}; nearest are quarters, linear")
        return Response(logits, features), {name: given[name] for name in modules}


@pytest.fixture
def tiny_classifier() -> TinyClassifier:
    return TinyClassifier()


@pytest.fixture
def make_problems() -> Callable[[int], list[CounterfactualProblem]]:
    """Planted pictures at 16 px with an exchange of class names of one to three words."""

    def make(n: int) -> list[CounterfactualProblem]:
        scenes = planted.sample_scenes(n, seed=7)
        images = torch.nn.functional.adaptive_avg_pool2d(planted.render(scenes).image, 16)
        problems = []
        for i in range(n):
            source = int(scenes.label[i])
            target = (source + 1 + i) % 10 if (1 + i) % 10 else (source + 1) % 10
            text = planted.caption(scenes, i)
            names = planted.CLASSES[source], planted.CLASSES[target]
            edit = CaptionEdit(text, text.replace(*names), *names)
            problem = CounterfactualProblem(
                name=f"p{i}",
                seed=100 + i,
                edit=edit,
                load=images[i].clone,
                image_name=f"picture-{i}",
                preserve="background",
                source=source,
                target=target,
            )
            problems.append(problem)
        return problems

    return make


def uvce(**changes: Any) -> Uvce:
    """The counterfactual task with the settings of its YAML; keyword arguments replace them."""
    settings: dict[str, Any] = {
        "mode": "class", "target": "nearest", "temperature": None,
        "attribute": {"source": "in snow", "target": "on sand", "mask_words": "changed"},
        "preserve": "background", "mask": None, "num_seeds": 1, "baseline": "none",
        "weights": {"class_log_prob": 1.0, "latent_distance": 25.0, "pixel_distance": 250.0},
        "captioner": TemplateCaptioner("a photograph of {article} {label}"),
        "class_name_prompt": "a photograph of {article} {label}",
        "context_search": ContextSearch(None, False, 2, "a photograph of {phrase}"), "cache": TensorCache(None),
    }  # fmt: skip
    return Uvce(**(settings | changes))


def reference_of(n: int) -> Reference:
    """A batch's reference at its smallest: 1 x 1 pixels; everything is editable."""
    return Reference(
        original=torch.zeros(n, 3, 1, 1),
        original_latent=torch.zeros(n, 1, 1, 1),
        mask=torch.ones(n, 1, 1, 1),
        latent_mask=torch.ones(n, 1, 1, 1),
    )


def context_of(n: int, cross_replace_steps: float = 0.0) -> DiffusionContext:
    """A batch's context at its smallest: one step, one token, 1 x 1 pixels; everything is editable."""
    return DiffusionContext(
        embeddings={"text": torch.zeros(n, 1, 1, 1), "null": torch.zeros(n, 1, 1, 1)},
        variance_noise=torch.zeros(n, 1, 1, 1, 1),
        latent_mask=torch.ones(n, 1, 1, 1),
        original_trajectory=torch.zeros(n, 1, 1, 1, 1),
        attention_maps={},
        cross_replace_steps=torch.full((n,), cross_replace_steps),
        background_blend_steps=torch.zeros(n),
    )


def initialize(
    generator: Any, problems: Sequence[Problem], precomputed: Precomputed | None = None, /, **shares: Any
) -> Initialization[Any]:
    """The initialization with the generator's own settings of Prompt-to-Prompt, `shares` in the place of some."""
    settings = getattr(generator, "prompt_to_prompt", PromptToPrompt(**DISABLED_PROMPT_TO_PROMPT))
    start: Initialization[Any] = generator.initialize(problems, settings.with_overrides(shares), precomputed)
    return start


def candidates_of(generator: Generator[Context], start: Initialization[Context]) -> list[tuple[Controls, Context]]:
    """The controls and the context of each candidate."""
    return [generator.select(start, [j] * len(start.warnings)) for j in range(len(start.candidates))]


def contexts_of(generator: Generator[Context], start: Initialization[Context]) -> list[Context]:
    """The context of each candidate."""
    return [context for _, context in candidates_of(generator, start)]


Record = TypeVar("Record", DiffusionContext, Reference)


def doubled(record: Record) -> Record:
    """A record's tensors in double precision, the recorded maps apart: they take the network's precision."""
    tensors: dict[str, Any] = {k: v.double() for k, v in vars(record).items() if isinstance(v, torch.Tensor)}
    if isinstance(record, DiffusionContext):
        tensors["embeddings"] = {name: values.double() for name, values in record.embeddings.items()}
    return replace(record, **tensors)


@contextmanager
def double_precision(generator: LatentDiffusion) -> Iterator[None]:
    """VAE and UNet in double precision for a while."""
    networks = (generator.networks.vae, generator.networks.unet)
    for network in networks:
        network.double()
    try:
        yield
    finally:
        for network in networks:
            network.float()


def rows_of(record: Record, rows: slice) -> Record:
    """A record of some of a batch's samples."""

    def cut(value: Any) -> Any:
        return {name: v[rows] for name, v in value.items()} if isinstance(value, Mapping) else value[rows]

    return type(record)(**{key: cut(value) for key, value in vars(record).items()})


class Identity(SingleImageGenerator[DiffusionContext]):
    """A generator without networks: the picture is the control `latent` itself, "b 3 1 1", once per scene.

    The i-th of `scenes` shows (i + 1) times the control, the last one the control itself plus the context's
    `cross_replace_steps`.
    """

    resolution = 1
    digest = "identity"
    fingerprint = "identity"

    def __init__(self, scenes: int = 1) -> None:
        self.scenes = scenes

    def check(self, problems: Sequence[Problem]) -> None:
        pass

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[DiffusionContext]:
        raise NotImplementedError

    def select(
        self, initialization: Initialization[DiffusionContext], indices: Sequence[int]
    ) -> tuple[Controls, DiffusionContext]:
        """`initial_prompt` is added to the controls, `cross_replace_steps` is the context's."""
        chosen = [initialization.candidates[j] for j in indices]
        added = torch.tensor([float(c.initial_prompt) for c in chosen])[:, None, None, None]
        shares = torch.tensor([c.cross_replace_steps for c in chosen])
        controls = {"latent": initialization.controls["latent"] + added}
        return controls, replace(initialization.context, cross_replace_steps=shares)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """One grey level per seed: its last digit in tenths."""
        return torch.tensor([seed % 10 / 10 for seed in seeds])[:, None, None, None].expand(-1, 3, 1, 1)

    def word_attention_maps(
        self, image: torch.Tensor, prompt: str, phrase: str, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def __call__(self, controls: Controls, context: DiffusionContext) -> list[Scene]:
        latent = controls["latent"] + controls.get("shift", torch.zeros(()))
        pictures = [(i + 1) * latent for i in range(self.scenes - 1)]
        pictures.append(latent + context.cross_replace_steps[:, None, None, None])
        return [Scene(picture, picture, picture[:, None]) for picture in pictures]
