"""What was answered: a chat completion of any server, and what of it is the caption.

OpenAI's schema lets a message be a text, null, a refusal or a list of parts; servers that speak it
send more: thoughts beside or inside the text, an error with status 200, chunks of a stream that
nobody asked for. ``read_completion`` takes whatever is there. An answer is kept as it came;
``caption_of`` is what remains without the model's thoughts.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

# types of parts that are text; those of reasoning and tools are not
TEXT_PARTS = ("text", "output_text", None)
# one reason in the words of several servers
CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length")


@dataclass(frozen=True)
class Answer:
    """What a captioner said of one image, and what it cost."""

    text: str
    """With its thoughts, if it has any."""
    finish_reason: str
    """`stop`, or `length` when the token limit cut it off; an endpoint's other words are kept."""
    prompt_tokens: int
    completion_tokens: int


class ImageRefused(Exception):
    """This image will never be captioned; the rest can be."""


class NoAnswer(Exception):
    """No answer this time, after all retries."""


class AnsweredError(Exception):
    """An error that came with status 200; it has what the openai library's errors have."""

    def __init__(self, error: Any) -> None:
        fields = error if isinstance(error, dict) else {"message": error}
        super().__init__(str(fields.get("message") or error))
        self.code: Any = fields.get("code")
        self.status_code = int(self.code) if str(self.code).isdecimal() else None


# --- thoughts ------------------------------------------------------------------------------------

THOUGHT_TAG = re.compile(
    r"<\s*(/?)\s*(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
    r"(?:\s+[\w-]+=[^<>]*)?\s*>"
    r"|<\|(?:begin|(end))_of_thought\|>"
    r"|\[(/?)think\]"
    r"|◁(/?)think▷",
    re.IGNORECASE,
)
ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)  # around all that is not a thought


def caption_of(text: str) -> str:
    """The text without ``<think>…</think>`` and its like; empty if it ends in the middle of a
    thought.

    Where a prompt's template opens the thought, the answer holds its end alone: all before it is
    thought.
    """
    caption, start, is_thinking = "", 0, False
    for tag in THOUGHT_TAG.finditer(text):
        if any(tag.groups()):
            caption = caption if is_thinking else ""
            start, is_thinking = tag.end(), False
        elif not is_thinking:
            caption, is_thinking = caption + text[start : tag.start()], True
    if start == 0 and not is_thinking:
        return text
    return "" if is_thinking else ANSWER_TAG.sub("", caption + text[start:]).strip()


# --- chat completions ----------------------------------------------------------------------------


def read_completion(body: bytes) -> Answer:
    """The answer in a response's body.

    Raises:
        AnsweredError: when the body tells of an error.
        NoAnswer: when it holds no answer; the message says what it holds.
    """
    completion = _completion(body)
    choice = _choice(completion, body)
    message = next(
        (choice[key] for key in ("message", "delta") if isinstance(choice.get(key), dict)), {}
    )
    content = message.get("content")
    text = _message_text(choice.get("text") if content is None else content)
    refusal = _text(message.get("refusal")) or _refusal(content)
    reason = choice.get("finish_reason")
    reason = "refusal" if refusal else reason if isinstance(reason, str) and reason else "stop"
    usage = completion.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=(text or refusal).encode(errors="replace").decode().strip(),  # no half emoji in a file
        finish_reason="length" if reason.lower() in CUT_OFF else reason,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _completion(body: bytes) -> dict[str, Any]:
    """The body's object, put together from its chunks if it is a stream."""
    lines = body.removeprefix(b"\xef\xbb\xbf").strip().splitlines()
    try:
        if lines and lines[0].startswith((b"data:", b"event:", b":")):
            data = [line[5:] for line in lines if line.startswith(b"data:") and b"{" in line]
            value: Any = _from_stream([json.loads(line) for line in data])
        else:
            value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise no_completion(body)
    if value.get("error"):
        raise AnsweredError(value["error"])
    return value


def _from_stream(chunks: list[Any]) -> dict[str, Any]:
    """One completion of a stream's chunks."""
    chunks = [chunk for chunk in chunks if isinstance(chunk, dict)]
    choices = [first for chunk in chunks if (first := _first(chunk.get("choices")))]
    deltas = [choice["delta"] for choice in choices if isinstance(choice.get("delta"), dict)]
    if not choices and not any(chunk.get("error") for chunk in chunks):
        return {}
    reasons = (choice["finish_reason"] for choice in choices if choice.get("finish_reason"))
    message = {
        "content": "".join(_message_text(delta.get("content")) for delta in deltas),
        "refusal": "".join(_text(delta.get("refusal")) for delta in deltas),
    }
    return {
        "choices": [{"message": message, "finish_reason": next(reasons, None)}],
        "usage": next((chunk["usage"] for chunk in chunks if chunk.get("usage")), None),
        "error": next((chunk["error"] for chunk in chunks if chunk.get("error")), None),
    }


def _choice(completion: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The first choice: one is asked for."""
    choice = _first(completion.get("choices"))
    if choice is None:
        raise no_completion(body)
    if choice.get("error"):
        raise AnsweredError(choice["error"])
    if not {"message", "text", "delta"} & choice.keys():
        raise no_completion(body)
    return choice


def _first(choices: Any) -> dict[str, Any] | None:
    choices = choices if isinstance(choices, list) else []
    return next((choice for choice in choices if isinstance(choice, dict)), None)


def _message_text(content: Any) -> str:
    """A message's text, of the parts that are one."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        raise NoAnswer(
            f"expected a text or parts of one as the message's content, got {content!r:.60}"
        )
    return "".join(_text(part) if isinstance(part, str) else _part(part) for part in parts)


def _part(part: Any) -> str:
    """OpenAI's assistants put the text into an object, ``{"value": …}``."""
    if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
        return ""
    text = part.get("text")
    return _text(text.get("value") if isinstance(text, dict) else text)


def _refusal(content: Any) -> str:
    parts = content if isinstance(content, list) else [content]
    return "".join(_text(part.get("refusal")) for part in parts if isinstance(part, dict))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    """A number of tokens, 0 where a server does not know it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return max(0, int(value)) if is_number and math.isfinite(value) else 0


def no_completion(body: bytes) -> NoAnswer:
    excerpt = " ".join(body[:200].decode(errors="replace").split())[:100]
    return NoAnswer(f"expected a chat completion, got {excerpt!r}; does the URL end in /v1?")
