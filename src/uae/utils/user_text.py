"""What people write is text: ``<|im_end|>`` in a question or a caption ends no message.

A tokenizer takes the names of its control tokens for the tokens wherever they stand. So in what
people write each name is hidden behind stand-ins before a template is filled in, and shown again
after the result was cut at the control tokens that are left, which are the template's own. Between
them the model's vocabulary is used without control tokens. Text without such names is tokenized
with its template in one piece by the tokenizer itself, as the library does.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

MARK = "\ufdd0"  # a code point that is no character and never will be one; before each stand-in
FIRST = 0xF0000  # of a plane for private use, as large as any number of control tokens


class UserText:
    """Text of people, for one tokenizer: ``encode(template of hide(text))``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        special = {
            name: self._tokenizer.convert_tokens_to_ids(name)
            for name in tokenizer.all_special_tokens
        }
        self._control: dict[str, int] = self._tokenizer.get_added_vocab() | special
        names = sorted(self._control, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._stand_in = {name: f"{MARK}{chr(FIRST + i)}" for i, name in enumerate(names)}
        self._name = {stand_in: name for name, stand_in in self._stand_in.items()}
        self._shown = re.compile(f"{MARK}.")

    def hide(self, text: str) -> str:
        """The text with stand-ins for control tokens' names; halves of characters, which are none,
        are replaced."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._cut.sub(lambda match: self._stand_in[match[0]], text)

    def show(self, text: str) -> str:
        """The text as it was before ``hide``."""
        return self._shown.sub(lambda match: self._name.get(match[0], match[0]), text)

    def encode(self, filled: str, *, begins: bool = False) -> list[int]:
        """Token ids of a template with hidden text in it; begins: put before it what the tokenizer
        begins texts with.

        Tokens of what is hidden are never control tokens.
        """
        if MARK not in filled:
            return self._tokenizer(filled, add_special_tokens=begins).input_ids
        ids = self._tokenizer("").input_ids if begins else []
        for piece in self._cut.split(filled):
            if piece in self._control:
                ids.append(self._control[piece])
            else:
                ids += self._words.encode(self.show(piece), add_special_tokens=False).ids
        return ids

    @cached_property
    def _words(self) -> Tokenizer:
        """The tokenizer without control tokens, which a vocabulary of whole words may name too."""
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = []
        model = content["model"]
        if isinstance(model["vocab"], dict):
            unused = self._control.keys() - {model.get("unk_token")}
            model["vocab"] = {
                token: i for token, i in model["vocab"].items() if token not in unused
            }
        content["post_processor"] = None
        return Tokenizer.from_str(json.dumps(content))
