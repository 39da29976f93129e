"""A CLIPSeg with random weights, in a folder as the library saves it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)

from classifier_lens.data import planted
from classifier_lens.scripts.train.tokenizer import train_tokenizer

LENGTH, SIDE = 20, 32


def write_clipseg(folder: Path) -> Path:
    """The folder; the network takes images of 32 px and texts of 20 tokens."""
    captions = planted.sample_captioned_scenes(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 200, LENGTH, folder.with_name("learned tokenizer"))
    torch.manual_seed(0)
    network = CLIPSegForImageSegmentation(configuration(tokenizer))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    network.half().save_pretrained(folder)
    images = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.4] * 3)
    CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def configuration(tokenizer: PreTrainedTokenizerBase) -> CLIPSegConfig:
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "image_size": SIDE, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    return CLIPSegConfig(
        text_config=text, vision_config=vision, extract_layers=[0, 1], reduce_dim=16, projection_dim=16,
        decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
