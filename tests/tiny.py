"""Tiny CLIP checkpoints with a word-level tokenizer, and full-size random ones with OpenAI's vocabulary."""

import gzip
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast

WORDS = (
    "a an the photo picture of there is in scene close-up background many sky sea boat ship grass tree car person red".split()
)
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<pad>", "<unk>"]


def tiny_tokenizer(max_length: int = 16) -> PreTrainedTokenizerFast:
    """Word-level: every word of WORDS is one token, all others are `<unk>`."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    names = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def tiny_clip_config(**vision) -> CLIPConfig:
    text = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "projection_dim": 24,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 24,
        **vision,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def save_tiny_clip(folder: Path, **vision) -> Path:
    """A randomly initialised tiny CLIP with its tokenizer, saved as transformers saves them."""
    torch.manual_seed(0)
    CLIPModel(tiny_clip_config(**vision)).eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def openai_tokenizer(bpe_file: Path) -> CLIPTokenizer:
    """OpenAI's tokenizer, built from its published merges."""
    lines = gzip.decompress(bpe_file.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges), *SPECIAL[:2]]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


def byte_symbols() -> list[str]:
    """The printable stand-in of every byte, in the order in which byte-level BPE numbers them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def save_random_vit_b16(folder: Path, bpe_file: Path) -> Path:
    """A randomly initialised CLIP of ViT-B/16's full size."""
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval().save_pretrained(folder)
    openai_tokenizer(bpe_file).save_pretrained(folder)
    return folder
