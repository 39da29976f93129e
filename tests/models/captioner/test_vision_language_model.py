"""A vision-language model as a captioner: repeated prompts, and a small checkpoint in the published layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from classifier_lens.models.captioner.captioner import TemplateCaptioner
from classifier_lens.models.captioner.vision_language_model import (
    ChatTurn,
    FewShotExample,
    TransformersChatModel,
    VlmCaptioner,
    load,
)
from classifier_lens.runner.protocols import Captioner
from classifier_lens.runner.types import Example, UserError

PICTURE = torch.linspace(0, 1, 3 * 24 * 24).view(3, 24, 24)
CRAB = Example("crab-1", lambda: PICTURE, "rock crab")
FALLBACK = TemplateCaptioner("a photograph of {article} {label}")
PROMPTS = ["caption {article} {label}", "name the {label}"]


class Scripted:
    """Returns its responses in turn and records the prompts."""

    def __init__(self, *responses: str) -> None:
        self.responses, self.recorded_turns = list(responses), list[list[ChatTurn]]()

    def __call__(self, turns: Sequence[ChatTurn]) -> str:
        self.recorded_turns.append(list(turns))
        return self.responses.pop(0)

    def demands(self) -> list[str]:
        return [turns[-1].prompt for turns in self.recorded_turns]


def vlm(chat: Scripted, shots: Sequence[FewShotExample] = ()) -> VlmCaptioner:
    return VlmCaptioner(chat, PROMPTS, "what is there?", shots, FALLBACK)


# --- prompts and responses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "caption"),
    [
        ("A rock crab on sand.", "A rock crab on sand"),
        (' "a rock\ncrab on  sand" ', "a rock crab on sand"),
        ("A rock crab. It sits on sand.", "A rock crab"),
    ],
)
def test_a_response_that_contains_the_class_name_is_the_caption(response: str, caption: str) -> None:
    captioner: Captioner = vlm(chat := Scripted(response))
    assert captioner.caption(CRAB) == caption and not captioner.notes
    assert chat.demands() == ["caption a rock crab"]


def test_further_prompts_are_tried_until_the_response_contains_the_class_name() -> None:
    captioner = vlm(chat := Scripted("a crab. A rock crab!", "a rock crab in water"))
    assert captioner.caption(CRAB) == "a rock crab in water" and not captioner.notes
    assert chat.demands() == ["caption a rock crab", "name the rock crab"]


def test_after_the_last_prompt_the_template_is_used_with_a_note() -> None:
    captioner = vlm(Scripted("a crab", "an animal", "a rock crab"))
    assert captioner.caption(CRAB) == "a photograph of a rock crab"
    (name, note), *others = captioner.notes.items()
    assert name == "crab-1" and not others
    assert note == (
        "none of 2 captions of the model contains 'rock crab', the last one is 'an animal'; "
        "the template is used instead"
    )


def test_examples_precede_every_prompt_with_their_class() -> None:
    shot = FewShotExample(1 - PICTURE, "owl", "an owl at night")
    captioner = vlm(chat := Scripted("no", "a rock crab"), [shot])
    captioner.caption(CRAB)
    for turns, prompt in zip(chat.recorded_turns, ["caption an owl", "name the owl"], strict=True):
        assert [(t.prompt, t.response) for t in turns[:-1]] == [(prompt, "an owl at night")]
        assert turns[-1].image is PICTURE and turns[-1].response is None


@pytest.mark.parametrize(
    ("response", "objects"),
    [
        ("Rock crab, sand, the sea and a shell.", ["rock crab", "sand", "the sea", "a shell"]),
        ("1. A crab\n2. Sand\n3. sand\n- water", ["a crab", "sand", "water"]),
    ],
)
def test_objects_are_the_entries_of_a_list(response: str, objects: list[str]) -> None:
    captioner = vlm(chat := Scripted(response))
    assert captioner.objects(CRAB) == objects and not captioner.notes
    assert [(t.prompt, t.response) for t in chat.recorded_turns[0]] == [("what is there?", None)]


def test_an_empty_list_gives_the_class_and_a_note() -> None:
    captioner = vlm(Scripted(" ,.\n"))
    assert captioner.objects(CRAB) == ["a rock crab"] and "listed no objects" in captioner.notes["crab-1"]


# --- a checkpoint --------------------------------------------------------------------------------------------

SPECIAL = ["<|im_start|>", "<end_of_utterance>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<global-img>"]
# What the published template does, without its system's turn.
CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random network of SmolVLM's architecture with its files; its tokens are single bytes."""
    folder = tmp_path_factory.mktemp("vlm")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[2],
        additional_special_tokens=SPECIAL[3:] + [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)],
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    Idefics3Processor(images, tokenizer, image_seq_len=4).save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": 4, "processor_class": "Idefics3Processor"})
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    torch.manual_seed(0)
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    network = Idefics3ForConditionalGeneration(
        Idefics3Config(
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
            vision_config={
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 4,
            },
            text_config={
                "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer), **marks,
            },
        )
    )  # fmt: skip
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    network.save_pretrained(folder)
    return folder


def loaded(path: Path | str, **changes: Any) -> VlmCaptioner:
    settings: dict[str, Any] = {
        "revision": None, "dtype": "float32", "device": "cpu",
        "max_new_tokens": 6, "caption_prompts": PROMPTS, "objects_prompt": "what?", "examples": [],
        "fallback": FALLBACK, **changes,
    }  # fmt: skip
    return load(str(path), **settings)


def chat_of(captioner: VlmCaptioner) -> TransformersChatModel:
    assert isinstance(captioner.chat, TransformersChatModel)
    return captioner.chat


def test_the_most_likely_tokens_after_the_last_prompt_are_the_response(checkpoint: Path) -> None:
    chat = chat_of(loaded(checkpoint))
    turns = [ChatTurn(1 - PICTURE, "what?", "an owl"), ChatTurn(PICTURE, "and this?", None)]
    text = (
        "<|im_start|>User:<image> what?<end_of_utterance>\nAssistant: an owl<end_of_utterance>\n"
        "User:<image> and this?<end_of_utterance>\nAssistant:"
    )
    images = [
        Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in (1 - PICTURE, PICTURE)
    ]  # fmt: skip
    inputs = chat.processor(text=[text], images=[images], return_tensors="pt")
    tokens = inputs["input_ids"]
    start = tokens.shape[1]
    for _ in range(6):
        with torch.no_grad():
            logits = chat.network(**{**inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
        if tokens[0, -1] == chat.processor.tokenizer.eos_token_id:
            break
    expected = chat.processor.decode(tokens[0, start:], skip_special_tokens=True)
    assert expected and chat(turns) == expected == chat(turns)


def test_the_response_depends_on_the_image(checkpoint: Path) -> None:
    chat = chat_of(loaded(checkpoint, max_new_tokens=12))
    responses = {
        chat([ChatTurn(p, "what?", None)]) for p in (PICTURE, 1 - PICTURE, PICTURE.flip(1), torch.zeros(3, 24, 24))
    }
    assert len(responses) > 1


def test_a_checkpoint_captions_with_a_note_about_the_template(checkpoint: Path) -> None:
    captioner = loaded(checkpoint)
    network = chat_of(captioner).network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert (
        captioner.caption(CRAB) == "a photograph of a rock crab" and "none of 2 captions" in captioner.notes["crab-1"]
    )
    assert captioner.objects(CRAB)


def test_examples_are_read_from_files(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "owl.png"
    Image.new("RGB", (20, 10), (255, 0, 51)).save(file)
    example = {"image": str(file), "label": "owl", "caption": "an owl"}
    (shot,) = loaded(checkpoint, examples=[example]).few_shot_examples
    assert (shot.label, shot.caption) == ("owl", "an owl") and shot.image.shape == (3, 10, 20)
    torch.testing.assert_close(shot.image[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    for changes, message in [
        ({"caption": "a bird"}, "captioner.examples: 'a bird' does not contain 'owl'"),
        ({"image": str(tmp_path / "none.png")}, "none.png cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            loaded(checkpoint, examples=[example | changes])
    with pytest.raises(UserError, match="captioner.examples: caption, label is missing"):
        loaded(checkpoint, examples=[{"image": str(file)}])


def test_missing_parts_are_named_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    def copied(name: str, *without: str) -> Path:
        (folder := tmp_path / name).mkdir()
        for file in checkpoint.iterdir():
            if file.name not in without:
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    cases: list[tuple[Path | str, dict[str, Any], str]] = [
        ("nobody/no-such-model", {}, "neither a folder nor, .* in the hub's cache"),
        (copied("weights", "model.safetensors"), {}, "cannot be loaded .*; expected a folder"),
        (copied("silent", "chat_template.json"), {}, "has no chat template"),
        (checkpoint, {"caption_prompts": []}, "captioner.caption_prompts: is empty"),
    ]
    for path, changes, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            loaded(path, **changes)
        assert "\n" not in str(caught.value)
