"""Random shortcuts: which network of the held-out suite has which architecture and which correlations.

Seeds 0 to 3 are for development: thresholds, recipes and defaults of tools are chosen on their networks. All other
seeds are for judging: nothing is chosen by them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import PLANTED_FACTORS
from classifier_lens.data.shortcuts import Shortcuts, ShortcutStrength
from classifier_lens.scripts.evaluate.heldout.architectures import ARCHITECTURES

MAX_CLASSES = 5  # with a shortcut, in one network
MIN_STRENGTH = 0.8
TWO_CUES_EVERY = 3  # every third network has a class with two cues
# Otherwise the object alone predicts the class. With it, even a cue of the lowest strength has an effect of 0.43 or
# more on the best possible prediction.
LABEL_NOISE = 0.15


@dataclass(frozen=True)
class HeldOutNetwork:
    """A network of the suite.

    Args:
        index: in the suite, from 0.
        family: key of `ARCHITECTURES`.
        seed: of its training images, their order, the augmentation and the initial weights.
        shortcuts: class -> its cue; a cue of two factors is two shortcuts, which always appear together.
        strength: class -> probability that a training image of it receives the cue.
    """

    index: int
    family: str
    seed: int
    shortcuts: Shortcuts
    strength: ShortcutStrength

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.index:02d}_{self.family}" + ("" if self.shortcuts else "_clean")

    @property
    def label_noise(self) -> float:
        """The share of labels swapped within the pairs of the classes with a shortcut."""
        return LABEL_NOISE if self.shortcuts else 0.0

    @property
    def clean_twin(self) -> HeldOutNetwork:
        """The network of the same family and seed without shortcuts."""
        return replace(self, shortcuts={}, strength={})


def held_out_network(seed: int, index: int) -> HeldOutNetwork:
    """Network `index` of the suite of a seed. It does not depend on the number of networks.

    The numbers of classes with a shortcut take turns, and so do the families, in a random order.
    """
    suite, network = np.random.default_rng(seed), np.random.default_rng((seed, index))
    families = suite.permutation(list(ARCHITECTURES)).tolist()
    first_count, first_with_two_cues = suite.integers(MAX_CLASSES), suite.integers(TWO_CUES_EVERY)
    num_classes = 1 + int(first_count + index) % MAX_CLASSES
    classes = network.choice(planted.CLASSES, num_classes, replace=False).tolist()
    shortcuts = random_cues(classes, (first_with_two_cues + index) % TWO_CUES_EVERY == 0, network)
    strength = {name: round(float(network.uniform(MIN_STRENGTH, 1.0)), 2) for name in classes}
    # Training adds this seed to that of a split, a multiple of 1000: the remainder differs, and so do all scenes.
    training_seed = 1000 * seed + 500 + index // len(families)
    return HeldOutNetwork(index, families[index % len(families)], training_seed, shortcuts, strength)


def random_cues(classes: list[str], has_two_cues: bool, generator: np.random.Generator) -> dict[str, dict[str, str]]:
    """A random factor and value per class, and a second factor for the first class if `has_two_cues`. No value of a
    factor is the cue of two classes."""
    unused = {factor: generator.permutation(values).tolist() for factor, values in PLANTED_FACTORS.values.items()}
    cues: dict[str, dict[str, str]] = {}
    for i, name in enumerate(classes):
        factors = generator.permutation([factor for factor, values in unused.items() if values]).tolist()
        factors = factors[: 2 if has_two_cues and i == 0 else 1]
        cues[name] = {factor: unused[factor].pop() for factor in factors}
    return cues
