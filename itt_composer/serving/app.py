"""The routes of the server, and the thread in which its model answers one request at a time."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from itt_composer.models.overflow import OverflowInLogitsError
from itt_composer.serving.forms import Form, error_form, event
from itt_composer.serving.requests import (
    BadRequestError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Kind,
    read_request,
)
from itt_composer.serving.served_model import Answer, ServedModel

MOST_BYTES = 8 * 2**20  # of a request
LEFT = 499  # the client has left; it does not see this


class StoppedError(Exception):
    """The server ends, and with it the answer."""


class Api:
    """Answers requests with one model.

    Args:
        model: that answers.
        is_ending: asked after each token; whether the server ends.
    """

    def __init__(self, model: ServedModel, is_ending: Callable[[], bool]):
        self._model = model
        self._is_ending = is_ending
        self._turn = asyncio.Lock()
        about = {"id": model.name, "object": "model", "created": 0, "owned_by": "itt_composer"}
        self._about = about

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
            exception_handlers={
                BadRequestError: _bad_request,
                OverflowInLogitsError: _overflow,
                StoppedError: _stopped,
                HTTPException: _no_such_route,
            },
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self._model.name})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about]})

    async def _one_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._about)

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    def _check_name(self, name: str) -> None:
        if name != self._model.name:
            sentence = f"this server has no model {name!r}, only {self._model.name!r}"
            raise BadRequestError(sentence, "model", 404)

    async def _answer(self, http: Request, kind: type[Kind]) -> Response:
        asked = read_request(kind, await _content(http))
        self._check_name(asked.model)
        if asked.stream_options is not None and not asked.stream:
            raise BadRequestError("stream_options is for stream=true", "stream_options")
        self._model.check_thinking(asked)
        ids = await asyncio.to_thread(self._model.prompt, asked)
        form = Form(asked, self._model.name)
        if asked.stream:
            return StreamingResponse(
                self._stream(http, asked, ids, form), media_type="text/event-stream"
            )
        texts: list[str] = []
        answer = None
        async with aclosing(self._parts(http, asked, ids)) as parts:
            async for part in parts:
                if isinstance(part, Answer):
                    answer = part
                else:
                    texts.append(part)
        if answer is None:
            return Response(status_code=LEFT)
        return JSONResponse(form.whole("".join(texts), answer))

    async def _stream(
        self, http: Request, asked: GenerationRequest, ids: list[int], form: Form
    ) -> AsyncGenerator[str, None]:
        """Yield the events of an answer; a failure is the last of them."""
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        if begin := form.first():
            yield begin
        try:
            async with aclosing(self._parts(http, asked, ids)) as parts:
                async for part in parts:
                    is_last = isinstance(part, Answer)
                    yield form.last(part, with_usage) if is_last else form.piece(part)
        except OverflowInLogitsError as error:
            yield event(error_form(_overflow_sentence(error), 500))
        except StoppedError:
            yield event(error_form(STOPPED, 503))

    async def _parts(
        self, http: Request, asked: GenerationRequest, ids: list[int]
    ) -> AsyncGenerator[Any, None]:
        """Yield the pieces of an answer and then the `Answer`; nothing after the client has left.

        However this ends, the model has stopped before the next request has its turn.

        Raises:
            StoppedError: the server ends.
            OverflowInLogitsError: logits are NaN or infinite.
        """
        has_left, loop = threading.Event(), asyncio.get_running_loop()
        parts: asyncio.Queue[Any] = asyncio.Queue()

        def put(part: Any) -> None:
            loop.call_soon_threadsafe(parts.put_nowait, part)

        def work() -> None:
            try:
                put(self._model.answer(asked, ids, put, self._is_over(has_left)))
            except Exception as error:  # raised where it is awaited
                put(error)

        watch = asyncio.create_task(_wait_for_leaving(http, has_left))
        try:
            async with self._turn:
                if has_left.is_set():
                    return
                working = asyncio.create_task(asyncio.to_thread(work))
                try:
                    part = None
                    while not isinstance(part, Answer):
                        part = await parts.get()
                        if isinstance(part, Exception):
                            raise part
                        if isinstance(part, Answer) and self._is_ending():
                            raise StoppedError
                        if has_left.is_set():
                            return
                        yield part
                finally:
                    has_left.set()
                    with anyio.CancelScope(shield=True):
                        await working
        finally:
            watch.cancel()

    def _is_over(self, has_left: threading.Event) -> Callable[[], bool]:
        return lambda: has_left.is_set() or self._is_ending()


async def _wait_for_leaving(http: Request, has_left: threading.Event) -> None:
    """Say when the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    has_left.set()


async def _content(http: Request) -> Any:
    """Return the JSON of a request.

    Raises:
        BadRequestError: it is none, or too large.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequestError(
            "send JSON, with the header Content-Type: application/json", None, 415
        )
    body = bytearray()
    with suppress(ClientDisconnect):
        async for part in http.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise BadRequestError(f"the request has more than {MOST_BYTES:,} bytes", None, 413)
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the request is not JSON: {error}") from None


STOPPED = "the server ends, and the answer is not complete"


def _overflow_sentence(error: OverflowInLogitsError) -> str:
    return f"the model gives NaN or infinity after {error.tokens} tokens: its dtype is too narrow"


async def _bad_request(http: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)
    return JSONResponse(error_form(str(error), error.status, error.key), error.status)


async def _overflow(http: Request, error: Exception) -> Response:
    assert isinstance(error, OverflowInLogitsError)
    return JSONResponse(error_form(_overflow_sentence(error), 500), 500)


async def _stopped(http: Request, error: Exception) -> Response:
    return JSONResponse(error_form(STOPPED, 503), 503)


async def _no_such_route(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{http.method} {http.url.path} is not served here: {error.detail}"
    return JSONResponse(error_form(sentence, error.status_code), error.status_code)
