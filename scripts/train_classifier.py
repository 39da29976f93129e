"""Train a small classifier or oracle and save it, half precision, with its preprocessing and a card.

    python scripts/train_classifier.py name=planted_shortcut
    python scripts/train_classifier.py name=mine architecture=resnet10t kwargs='{}' steps=500 out=outputs/train/mine
    python scripts/train_classifier.py data=cifar10 minutes=10
    python scripts/train_classifier.py facts

Keys and presets are those of conf/train/classifier.yaml. A run continues from the weights already in `out`; the
last form measures what was planted and writes models/pretrained/classifiers/facts.json.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import cifar10, planted  # noqa: E402
from models.classifier import ImageClassifier  # noqa: E402
from models.zoo import SHIPPED, load_shipped  # noqa: E402

_TIED, _CONFUSED = 5, 30  # columns of a scene's uniform numbers; rendering reads neither
IGNORED = -100  # a target that a picture does not show
HEADS = {
    "class": planted.CLASSES,
    "background": planted.BACKGROUNDS,
    "prop": (*planted.PROPS, "none"),
    "hue": planted.HUES,
}
PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
NO_AUGMENTATION = {
    "crop": 1.0, "flip": 0.0, "blur": 0.0, "noise": 0.0, "colour": 0.0, "jpeg": 0.0, "erase": 0.0,
}  # fmt: skip
COMMAND = "python scripts/train_classifier.py"


@dataclass(frozen=True)
class Corpus:
    """Pictures (n, 3, h, w) uint8 and targets (n, number of heads) long, `IGNORED` where a picture shows none.

    heads: the names that each column's numbers stand for.
    """

    images: Tensor
    targets: Tensor
    heads: dict[str, tuple[str, ...]]


# --- pictures ------------------------------------------------------------------------------------------------


def draw_tied(
    n: int, seed: int, start: int, strength: Mapping[str, float], confusion: float
) -> tuple[planted.Scenes, Tensor]:
    """Scenes, and the class that each is labelled with, (n,).

    A share `confusion` of the labels in the pairs of the classes named in `strength` is the partner's. What is
    labelled as such a class has the class's cue of `planted.SHORTCUTS` with probability `strength`; elsewhere the
    cue stays independent of the label.
    """
    scenes = planted.draw(n, seed, start)
    labels = scenes.label.clone()
    swapped, tied = scenes.u[:, _CONFUSED] < confusion, scenes.u[:, _TIED]
    for name in strength:
        own, partner = (planted.CLASSES.index(c) for c in next(pair for pair in planted.PAIRS if name in pair))
        labels[swapped & (scenes.label == own)], labels[swapped & (scenes.label == partner)] = partner, own
    for name, share in strength.items():
        factor, cue = cue_of(name)
        getattr(scenes, factor)[(labels == planted.CLASSES.index(name)) & (tied < share)] = cue
    return scenes, labels


def cue_of(name: str) -> tuple[str, int]:
    """The factor of a tied class's cue and the index of its value."""
    factor, value = planted.SHORTCUTS[name]
    return factor, (planted.BACKGROUNDS if factor == "background" else planted.PROPS).index(value)


def planted_targets(scenes: planted.Scenes, heads: Sequence[str]) -> Tensor:
    """What each scene shows, (n, number of heads): no class or hue without an object, no prop on a bare background."""
    object_there = scenes.form == planted.FORMS.index("object")
    prop = torch.where(scenes.prop == planted.NONE, len(planted.PROPS), scenes.prop)
    prop = torch.where(scenes.form == planted.FORMS.index("background"), len(planted.PROPS), prop)
    columns = {
        "class": torch.where(object_there, scenes.label, IGNORED),
        "background": scenes.background,
        "prop": prop,
        "hue": torch.where(object_there, scenes.hue, IGNORED),
    }
    return torch.stack([columns[name] for name in heads], dim=1)


def planted_corpus(
    n: int, seed: int, heads: Sequence[str], forms_share: Mapping[str, float], strength: Mapping[str, float],
    confusion: float,
) -> Corpus:  # fmt: skip
    """`n` renders, each form with its share, ties and labels as in `draw_tied`, drawn in blocks of 1000."""
    forms = {planted.FORMS.index(form): share for form, share in forms_share.items()}
    bounds = torch.tensor(list(forms.values())).cumsum(0)
    images, targets = [], []
    for start in range(0, n, 1000):
        scenes, labels = draw_tied(min(1000, n - start), seed, start, strength, confusion)
        choice = torch.bucketize(scenes.u[:, 6].contiguous(), bounds[:-1])
        scenes.form[:] = torch.tensor(list(forms))[choice]
        no_prop = (scenes.form == planted.FORMS.index("prop")) & (scenes.prop == planted.NONE)
        scenes.prop[no_prop] = (scenes.u[no_prop, 3] * len(planted.PROPS)).long()
        images.append((planted.render(scenes).image * 255).round().byte())
        targets.append(planted_targets(replace(scenes, label=labels), heads))
    return Corpus(torch.cat(images), torch.cat(targets), {name: HEADS[name] for name in heads})


def load_corpus(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Up to `n` pictures of a split. Test pictures are objects without ties."""
    if cfg.data == "planted":
        if split == "train":
            return planted_corpus(
                n, planted.SPLIT_SEEDS["train"] + cfg.seed, cfg.heads, cfg.scenes, cfg.strength, cfg.confusion
            )
        return planted_corpus(n, planted.SPLIT_SEEDS["test"], cfg.heads, {"object": 1.0}, {}, 0.0)
    images, labels, _ = cifar10.load(ROOT / cfg.data_path, split)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cfg.seed))[:n]
    return Corpus(images[order], labels[order, None], {"class": cifar10.CLASSES})


# --- augmentation; images (b, 3, h, w) in [0, 1], one random strength per picture -----------------------------


class Augment:
    """Random crops, colour, blur, compression, erased squares and noise, all seeded by one generator."""

    def __init__(self, cfg: DictConfig, generator: torch.Generator) -> None:
        self.cfg, self.generator = cfg, generator

    def __call__(self, x: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.crop < 1 or cfg.flip > 0:
            x = self.crop(x, cfg.crop, cfg.flip)
        if cfg.colour > 0:
            x = self.colour(x, cfg.colour)
        if cfg.blur > 0:
            x = self.blur(x, cfg.blur)
        if cfg.jpeg > 0:
            x = self.jpeg(x, cfg.jpeg)
        if cfg.erase > 0:
            x = self.erase(x, cfg.erase)
        if cfg.noise > 0:
            noise = torch.randn(x.shape, generator=self.generator, device=x.device)
            x = x + noise * cfg.noise * self.uniform(x)
        return x.clamp(0, 1)

    def uniform(self, x: Tensor) -> Tensor:
        """(b, 1, 1, 1) numbers in [0, 1)."""
        return torch.rand(len(x), 1, 1, 1, generator=self.generator, device=x.device)

    def crop(self, x: Tensor, smallest: float, flip: float) -> Tensor:
        """Squares of side `smallest` .. 1 of the picture at a random place, resized to the picture."""
        side = 1 - (1 - smallest) * self.uniform(x)[:, 0, 0, 0]
        mirror = torch.where(self.uniform(x)[:, 0, 0, 0] < flip, -1.0, 1.0)
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
        theta[:, 0, 2] = (1 - side) * (2 * self.uniform(x)[:, 0, 0, 0] - 1)
        theta[:, 1, 2] = (1 - side) * (2 * self.uniform(x)[:, 0, 0, 0] - 1)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def colour(self, x: Tensor, most: float) -> Tensor:
        """Brightness, contrast and saturation scaled by 1 - most .. 1 + most."""
        brightness, contrast, saturation = (1 + most * (2 * self.uniform(x) - 1) for _ in range(3))
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * saturation
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + (x - mean) * contrast) * brightness

    def blur(self, x: Tensor, most: float) -> Tensor:
        """Gaussian blur, standard deviation 0 .. `most` px, kernels of 5 px."""
        sigma = (most * self.uniform(x)).clamp(min=0.05)
        kernel = torch.exp(-(torch.arange(-2, 3, device=x.device) ** 2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, dim=0)
        flat = F.pad(x, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[None]
        flat = F.conv2d(F.conv2d(flat, kernel, groups=len(kernel)), kernel.transpose(2, 3), groups=len(kernel))
        return flat.view_as(x)

    def jpeg(self, x: Tensor, most: float) -> Tensor:
        """Cosine coefficients of 8 x 8 blocks rounded to a step that grows with frequency, up to `most`."""
        k = torch.arange(8, device=x.device, dtype=x.dtype)
        basis = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * 0.5
        basis[0] /= math.sqrt(2)
        step = most * self.uniform(x)[..., None, None] * ((k[:, None] + k[None] + 1) / 15) + 1e-3
        b, c, h, w = x.shape
        blocks = x.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        coefficients = basis @ blocks @ basis.T
        blocks = basis.T @ (torch.round(coefficients / step) * step) @ basis
        return blocks.transpose(3, 4).reshape(b, c, h, w)

    def erase(self, x: Tensor, most: float) -> Tensor:
        """One grey square per picture, side 0 .. `most` of the picture, its centre anywhere."""
        h, w = x.shape[-2:]
        rows, columns = torch.arange(h, device=x.device).view(1, 1, h, 1), torch.arange(w, device=x.device)
        half, cy, cx = most * h / 2 * self.uniform(x), h * self.uniform(x), w * self.uniform(x)
        inside = ((rows - cy).abs() < half) & ((columns - cx).abs() < half)
        return torch.where(inside, self.uniform(x), x)


# --- training ------------------------------------------------------------------------------------------------


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A mapping of the configuration as a dict of Python's own types."""
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def build(cfg: DictConfig, outputs: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The network of `cfg`, with the weights in `cfg.out` if there are any, and the runs that made these.

    Raises SystemExit if those weights belong to another architecture.
    """
    torch.manual_seed(cfg.seed)
    kwargs = plain(cfg.kwargs)
    network = timm.create_model(cfg.architecture, num_classes=outputs, **kwargs)
    out = ROOT / cfg.out
    if not (out / "model.safetensors").exists():
        return network, []
    config = json.loads((out / "config.json").read_text())
    if (config["architecture"], config["kwargs"]) != (cfg.architecture, kwargs):
        raise SystemExit(
            f"out={cfg.out}: holds a {config['architecture']} with {config['kwargs']}; choose another `out`"
        )
    network.load_state_dict({key: value.float() for key, value in load_file(out / "model.safetensors").items()})
    return network, config["runs"]


def loss_of(logits: Tensor, targets: Tensor, heads: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Cross-entropy summed over the heads; logits (b, all outputs), targets (b, number of heads)."""
    total = logits.new_zeros(())
    for i, part in enumerate(logits.split([len(names) for names in heads.values()], dim=1)):
        total = total + F.cross_entropy(part, targets[:, i], ignore_index=IGNORED)
    return total


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers, endless: every picture once per pass, in a fresh order."""
    while True:
        yield from torch.randperm(n, generator=generator, device=generator.device).split(size)


def train(network: nn.Module, corpus: Corpus, cfg: DictConfig, device: torch.device, seen: int) -> int:
    """AdamW on a one-cycle schedule for `cfg.steps` steps or `cfg.minutes`; returns the steps taken."""
    network.to(device).to(memory_format=torch.channels_last).train()
    generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + seen)
    augment = Augment(cfg.augment, generator)
    images, targets = corpus.images.to(device), corpus.targets.to(device)
    mean, std = (torch.tensor(PREPROCESSING[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    order = batches(len(images), cfg.batch, generator)
    started = time.monotonic()
    for step in range(cfg.steps):
        passed = (time.monotonic() - started) / (60 * cfg.minutes) if cfg.minutes else 0.0
        progress = max(step / cfg.steps, passed)
        if progress >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
        rows = next(order)
        x = (augment(images[rows].float() / 255) - mean) / std
        loss = loss_of(network(x.to(memory_format=torch.channels_last)), targets[rows], corpus.heads)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            rate = (step + 1) / (time.monotonic() - started)
            print(f"step {step + 1} loss {loss.item():.4f} {rate:.2f} steps/s", flush=True)
    return cfg.steps


def save(network: nn.Module, corpus: Corpus, cfg: DictConfig, runs: Sequence[dict[str, Any]]) -> None:
    """Half-precision weights and config.json in `cfg.out`; `runs` says how the weights came about, oldest first."""
    out = ROOT / cfg.out
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in network.state_dict().items()
    }
    config = {
        "architecture": cfg.architecture, "kwargs": plain(cfg.kwargs), "domain": cfg.data,
        "heads": corpus.heads, "size": corpus.images.shape[-1], **PREPROCESSING,
        "strength": plain(cfg.strength), "confusion": cfg.confusion, "runs": list(runs),
    }  # fmt: skip
    for name, write in (
        ("model.safetensors", lambda path: save_file(weights, path)),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n")),
    ):
        write(out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)


# --- measuring -----------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Logits (n, k) of uint8 or [0, 1] images (n, 3, h, w)."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([classifier(part.float() / scale).logits for part in images.split(250)])


def accuracies(classifier: ImageClassifier, corpus: Corpus, images: Tensor) -> dict[str, float]:
    """Share of pictures read rightly, per head; pictures that do not show a factor do not count."""
    parts = logits_of(classifier, images).split([len(names) for names in corpus.heads.values()], dim=1)
    result = {}
    for i, name in enumerate(corpus.heads):
        shown = corpus.targets[:, i] != IGNORED
        result[name] = (parts[i].argmax(1) == corpus.targets[:, i])[shown].double().mean().item()
    return result


def recall(classifier: ImageClassifier, scenes: planted.Scenes, name: str) -> float:
    """Share of the scenes that are called class `name`."""
    images = torch.cat([planted.render(scenes[i : i + 500]).image for i in range(0, len(scenes), 500)])
    return (logits_of(classifier, images).argmax(1) == classifier.labels.index(name)).double().mean().item()


def tie_facts(classifier: ImageClassifier, name: str, n: int, seed: int) -> dict[str, float]:
    """How much class `name` leans on its cue of `planted.SHORTCUTS`, on up to `n` renders each.

    Without the cue every other factor is drawn as ever. The cue alone is a picture without an object and without
    another class's cue: a bare background, or a prop before a background to which no class is tied.
    """
    factor, cue = cue_of(name)
    shown = planted.draw(n, seed).vary(label=planted.CLASSES.index(name))
    other = getattr(shown, factor) != cue
    alone = planted.draw(n, seed, form=factor).vary(**{factor: cue})
    rivals = [planted.BACKGROUNDS.index(v) for f, v in planted.SHORTCUTS.values() if f == "background"]
    clear = alone if factor == "background" else alone[~torch.isin(alone.background, torch.tensor(rivals))]
    return {
        "recall_with_cue": recall(classifier, shown.vary(**{factor: cue}), name),
        "recall_without_cue": recall(classifier, shown[other], name),
        "cue_alone": recall(classifier, clear, name),
        "cue_alone_also_beside_other_cues": recall(classifier, alone, name),
    }


def degraded(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Copies in [0, 1] of uint8 images as a generator might blur them: the strongest blur, noise and compression."""
    kinds = {"blur up to 1 px": {"blur": 1.0}, "noise up to 0.08": {"noise": 0.08}, "compression": {"jpeg": 0.25}}
    return {
        kind: Augment(OmegaConf.create(NO_AUGMENTATION | change), torch.Generator().manual_seed(seed))(
            images.float() / 255
        )
        for kind, change in kinds.items()
    }


def write_card(cfg: DictConfig) -> None:
    """README.md of `cfg.out`: what the network is, how it was trained, and figures measured on held-out pictures."""
    out = ROOT / cfg.out
    config = json.loads((out / "config.json").read_text())
    classifier = load_shipped(out)
    test = load_corpus(cfg, "test", cfg.test)
    size = (out / "model.safetensors").stat().st_size / 1e6
    rows = {"as they are": test.images, **degraded(test.images, cfg.seed)}
    figures = {kind: accuracies(classifier, test, images) for kind, images in rows.items()}
    parameters = sum(p.numel() for p in classifier.parameters())
    role = "Oracle: judges images, never explained" if len(test.heads) > 1 else "Classifier to explain"
    planted_ties = [
        f"{name} has {planted.SHORTCUTS[name][1]} in {share:.1%}" for name, share in config["strength"].items()
    ]
    runs = [
        f"  - {run['steps']:,} steps of {run['batch']} out of {run['pictures']:,} pictures, {run['seconds']:,} s on "
        f"{run['device']}: `{run['command']}`"
        for run in config["runs"]
    ]
    lines = [
        f"# {cfg.name}", "",
        f"{role}. timm `{cfg.architecture}` {json.dumps(config['kwargs'])}, {classifier.size} px, "
        + f"{parameters:,} parameters, {size:.2f} MB in half precision.", "",
        f"- Reads: {', '.join(f'{name} ({len(names)})' for name, names in test.heads.items())}",
        f"- Data: `{cfg.data}`, training split, seed {cfg.seed}",
        f"- Ties planted: {', '.join(planted_ties) or 'none'}",
        f"- Labels swapped within the tied pairs: {config['confusion']:.1%}",
        f"- Augmentation: {', '.join(f'{k} {v}' for k, v in cfg.augment.items())}",
        "- Runs, each continuing the one before:", *runs,
        f"- SHA-256 of `model.safetensors`'s contents as loaded: `{classifier.digest}`", "",
        f"Accuracy on {len(test.images):,} test pictures without ties:", "",
        "| pictures | " + " | ".join(test.heads) + " |", "|---" * (1 + len(test.heads)) + "|",
        *(f"| {kind} | {' | '.join(f'{v:.2%}' for v in shares.values())} |" for kind, shares in figures.items()),
    ]  # fmt: skip
    (out / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[-len(rows) - 2 :]))


def measure_facts(names: Sequence[str], n: int) -> dict[str, Any]:
    """What was planted, and what of it each classifier shows on `n` test renders per question."""
    seed = planted.SPLIT_SEEDS["test"]
    trained = json.loads((SHIPPED / "planted_shortcut" / "config.json").read_text())
    planted_ties = {
        name: {"factor": planted.SHORTCUTS[name][0], "cue": planted.SHORTCUTS[name][1], "strength": share}
        for name, share in trained["strength"].items()
    }
    measured = {}
    for name in names:
        classifier = load_shipped(SHIPPED / name)
        measured[name] = {
            "digest": classifier.digest,
            "ties": {tied: tie_facts(classifier, tied, n, seed) for tied in planted.SHORTCUTS},
        }
    return {
        "command": f"{COMMAND} facts", "split": "test", "seed": seed, "renders": n,
        "planted": planted_ties, "labels_swapped_within_pairs": trained["confusion"], "classifiers": measured,
    }  # fmt: skip


def facts(n: int = 1000) -> None:
    """Write facts.json beside the shipped classifiers."""
    text = json.dumps(measure_facts(("planted_clean", "planted_shortcut"), n), indent=1)
    (SHIPPED / "facts.json").write_text(text + "\n")
    print(text)


# --- command line --------------------------------------------------------------------------------------------


def configure(arguments: Sequence[str]) -> DictConfig:
    """Defaults, then the preset, then the command line. Raises SystemExit with one line for an unknown key or value."""
    cli = DictConfig(OmegaConf.from_cli(list(arguments)))
    base = read_defaults()
    presets = base.pop("presets")
    data = cli.get("data", "planted")
    if data not in ("planted", "cifar10"):
        raise SystemExit(f"data={data}: allowed are planted, cifar10")
    if unknown := {str(key) for key in cli} - {str(key) for key in base}:
        raise SystemExit(f"{', '.join(sorted(unknown))}: unknown; allowed are {', '.join(map(str, base))}")
    name = cli.get("name") or next(key for key, preset in presets.items() if preset.data == data)
    whole = ("kwargs", "strength", "scenes")  # mappings that replace those before them, where others merge
    for layer in (presets.get(name, OmegaConf.create({"data": data})), cli):
        base.update({key: layer[key] for key in whole if key in layer})
        base.merge_with({key: value for key, value in layer.items() if key not in whole})
    base.name = name
    if wrong := {str(key) for key in base.strength} - set(planted.SHORTCUTS):
        raise SystemExit(f"strength: {', '.join(wrong)} has no cue; allowed are {', '.join(planted.SHORTCUTS)}")
    if wrong := set(base.heads) - set(HEADS):
        raise SystemExit(f"heads: {', '.join(wrong)} unknown; allowed are {', '.join(HEADS)}")
    return base


def read_defaults() -> DictConfig:
    """conf/train/classifier.yaml with its presets."""
    return DictConfig(OmegaConf.load(ROOT / "conf" / "train" / "classifier.yaml"))


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["facts"]:
        return facts()
    cfg = configure(arguments)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device)
    if cfg.steps > 0:
        corpus = load_corpus(cfg, "train", cfg.images)
        network, runs = build(cfg, sum(len(names) for names in corpus.heads.values()))
        started = time.monotonic()
        steps = train(network, corpus, cfg, device, sum(run["steps"] for run in runs))
        run = {
            "command": shlex.join([*COMMAND.split(), *arguments]), "steps": steps, "batch": cfg.batch,
            "pictures": len(corpus.images), "seconds": round(time.monotonic() - started), "device": device.type,
        }  # fmt: skip
        save(network, corpus, cfg, [*runs, run])
    write_card(cfg)
    print(f"saved {cfg.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
