"""The student over HTTP: pictures in, JSON out. All that a caller can make large or slow is limited."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import python_multipart  # noqa: F401 - starlette needs it for forms, but would only say so at the first form
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.data.decode import FORMATS, Undecodable
from pipeline.deploy.access import refusal
from pipeline.deploy.batching import Batcher, Busy
from pipeline.deploy.limits import Limits
from pipeline.deploy.openapi import document
from pipeline.deploy.pages import filled
from pipeline.deploy.predictor import UNKNOWN, Answer, Predictor
from pipeline.deploy.read_bundle import BundleError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
T = TypeVar("T")
IDLE = 5.0  # seconds that a connection may stay open without a whole request


def application(
    predictor: Predictor,
    *,
    limits: Limits,
    hosts: tuple[str, ...] = LOOPBACK,
    origins: tuple[str, ...] = (),
    threads: int = 1,
) -> Starlette:
    """The ASGI application.

    `threads` threads decode the pictures of one request. `hosts` are the names it answers to ("*": any).
    `origins` are other sites whose pages may use it.
    """
    service = _Service(predictor, limits, threads)
    routes = [
        Route("/", service.page),
        Route("/openapi.json", service.openapi),
        Route("/health", service.health),
        Route("/predict", service.one, methods=["POST"]),
        Route("/predict/batch", service.many, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=service.lifespan,
        middleware=[
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["POST"], allow_headers=["Content-Type"]
            ),
            Middleware(_Door, hosts=hosts, origins=origins),
        ],
        exception_handlers={HTTPException: _refused, ClientDisconnect: _gone, Exception: _failed},
    )


def serve(
    predictor: Predictor,
    *,
    host: str,
    port: int,
    limits: Limits,
    threads: int,
    origins: tuple[str, ...] = (),
) -> int:
    """Answer until interrupted. Port 0 takes a free one."""
    listener = _listener(host, port)
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    config = uvicorn.Config(
        application(predictor, limits=limits, hosts=hosts, origins=origins, threads=threads),
        http=_Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(IDLE),
        timeout_graceful_shutdown=5,
    )
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    ready = f"Serving {predictor.bundle.name} ({predictor.format}) on {address} (Ctrl-C stops it)"
    _Server(config, ready).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.ready, flush=True)  # only now does it listen


class _Door:
    """Refuses requests to other names, and from pages of other sites."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            asked = Request(scope).headers
            host, origin = asked.get("host", ""), asked.get("origin")
            refused = refusal(scope["method"], host, origin, hosts=self.hosts, origins=self.origins)
            app = _error(*refused) if refused else app
        await app(scope, receive, send)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With TCP named, asyncio turns Nagle's algorithm off. Otherwise every answer waits 40 ms for the caller.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise BundleError(
            f"Cannot listen on {host} port {port} ({getattr(error, 'strerror', error)}). "
            "Choose another port with --port, or 0 for a free one."
        ) from error
    return listener


