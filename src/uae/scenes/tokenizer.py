"""The world's tokenizer: one token a word, loaded as a ``transformers`` fast tokenizer with Qwen's special tokens.

Its chat template writes messages as Qwen2.5-VL's does; line breaks vanish, as this tokenizer splits on white space.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from uae.scenes.language import VOCABULARY

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|unk|>",
)  # fmt: skip

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer from nothing: special tokens first, then ``VOCABULARY``."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *VOCABULARY))}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|unk|>", "<|endoftext|>", "<|im_end|>")],
        model_max_length=512,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
