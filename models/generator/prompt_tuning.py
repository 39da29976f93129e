"""Prompts with free tokens: how they are written, and what stands in the free places (DiffExplainer, 3.2 and 4.4).

A prompt such as `a picture of *4` has four free tokens that begin at random, `a texture of *dry_grass` as many as the
words have and that begin as their tokens. Such marks may stand anywhere in a prompt, more than once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.runner.configuration.value_ranges import Names, NonNegative, Positive, PositiveFraction
from classifier_lens.runner.types import UserError, first_line

FREE_TOKENS = re.compile(r"\*([^\s*]+)")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt's token numbers without its first and last mark; free_positions: the positions among them that are
    optimised; initialized_from_word: whether each of those begins as the token that stands there, or at random."""

    token_ids: tuple[int, ...]
    free_positions: tuple[int, ...]
    initialized_from_word: tuple[bool, ...]

    @property
    def length(self) -> int:
        """Tokens in all, first and last mark counted."""
        return len(self.token_ids) + 2


def fixed_words(prompt: str) -> str:
    """The fixed words of a prompt."""
    return " ".join(FREE_TOKENS.sub(" ", prompt).split())


def parse_prompt(tokenizer: Any, prompt: str) -> PromptTemplate:
    """A prompt as tokens. Raises UserError without a mark, for an empty one, and beyond the tokenizer's length."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    ids: list[int] = []
    free: list[int] = []
    begun: list[bool] = []
    for i, part in enumerate(FREE_TOKENS.split(prompt)):
        marked, count = i % 2 == 1, int(part) if i % 2 == 1 and part.isdigit() else None
        own = tokens(part.replace("_", " ") if marked else part) if count is None else [tokenizer.eos_token_id] * count
        if marked:
            free += range(len(ids), len(ids) + len(own))
            begun += [count is None] * len(own)
        ids += own
    template = PromptTemplate(tuple(ids), tuple(free), tuple(begun))
    if not free:
        raise UserError(f"task.prompt={prompt}: needs free tokens, as *4 for four of them or *sand for a word's own")
    if template.length > tokenizer.model_max_length:
        raise UserError(f"task.prompt={prompt}: has {template.length} tokens: allowed are {tokenizer.model_max_length}")
    return template


@dataclass(frozen=True)
class GumbelSample:
    """What is random about one step's prompts: noise "b m n v" in (−∞, ∞), and the temperature of its softmax."""

    gumbel: Float[Tensor, "b m n v"]
    temperature: float


