"""The JSON of answers, as OpenAI's clients read it."""

import json
import secrets
import time
from typing import Any

from itt_composer.serving.requests import ChatRequest, GenerationRequest
from itt_composer.serving.served_model import Answer

END_OF_STREAM = "data: [DONE]\n\n"


class Form:
    """How the answer to one request is written, whole or piece by piece.

    Args:
        request: that is answered.
        model: its name.
    """

    def __init__(self, request: GenerationRequest, model: str):
        self._is_chat = isinstance(request, ChatRequest)
        prefix, kind = (
            ("chatcmpl", "chat.completion") if self._is_chat else ("cmpl", "text_completion")
        )
        self._kind = kind
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time())}
        self._head |= {"model": model}

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """Return a whole answer."""
        content: dict[str, Any] = {"text": text}
        if self._is_chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choices = [self._choice(content, answer.finish_reason)]
        return {**self._head, "object": self._kind, "choices": choices, "usage": answer.usage()}

    def first(self) -> str:
        """Return what a stream begins with; empty where it begins with text."""
        if not self._is_chat:
            return ""
        return self._piece({"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, text: str) -> str:
        """Return a piece of text."""
        return self._piece({"delta": {"content": text}} if self._is_chat else {"text": text}, None)

    def last(self, answer: Answer, with_usage: bool) -> str:
        """Return what a stream ends with."""
        content: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        end = self._piece(content, answer.finish_reason)
        if with_usage:
            end += self._event([], usage=answer.usage())
        return end + END_OF_STREAM

    def _piece(self, content: dict[str, Any], reason: str | None) -> str:
        return self._event([self._choice(content, reason)])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = f"{self._kind}.chunk" if self._is_chat else self._kind
        return event({**self._head, "object": kind, "choices": choices, **more})

    @staticmethod
    def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


def event(content: dict[str, Any]) -> str:
    """Return an event of a stream (SSE)."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_form(sentence: str, status: int, key: str | None = None) -> dict[str, Any]:
    """Return what a client makes an exception of."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": key, "code": None}}
