"""Segment Anything networks with random weights, in folders of the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, SamConfig, SamHQConfig, SamHQModel, SamModel

# The published files, but for what makes the networks small.
SIZE = 64
PREPROCESSOR = {
    "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "SamImageProcessor", "pad_size": {"height": SIZE, "width": SIZE},
    "processor_class": "SamProcessor", "resample": 2, "rescale_factor": 1 / 255, "size": {"longest_edge": SIZE},
}  # fmt: skip
VISION = {
    "model_type": "", "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIZE, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8,
    "mlp_dim": 32, "initializer_range": 0.1,
}  # fmt: skip
PROMPT = {
    "model_type": "", "hidden_size": 16, "image_size": SIZE, "patch_size": 8, "image_embedding_size": 8,
    "mask_input_channels": 4, "num_point_embeddings": 4,
}  # fmt: skip
DECODER = {
    "model_type": "", "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_multimask_outputs": 3, "iou_head_depth": 3, "iou_head_hidden_dim": 16,
}  # fmt: skip
SAM2_VISION = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIZE, SIZE], "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "window_size_per_stage": [4, 4, 4, 4],
        "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [3],
    },
    "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 32,
}  # fmt: skip
SAM2_PROMPT = {"hidden_size": 32, "image_size": SIZE, "patch_size": 16, "mask_input_channels": 4}
SAM2_DECODER = {
    "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
}  # fmt: skip


def write_sam(kind: str, folder: Path) -> Path:
    """The folder with config.json, model.safetensors and preprocessor_config.json of a network of one kind."""
    parts: dict[str, Any]
    if kind == "sam2":
        parts = {
            "vision_config": SAM2_VISION, "prompt_encoder_config": SAM2_PROMPT, "mask_decoder_config": SAM2_DECODER,
        }  # fmt: skip
        initialised(Sam2Model, Sam2Config(**parts)).save_pretrained(folder)
        Sam2ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        # As published: it names the network that follows objects through a video.
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam2_video"}))
        return folder
    decoder = DECODER | ({"vit_dim": 16} if kind == "sam_hq" else {})
    parts = {"vision_config": VISION, "prompt_encoder_config": PROMPT, "mask_decoder_config": decoder}
    config_class, network_class = {"sam": (SamConfig, SamModel), "sam_hq": (SamHQConfig, SamHQModel)}[kind]
    initialised(network_class, config_class(**parts)).save_pretrained(folder)
    config = {
        "architectures": [network_class.__name__], "initializer_range": 0.02, "model_type": kind,
        "torch_dtype": "float32", "transformers_version": "4.29.0.dev0", **parts,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def initialised(network_class: Any, config: Any) -> Any:
    """A network with seeded weights that are large enough for masks with edges."""
    torch.manual_seed(0)
    network = network_class(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network
