"""The world's tokenizers: one token a word, as ``transformers`` fast tokenizers.

They differ in their special tokens and chat templates, which are those of Qwen2.5-VL and of
Janus-Pro. Line breaks vanish, as these tokenizers split on white space.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from uae.world.language import VOCABULARY

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|unk|>",
)

QWEN_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


JANUS_TOKENS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
    "<|User|>:",
    "<|Assistant|>:",
)

JANUS_TEMPLATE = """{% for message in messages %}\
{{ '<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ' }}\
{% for part in message['content'] %}\
{{ '<image_placeholder>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}\
{{ '\n\n' if message['role'] == 'user' else '<eos>' }}{% endfor %}\
{% if add_generation_prompt %}<|Assistant|>:{% endif %}"""


def build_qwen_tokenizer() -> PreTrainedTokenizerFast:
    """From nothing: special tokens first, then ``VOCABULARY``."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(QWEN_TOKENS, "<|unk|>"),
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[
            t for t in QWEN_TOKENS if t not in ("<|unk|>", "<|endoftext|>", "<|im_end|>")
        ],
        model_max_length=512,
        padding_side="right",
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def build_janus_tokenizer() -> PreTrainedTokenizerFast:
    """From nothing; it puts BOS before each text, as Janus-Pro's does."""
    words = _word_tokenizer(JANUS_TOKENS, "<unk>")
    words.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", JANUS_TOKENS.index("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|User|>:", "<|Assistant|>:"],
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = JANUS_TEMPLATE
    return tokenizer


def _word_tokenizer(special_tokens: tuple[str, ...], unk_token: str) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate((*special_tokens, *VOCABULARY))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unk_token))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer
