"""Prompts with free tokens: their notation, and soft and hard prompts (DiffExplainer, 3.2 and 4.4).

A prompt such as `a picture of *4` has four free tokens with random initial values; `a texture of *dry_grass` has as
many free tokens as the words, which are their initial values. Such marks can be anywhere in a prompt, more than once.
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
    """token_ids: of the prompt without the start and end token; free_positions: the positions among them that are
    optimized; initialized_from_word: whether the initial value of each is the token at its position, or random."""

    token_ids: tuple[int, ...]
    free_positions: tuple[int, ...]
    initialized_from_word: tuple[bool, ...]

    @property
    def length(self) -> int:
        """The number of tokens with the start and end token."""
        return len(self.token_ids) + 2


def fixed_words(prompt: str) -> str:
    """The prompt without its free tokens."""
    return " ".join(FREE_TOKENS.sub(" ", prompt).split())


def parse_prompt(tokenizer: Any, prompt: str) -> PromptTemplate:
    """The tokens of a prompt. Raises UserError if none is free, and if there are more than the tokenizer allows."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    ids: list[int] = []
    free: list[int] = []
    from_word: list[bool] = []
    for i, part in enumerate(FREE_TOKENS.split(prompt)):
        marked, count = i % 2 == 1, int(part) if i % 2 == 1 and part.isdigit() else None
        words = part.replace("_", " ") if marked else part
        part_ids = tokens(words) if count is None else [tokenizer.eos_token_id] * count
        if marked:
            free += range(len(ids), len(ids) + len(part_ids))
            from_word += [count is None] * len(part_ids)
        ids += part_ids
    template = PromptTemplate(tuple(ids), tuple(free), tuple(from_word))
    if not free:
        raise UserError(f"task.prompt={prompt}: needs free tokens, as *4 for four of them or *sand for a word's own")
    if template.length > tokenizer.model_max_length:
        raise UserError(f"task.prompt={prompt}: has {template.length} tokens: allowed are {tokenizer.model_max_length}")
    return template


@dataclass(frozen=True)
class GumbelSample:
    """The random part of one step's prompts: Gumbel noise "b m n v", and the temperature of the softmax."""

    gumbel: Float[Tensor, "b m n v"]
    temperature: float


class PromptTokens(Protocol):
    """The parametrization of a prompt's free tokens."""

    @property
    def control_name(self) -> str:
        """The name of the control."""

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """Initial values of the control, (b, n, ·), n the largest number of free tokens."""

    def sample_gumbel(
        self, networks: Networks, shape: tuple[int, int], seeds: Sequence[int], k: int
    ) -> GumbelSample | None:
        """The random part of step k for `shape` = (m, n), each sample from its own seed; None for none."""

    def token_embeddings(
        self, networks: Networks, values: Tensor, sample: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        """Token embeddings of a control's values; m is 1 where all images of a prompt have the same."""

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        """The prompts in words."""

    def is_discrete(self) -> bool:
        """Whether the images of a prompt depend on its words alone."""


def embedding_table(networks: Networks) -> Float[Tensor, "v d"]:
    """The embeddings of all tokens."""
    weight: Tensor = networks.text_encoder.get_input_embeddings().weight
    return weight.detach().float()


def alphabetic_tokens(networks: Networks) -> list[int]:
    """The tokens of letters alone."""
    vocabulary = networks.tokenizer.get_vocab().items()
    return sorted(i for token, i in vocabulary if re.fullmatch(r"[a-z]+", token.removesuffix("</w>")))


def decode_prompt(tokenizer: Any, template: PromptTemplate, tokens: Sequence[int]) -> str:
    """The prompt with tokens in its free positions, as a user would type it."""
    ids = list(template.token_ids)
    for position, token in zip(template.free_positions, tokens, strict=False):
        ids[position] = int(token)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()


@dataclass(frozen=True)
class SoftPrompt:
    """Free token embeddings, which need not be those of words. load_path: controls.safetensors of a result, the initial
    values of all prompts; None for none."""

    load_path: str | None = None
    control_name: str = field(default="tokens", init=False)

    def is_discrete(self) -> bool:
        return False

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """The embeddings of the words, and of random tokens of letters."""
        table, letters = embedding_table(networks), alphabetic_tokens(networks)
        count = max(len(t.free_positions) for t in templates)
        if self.load_path is not None:
            return self._load(count, table.shape[1]).to(table).expand(len(templates), -1, -1).clone()
        rows = []
        for template, seed in zip(templates, seeds, strict=True):
            random = torch.randint(len(letters), (count,), generator=torch.Generator().manual_seed(seed))
            ids = [letters[int(i)] for i in random]
            for i, (position, from_word) in enumerate(
                zip(template.free_positions, template.initialized_from_word, strict=True)
            ):
                ids[i] = template.token_ids[position] if from_word else ids[i]
            rows.append(table[ids])
        return torch.stack(rows)

    def _load(self, count: int, width: int) -> Float[Tensor, "n d"]:
        path = Path(str(self.load_path))
        if not path.is_file():
            raise UserError(
                f"parametrization.tokens.load_path={path}: no such file; give the controls.safetensors of a result"
            )
        try:
            tokens = load_file(path).get(self.control_name)
        except SafetensorError as error:
            raise UserError(f"parametrization.tokens.load_path={path}: cannot be read ({first_line(error)})") from error
        if tokens is None or tokens.shape != (count, width):
            shape = "none" if tokens is None else " x ".join(map(str, tokens.shape))
            raise UserError(
                f"parametrization.tokens.load_path={path}: holds {shape} tokens, the prompt needs {count} x {width}"
            )
        return tokens

    def sample_gumbel(
        self, networks: Networks, shape: tuple[int, int], seeds: Sequence[int], k: int
    ) -> GumbelSample | None:
        return None

    def token_embeddings(
        self, networks: Networks, values: Tensor, sample: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        return values[:, None]

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        """With the tokens of largest cosine similarity; the images depend on the embeddings, not on these words."""
        table = F.normalize(embedding_table(networks), dim=1)
        nearest = (F.normalize(values.float(), dim=-1) @ table.T).argmax(dim=-1)
        return [decode_prompt(networks.tokenizer, t, row.tolist()) for t, row in zip(templates, nearest, strict=True)]


@dataclass(frozen=True)
class HardPrompt:
    """Tokens of the vocabulary, by straight-through Gumbel-softmax over logits (Jang et al., 2017).

    vocabulary: words whose tokens are allowed, None for all tokens of letters; exclude: words whose tokens are not;
    initial_std: standard deviation of the initial logits; temperatures: at step 0 and at least; temperature_decay:
    factor of the temperature at each step.
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
        """The ids of the allowed tokens. Raises UserError if there are none."""
        tokenizer = networks.tokenizer

        def ids(words: Sequence[str]) -> set[int]:
            return {i for word in words for i in tokenizer(word, add_special_tokens=False).input_ids}

        vocabulary = set(alphabetic_tokens(networks)) if self.vocabulary is None else ids(self.vocabulary)
        if not (allowed := sorted(vocabulary - ids(self.exclude))):
            raise UserError("parametrization.tokens: vocabulary without exclude has no token left")
        return allowed

    def initialize(self, networks: Networks, templates: Sequence[PromptTemplate], seeds: Sequence[int]) -> Tensor:
        """Random logits; the tokens of words have the highest ones at their positions."""
        allowed, count = self.allowed_tokens(networks), max(len(t.free_positions) for t in templates)
        rows = []
        for template, seed in zip(templates, seeds, strict=True):
            row = self.initial_std * torch.randn(count, len(allowed), generator=torch.Generator().manual_seed(seed))
            for i, (position, from_word) in enumerate(
                zip(template.free_positions, template.initialized_from_word, strict=True)
            ):
                if from_word:
                    if template.token_ids[position] not in allowed:
                        word = networks.tokenizer.decode([template.token_ids[position]])
                        raise UserError(f"task.prompt: '{word}' is not among the allowed tokens")
                    row[i, allowed.index(template.token_ids[position])] = row[i].max() + 1.0
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
        self, networks: Networks, values: Tensor, sample: GumbelSample | None
    ) -> Float[Tensor, "b m n d"]:
        """The embedding of one token per position, with the gradient of the softmax's mean (straight-through)."""
        table = embedding_table(networks)[self.allowed_tokens(networks)]
        if sample is None:
            return F.one_hot(values.argmax(dim=-1), len(table)).to(table)[:, None] @ table
        soft = ((values[:, None] + sample.gumbel) / sample.temperature).softmax(dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), len(table)).to(soft)
        return (hard + soft - soft.detach()) @ table

    def decode(self, networks: Networks, values: Tensor, templates: Sequence[PromptTemplate]) -> list[str]:
        allowed = torch.tensor(self.allowed_tokens(networks))
        tokens = allowed[values.argmax(dim=-1).cpu()]
        return [decode_prompt(networks.tokenizer, t, row.tolist()) for t, row in zip(templates, tokens, strict=True)]