class _Service:
    """The endpoints and what they share."""

    def __init__(self, predictor: Predictor, limits: Limits, threads: int) -> None:
        self.predictor = predictor
        self.limits = limits
        self.batcher = Batcher(
            lambda images: predictor.run(images)[1], max_batch=predictor.batch, max_waiting=limits.waiting
        )
        self.threads = threads
        # one more than a request may use, so that no request can keep the others from theirs
        self.decoders = ThreadPoolExecutor(threads + 1, thread_name_prefix="decode")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(self.batcher.work())
        try:
            yield
        finally:
            worker.cancel()
            self.decoders.shutdown(wait=False, cancel_futures=True)

    async def one(self, request: Request) -> Response:
        """One picture: the body itself, or a form with one file."""
        top = self._top(request)
        if _has_form(request):
            contents = await self._form(request, most=1)
        else:
            body = self._limited(request).body()
            contents = [await self._in_time(body, 408, "The picture took too long to arrive.")]
        answer = (await self._answers(contents))[0]
        if isinstance(answer, HTTPException):
            raise answer
        return JSONResponse(_json(answer, top))

    async def many(self, request: Request) -> Response:
        """A form with any number of files. Each file gets its answer or its own error."""
        top = self._top(request)
        if not _has_form(request):
            raise HTTPException(415, "Send the pictures as the files of a form (multipart/form-data).")
        answers = await self._answers(await self._form(request, most=self.limits.pictures))
        return JSONResponse({"answers": [_json(answer, top) for answer in answers]})

    async def health(self, request: Request) -> Response:
        bundle, batcher = self.predictor.bundle, self.batcher
        return JSONResponse(
            {
                "status": "ok",
                "bundle": bundle.name,
                "fingerprint": bundle.fingerprint,
                "format": self.predictor.format,
                "providers": self.predictor.providers,
                "min_confidence": self.predictor.min_confidence,
                "answered": batcher.answered,
                "batches": batcher.batches,
                "waiting": batcher.waiting,
                "limits": asdict(self.limits),
            }
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document())

    async def page(self, request: Request) -> Response:
        inside = json.dumps(self._document()).replace("<", "\\u003c")
        page = filled("serve.html", openapi=inside)
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    def _document(self) -> dict[str, Any]:
        predictor = self.predictor
        extra = [UNKNOWN] if predictor.min_confidence else []
        return document(predictor.bundle, asdict(self.limits), labels=predictor.bundle.classes + extra)

    def _top(self, request: Request) -> int:
        text = request.query_params.get("top", "1")
        if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 10):
            raise HTTPException(400, "top: give a number of classes, 1 or more.")
        return int(text)

    def _limited(self, request: Request) -> Request:
        """The same request, but its body ends in an error if it is too long, whatever its header says."""
        announced = request.headers.get("content-length", "0")
        too_long = HTTPException(413, f"A request may have at most {self.limits.bytes} bytes.")
        if not announced.isdigit() or int(announced) > self.limits.bytes:
            raise too_long
        receive, received = request.receive, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.bytes:
                raise too_long
            return message

        return Request(request.scope, counted)

    async def _form(self, request: Request, *, most: int) -> list[bytes]:
        """The contents of the form's files."""

        async def read() -> list[bytes]:
            async with self._limited(request).form(max_files=most, max_fields=0) as form:
                return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]

        contents = await self._in_time(read(), 408, "The pictures took too long to arrive.")
        if not contents:
            raise HTTPException(400, "The form holds no file.")
        return contents

    async def _answers(self, contents: list[bytes]) -> list[Answer | HTTPException]:
        """An answer or an error for each of these files."""
        if self.batcher.waiting >= self.limits.waiting:
            raise _busy()
        answers = self._decoded_and_answered(contents)
        return await self._in_time(answers, 503, "The answer took too long; try again later.")

    async def _decoded_and_answered(self, contents: list[bytes]) -> list[Answer | HTTPException]:
        decoded = await self._decoded(contents)
        pixels = [each for each in decoded if isinstance(each, np.ndarray)]
        try:
            rows = iter(await self.batcher.answer(pixels))
        except Busy:
            raise _busy() from None
        return [
            each if isinstance(each, HTTPException) else self.predictor.answer(next(rows)) for each in decoded
        ]

    async def _decoded(self, contents: list[bytes]) -> list[np.ndarray | HTTPException]:
        """The pixels of each file or its error, at most `threads` files at once."""
        loop = asyncio.get_running_loop()
        turns = asyncio.Semaphore(self.threads)
        sizes = await loop.run_in_executor(self.decoders, lambda: [_size(each) for each in contents])
        limits = self.limits
        if (total := sum(w * h for w, h in sizes if w * h <= limits.pixels)) > limits.request_pixels:
            raise HTTPException(
                413,
                f"The pictures have {total} pixels together; {limits.request_pixels} are allowed in one "
                "request. Send fewer or smaller pictures.",
            )

        async def one(content: bytes, size: tuple[int, int]) -> np.ndarray | HTTPException:
            async with turns:
                return await loop.run_in_executor(self.decoders, self._pixels, content, size)

        return await asyncio.gather(*map(one, contents, sizes))

    def _pixels(self, content: bytes, size: tuple[int, int]) -> np.ndarray | HTTPException:
        width, height = size
        if width * height > self.limits.pixels:
            return HTTPException(
                413, f"{width} x {height} pixels are too many; {self.limits.pixels} are allowed."
            )
        try:
            return self.predictor.decode(content)
        except Undecodable as error:
            return HTTPException(422, f"This picture cannot be used: {error}.")

    async def _in_time(self, work: Awaitable[T], status: int, otherwise: str) -> T:
        try:
            return await asyncio.wait_for(work, self.limits.seconds)
        except TimeoutError:
            raise HTTPException(status, otherwise) from None


class _Connection(H11Protocol):
    """Refuses what comes on a connection beyond the limit: uvicorn would refuse the earlier ones too.

    Closes a connection that has sent no whole request within IDLE seconds: uvicorn itself waits for the end
    of a first request for ever.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        most, self.limit_concurrency = self.config.limit_concurrency, None
        if most is not None and len(self.connections) > most:
            self.app = _error(503, "Too many connections are open; try again later.")
        self._look_again(seen=None)

    def _look_again(self, seen: object) -> None:
        if not self.transport.is_closing():
            asyncio.get_running_loop().call_later(IDLE, self._close_if_idle, seen)

    def _close_if_idle(self, seen: object) -> None:
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        self._look_again(self.cycle)


def _has_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


def _json(answer: Answer | HTTPException, top: int) -> dict[str, Any]:
    if isinstance(answer, HTTPException):
        return {"error": answer.detail}
    return answer.facts(top)


def _busy() -> HTTPException:
    return HTTPException(503, "Too many pictures are waiting; try again later.")


def _size(content: bytes) -> tuple[int, int]:
    """Width and height as the file says them; zero if it says none."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Exception:  # `decode` says what is wrong with it
        return 0, 0


def _error(status: int, why: str) -> Response:
    # the rest of the request is not read, so the connection cannot be used again
    return JSONResponse(
        {"error": why}, status, {**({"Retry-After": "1"} if status == 503 else {}), "Connection": "close"}
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the caller has left, nobody will read it


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The student failed to answer; the server's log says why."}, 500)