class PromptTokens(Protocol):
    """What stands in a prompt's free places."""

    @property
    def control_name(self) -> str:
        """The name of what is optimised, batch first."""

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """Where the control begins, (b, n, ·), n the largest number of free places."""

    def sample_gumbel(
        self, networks: Networks, shape: tuple[int, int], seeds: Sequence[int], k: int
    ) -> GumbelSample | None:
        """What is random at step k for `shape` = (m, n), each sample from its own seed."""

    def token_embeddings(
        self, networks: Networks, values: Tensor, draw: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        """Token embeddings of a control's values; m is 1 where all pictures have the same."""

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        """The prompts in words, whole."""

    def is_discrete(self) -> bool:
        """Whether a prompt's words are all that its pictures follow from."""


def embedding_table(networks: Networks) -> Float[Tensor, "v d"]:
    """The embeddings of all tokens."""
    weight: Tensor = networks.text_encoder.get_input_embeddings().weight
    return weight.detach().float()


def alphabetic_tokens(networks: Networks) -> list[int]:
    """The tokens that consist of letters alone."""
    vocabulary = networks.tokenizer.get_vocab().items()
    return sorted(i for token, i in vocabulary if re.fullmatch(r"[a-z]+", token.removesuffix("</w>")))


def decode_prompt(tokenizer: Any, template: PromptTemplate, chosen: Sequence[int]) -> str:
    """A template's prompt with other tokens in its free places, as a user would type it."""
    ids = list(template.token_ids)
    for place, token in zip(template.free_positions, chosen, strict=False):
        ids[place] = int(token)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()


@dataclass(frozen=True)
class SoftPrompt:
    """Free embeddings, which need not be any word's. load_path: a file of an earlier answer that all prompts begin
    from."""

    load_path: str | None = None
    control_name: str = field(default="tokens", init=False)

    def is_discrete(self) -> bool:
        return False

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """The words' own embeddings; at random places those of any tokens of letters."""
        known, count, any_of = (
            embedding_table(networks),
            max(len(t.free_positions) for t in templates),
            alphabetic_tokens(networks),
        )
        if self.load_path is not None:
            return self._loaded(count, known.shape[1]).to(known).expand(len(templates), -1, -1).clone()
        rows = []
        for template, seed in zip(templates, seeds, strict=True):
            drawn = torch.randint(len(any_of), (count,), generator=torch.Generator().manual_seed(seed))
            ids = [any_of[int(i)] for i in drawn]
            for i, (place, begun) in enumerate(
                zip(template.free_positions, template.initialized_from_word, strict=True)
            ):
                ids[i] = template.token_ids[place] if begun else ids[i]
            rows.append(known[ids])
        return torch.stack(rows)

    def _loaded(self, count: int, width: int) -> Float[Tensor, "n d"]:
        path = Path(str(self.load_path))
        if not path.is_file():
            raise UserError(
                f"parametrization.tokens.load_path={path}: no such file; wanted is an answer's controls.safetensors"
            )
        try:
            found = load_file(path).get(self.control_name)
        except SafetensorError as error:
            raise UserError(f"parametrization.tokens.load_path={path}: cannot be read ({first_line(error)})") from error
        if found is None or found.shape != (count, width):
            held = "none" if found is None else " x ".join(map(str, found.shape))
            raise UserError(
                f"parametrization.tokens.load_path={path}: holds {held} tokens, the prompt needs {count} x {width}"
            )
        return found

    def sample_gumbel(
        self, networks: Networks, shape: tuple[int, int], seeds: Sequence[int], k: int
    ) -> GumbelSample | None:
        return None

    def token_embeddings(
        self, networks: Networks, values: Tensor, draw: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        return values[:, None]

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        """With the tokens of nearest direction; the pictures follow from the embeddings, not from these words."""
        known = F.normalize(embedding_table(networks), dim=1)
        nearest = (F.normalize(values.float(), dim=-1) @ known.T).argmax(dim=-1)
        return [decode_prompt(networks.tokenizer, t, row.tolist()) for t, row in zip(templates, nearest, strict=True)]


@dataclass(frozen=True)
class HardPrompt:
    """Tokens of the vocabulary, by straight-through Gumbel-softmax over logits (Jang et al., 2017).

    vocabulary: words whose tokens are allowed, None for all tokens of letters; exclude: words whose tokens are not;
    initial_std: standard deviation of the logits at the start; temperatures: at step 0, and as it falls by the factor
    `temperature_decay` each step never lower than the second.
    """

    vocabulary: Names | None
    exclude: Sequence[str]
    initial_std: NonNegative
    temperatures: tuple[Positive, Positive]
    temperature_decay: PositiveFraction
    control_name: str = field(default="logits", init=False)

    def is_discrete(self) -> bool:
        return True

    def allowed_tokens(self, networks: Networks) -> list[int]:
        """The token numbers that may be chosen. Raises UserError if there are none."""
        tokenizer = networks.tokenizer

        def numbers(words: Sequence[str]) -> set[int]:
            return {i for word in words for i in tokenizer(word, add_special_tokens=False).input_ids}

        chosen = set(alphabetic_tokens(networks)) if self.vocabulary is None else numbers(self.vocabulary)
        if not (found := sorted(chosen - numbers(self.exclude))):
            raise UserError("parametrization.tokens: vocabulary without exclude has no token left")
        return found

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """Random logits; at places that begin as words high ones for the tokens that stand there."""
        known, count = self.allowed_tokens(networks), max(len(t.free_positions) for t in templates)
        rows = []
        for template, seed in zip(templates, seeds, strict=True):
            row = self.initial_std * torch.randn(count, len(known), generator=torch.Generator().manual_seed(seed))
            for i, (place, begun) in enumerate(
                zip(template.free_positions, template.initialized_from_word, strict=True)
            ):
                if begun:
                    if template.token_ids[place] not in known:
                        word = networks.tokenizer.decode([template.token_ids[place]])
                        raise UserError(f"task.prompt: '{word}' is not among the tokens that may be chosen")
                    row[i, known.index(template.token_ids[place])] = row[i].max() + 1.0
            rows.append(row)
        return torch.stack(rows).to(networks.device)

    def sample_gumbel(
        self, networks: Networks, shape: tuple[int, int], seeds: Sequence[int], k: int
    ) -> GumbelSample | None:
        size = (*shape, len(self.allowed_tokens(networks)))
        uniform = torch.stack([torch.rand(size, generator=torch.Generator().manual_seed(s)) for s in seeds])
        gumbel = -(-uniform.clamp(1e-20, 1 - 1e-7).log()).log()
        high, low = self.temperatures
        return GumbelSample(gumbel.to(networks.device), max(low, high * self.temperature_decay**k))

    def token_embeddings(
        self, networks: Networks, values: Tensor, draw: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        """One token's embedding in each place; gradients as if it were the softmax's mean of all."""
        known = embedding_table(networks)[self.allowed_tokens(networks)]
        if draw is None:
            return F.one_hot(values.argmax(dim=-1), len(known)).to(known)[:, None] @ known
        soft = ((values[:, None] + draw.gumbel) / draw.temperature).softmax(dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), len(known)).to(soft)
        return (hard + soft - soft.detach()) @ known

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        known = torch.tensor(self.allowed_tokens(networks))
        chosen = known[values.argmax(dim=-1).cpu()]
        return [decode_prompt(networks.tokenizer, t, row.tolist()) for t, row in zip(templates, chosen, strict=True)]
