"""The student over HTTP, for this machine: pictures in, JSON out, with limits on everything that a caller can make large or slow."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import python_multipart  # noqa: F401 - starlette needs it for forms, and would say so at the first one
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.data.decode import FORMATS, Undecodable
from pipeline.deploy.batching import Batcher, Busy
from pipeline.deploy.bundle import BundleError
from pipeline.deploy.limits import Limits
from pipeline.deploy.openapi import document
from pipeline.deploy.predictor import Answer, Predictor

LOOPBACK = ("127.0.0.1", "localhost", "::1")
T = TypeVar("T")
IDLE = 5.0  # seconds a connection may lie there without a whole request


def application(predictor: Predictor, *, limits: Limits, hosts: tuple[str, ...] = LOOPBACK, threads: int = 1) -> Starlette:
    """The ASGI application. `threads` decode pictures; `hosts` are the names it may be called by ("*": any)."""
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
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: _refused, ClientDisconnect: _gone, Exception: _failed},
    )


def serve(predictor: Predictor, *, host: str, port: int, limits: Limits, threads: int) -> int:
    """Answer until interrupted; port 0 takes a free one. Anything but loopback has to be asked for by name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named TCP, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for the caller's acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BundleError(
            f"{host} port {port} can't be listened on ({error.strerror}). Choose another with --port, or 0 for a free one."
        ) from error
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    config = uvicorn.Config(
        application(predictor, limits=limits, hosts=hosts, threads=threads),
        http=_Patient,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(IDLE),
        timeout_graceful_shutdown=5,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"{predictor.bundle.name} ({predictor.format}) on http://{shown}:{listener.getsockname()[1]} (Ctrl-C stops it)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


class _Service:
    """What the endpoints share."""

    def __init__(self, predictor: Predictor, limits: Limits, threads: int) -> None:
        self.predictor = predictor
        self.limits = limits
        self.batcher = Batcher(lambda images: predictor.run(images)[1], most=predictor.batch, waiting=limits.waiting)
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

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
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            contents = await self._form(request, most=1)
        else:
            contents = [await self._in_time(self._limited(request).body(), 408, "The picture came too slowly.")]
        found = (await self._answers(contents))[0]
        if isinstance(found, HTTPException):
            raise found
        return JSONResponse(_said(found, top))

    async def many(self, request: Request) -> Response:
        """A form with any number of files; each gets its answer or its own error."""
        top = self._top(request)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(415, "Send the pictures as the files of a form (multipart/form-data).")
        found = await self._answers(await self._form(request, most=self.limits.pictures))
        return JSONResponse(
            {"answers": [{"error": each.detail} if isinstance(each, HTTPException) else _said(each, top) for each in found]}
        )

    async def health(self, request: Request) -> Response:
        bundle, batcher = self.predictor.bundle, self.batcher
        return JSONResponse(
            {
                "status": "ok",
                "bundle": bundle.name,
                "fingerprint": bundle.fingerprint,
                "format": self.predictor.format,
                "providers": self.predictor.providers,
                "answered": batcher.answered,
                "batches": batcher.batches,
                "waiting": batcher.waiting,
                "limits": asdict(self.limits),
            }
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document())

    async def page(self, request: Request) -> Response:
        page = files("pipeline.deploy").joinpath("serve.html").read_text(encoding="utf-8")
        inside = json.dumps(self._document()).replace("<", "\\u003c")
        headers = {
            "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        }
        return HTMLResponse(page.replace("{{openapi}}", inside), headers=headers)

    def _document(self) -> dict[str, Any]:
        return document(self.predictor.bundle, asdict(self.limits))

    def _top(self, request: Request) -> int:
        text = request.query_params.get("top", "1")
        if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 10):
            raise HTTPException(400, "top: give a number of classes, 1 or more.")
        return int(text)

    def _limited(self, request: Request) -> Request:
        """The request, whose body ends in an error where it is too long, whatever its header promised."""
        promised = request.headers.get("content-length", "0")
        too_long = HTTPException(413, f"A request may have {self.limits.bytes} bytes.")
        if not promised.isdigit() or int(promised) > self.limits.bytes:
            raise too_long
        receive, seen = request.receive, 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limits.bytes:
                raise too_long
            return message

        return Request(request.scope, counted)

    async def _form(self, request: Request, *, most: int) -> list[bytes]:
        async def read() -> list[bytes]:
            async with self._limited(request).form(max_files=most, max_fields=0) as form:
                return [await each.read() for _, each in form.multi_items() if isinstance(each, UploadFile)]

        contents = await self._in_time(read(), 408, "The pictures came too slowly.")
        if not contents:
            raise HTTPException(400, "There is no file in the form.")
        return contents

    async def _answers(self, contents: list[bytes]) -> list[Answer | HTTPException]:
        """An answer or an error for each of these files."""
        if self.batcher.waiting >= self.limits.waiting:
            raise _busy()
        return await self._in_time(self._decoded_and_answered(contents), 503, "It took too long; try again later.")

    async def _decoded_and_answered(self, contents: list[bytes]) -> list[Answer | HTTPException]:
        loop = asyncio.get_running_loop()
        read = await asyncio.gather(*[loop.run_in_executor(self.decoders, self._pixels, content) for content in contents])
        pixels = [each for each in read if isinstance(each, np.ndarray)]
        try:
            rows = iter(await self.batcher.answer(pixels))
        except Busy:
            raise _busy() from None
        classes = self.predictor.bundle.classes
        return [each if isinstance(each, HTTPException) else Answer(classes, next(rows)) for each in read]

    def _pixels(self, content: bytes) -> np.ndarray | HTTPException:
        try:
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                size = image.size
        except Exception:  # decode says what is wrong with it
            size = (0, 0)
        if size[0] * size[1] > self.limits.pixels:
            return HTTPException(413, f"{size[0]} x {size[1]} pixels are too many; {self.limits.pixels} are allowed.")
        try:
            return self.predictor.decode(content)
        except Undecodable as error:
            return HTTPException(422, f"No picture that can be used: {error}.")

    async def _in_time(self, work: Awaitable[T], status: int, otherwise: str) -> T:
        try:
            return await asyncio.wait_for(work, self.limits.seconds)
        except TimeoutError:
            raise HTTPException(status, otherwise) from None


class _Patient(H11Protocol):
    """uvicorn's, which waits for a first request's end for ever: here a connection without one is closed after IDLE seconds."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look_again(seen=None)

    def _look_again(self, seen: object) -> None:
        if not self.transport.is_closing():
            asyncio.get_running_loop().call_later(IDLE, self._close_if_idle, seen)

    def _close_if_idle(self, seen: object) -> None:
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        self._look_again(self.cycle)


def _said(answer: Answer, top: int) -> dict[str, Any]:
    best = [{"class": name, "probability": round(probability, 6)} for name, probability in answer.top(top)]
    return {**best[0], "top": best}


def _busy() -> HTTPException:
    return HTTPException(503, "Too many pictures are waiting; try again later.", {"Retry-After": "1"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # what is left of the request isn't read, so the connection can't be used again
    return JSONResponse({"error": error.detail}, error.status_code, {**(error.headers or {}), "Connection": "close"})


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The student failed to answer; the server's log says why."}, 500)
