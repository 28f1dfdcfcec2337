"""What a language model is told: questions, messages and answers as its tokenizer and chat template
write them.

What people wrote is text in them, whatever control tokens it names (``utils/user_text.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uae.models.learner import Learner
from uae.utils.user_text import UserText
from uae.utils.weights import TEMPLATE_FILES, naming_files

PROBE = "a red circle"  # a question that a template is tried with


def question_about_image(question: str) -> dict:
    """The message of somebody who shows an image."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


class PromptWriter(Learner, ABC):
    """A language model with its tokenizer and chat template."""

    image_pad_id: int

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        self.user_text = UserText(tokenizer)

    @abstractmethod
    def prompt(self, question: str, num_image_tokens: int) -> tuple[int, ...]:
        """Token ids of a question about an image, the image pad repeated as often as there are
        features."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text of ours, in which names of control tokens stand for these."""
        return self.tokenizer(text, add_special_tokens=False).input_ids  # type: ignore

    def tokenize_answer(self, text: str) -> list[int]:
        """Token ids of an answer that somebody wrote, and its end."""
        return [*self.user_text.encode(self.user_text.hide(text)), self.tokenizer.eos_token_id]

    def chat(self, messages: list[dict]) -> list[int]:
        """Token ids of messages and what opens the answer to them; texts in them are text, see
        ``user_text``."""
        return self.user_text.encode(self.fill_template(messages))

    def fill_template(self, messages: list[dict]) -> str:
        """The messages as the model's template writes them, texts hidden."""
        hidden = [message | {"content": self._hide(message["content"])} for message in messages]
        return self.templates.apply_chat_template(
            hidden, tokenize=False, add_generation_prompt=True
        )

    def _hide(self, content: str | list[dict]) -> str | list[dict]:
        if isinstance(content, str):
            return self.user_text.hide(content)
        return [
            part | {"text": self.user_text.hide(part["text"])} if "text" in part else part
            for part in content
        ]

    @property
    def templates(self) -> Any:
        """What fills in the chat template."""
        return self.tokenizer

    def check_prompts(self, folder: Path) -> None:
        """Refuse a folder whose tokenizer or template can't write a prompt: as good as any, but
        without the image.

        Raises:
            ModelFileError: naming the files.
        """
        with naming_files(folder, "a chat template and a tokenizer", *TEMPLATE_FILES):
            missing = [
                name for name in ("pad_token", "eos_token") if getattr(self.tokenizer, name) is None
            ]
            if missing:
                raise ValueError(f"no {' and no '.join(missing)}")
            prompt = self.fill_template([question_about_image(PROBE)])
            if PROBE not in prompt or self.prompt(PROBE, 3).count(self.image_pad_id) != 3:
                raise ValueError(
                    "expected a prompt of the image and the question, the template writes "
                    f"{prompt!r:.80}"
                )
