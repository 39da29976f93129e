"""A Grounding DINO with random weights, in a folder as the library saves it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SwinConfig,
)

from tests.models.segmenter.from_words import VOCABULARY


def write_detector(folder: Path, side: int = 64) -> Path:
    """The folder, with the network and its processor, which enlarges images to `side` px."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    network = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=backbone, text_config=text, num_queries=12, d_model=32, encoder_layers=1, decoder_layers=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        )
    )  # fmt: skip
    for weight in network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.08)
    network.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)})
    images = GroundingDinoImageProcessor(size={"shortest_edge": side, "longest_edge": 3 * side // 2})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder
