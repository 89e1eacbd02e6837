"""Tiny multimodal models with random weights and processors made here: all that run without torchvision."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "vocab_size": 420,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'MEDIUM' %}MARK"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Reads lists of parts alone, as the templates of many such models do: of a plain text it writes nothing."""


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seconds: float = 1.0) -> np.ndarray:
    return np.sin(np.arange(int(16000 * seconds)) / 20).astype(np.float32)


def make_tokenizer(*tokens: str, **options: Any) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["count to three one two"] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **options,
    )


def chat_template(mark: str, medium: str = "image") -> str:
    return CHAT.replace("MEDIUM", medium).replace("MARK", mark)


def llava() -> tuple[Any, Any]:
    tokenizer = make_tokenizer("<image>")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(**size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return processor, transformers.LlavaForConditionalGeneration(config)


def gemma3() -> tuple[Any, Any]:
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(*marks.values(), extra_special_tokens=marks)
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        image_seq_length=4,
        chat_template=chat_template("<start_of_image>"),
    )
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=512),
        vision_config=transformers.SiglipVisionConfig(**{**VISION, "patch_size": 7}),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    return processor, transformers.Gemma3ForConditionalGeneration(config)


def idefics3() -> tuple[Any, Any]:
    tokenizer = make_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=False
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=chat_template("<image>")
    )
    config = transformers.Idefics3Config(
        vision_config={**VISION, "patch_size": 7},
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return processor, transformers.Idefics3ForConditionalGeneration(config)


def qwen2_audio() -> tuple[Any, Any]:
    tokenizer = make_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        tokenizer,
        chat_template=chat_template("<|audio_bos|><|AUDIO|><|audio_eos|>", "audio"),
    )
    tower = {
        "num_mel_bins": 16,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "max_source_positions": 100,
    }
    config = transformers.Qwen2AudioConfig(
        audio_config=tower,
        text_config={**TEXT, "model_type": "qwen2"},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return processor, transformers.Qwen2AudioForConditionalGeneration(config)


FAMILIES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "qwen2_audio": qwen2_audio,
}


def save_family(name: str, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        processor, model = FAMILIES[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_answer(folder: Path, messages: list[Any], num_tokens: int) -> tuple[str, int]:
    """What transformers alone makes of a conversation: the text, and the length of the prompt."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForMultimodalLM.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    return processor.tokenizer.decode(output[0, length:], skip_special_tokens=True), length
