"""A real server on a real socket, and what callers do to servers."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.deploy.__main__ import main
from pipeline.deploy.predictor import Predictor

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

ROOT = Path(__file__).parents[2]
LIMITS = {
    "bytes": 200_000,
    "pixels": 1_000_000,
    "request_pixels": 2_000_000,
    "pictures": 5,
    "seconds": 2.0,
    "waiting": 200,
    "connections": 40,
}
CODE = """
import sys
import time
from pipeline.deploy import __main__, predictor, serve
serve.IDLE = 1.0
decode = predictor.decode
def slow(content, *args, **settings):
    time.sleep(3 if b"slowly" in content else 0)
    return decode(content, *args, **settings)
predictor.decode = slow
sys.exit(__main__.main(sys.argv[1:]))
"""


def picture(seed: int = 0, format: str = "PNG", size: tuple[int, int] = (33, 20)) -> bytes:
    rng = np.random.default_rng(seed)
    file = BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    ).save(file, format)
    return file.getvalue()


def form(*contents: bytes, name: str = "images") -> tuple[bytes, dict[str, str]]:
    head = (
        '--b0und\r\nContent-Disposition: form-data; name="{}"; filename="{}.png"\r\nContent-Type: image/png'
    )
    parts = [f"{head.format(name, i)}\r\n\r\n".encode() + content for i, content in enumerate(contents)]
    return b"\r\n".join([*parts, b"--b0und--\r\n"]), {"Content-Type": "multipart/form-data; boundary=b0und"}


@dataclass(frozen=True)
class Server:
    port: int
    process: "subprocess.Popen[str]"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            content = reply.read()
            return reply.status, json.loads(
                content
            ) if reply.headers.get_content_type() == "application/json" else content.decode()
        finally:
            connection.close()

    def raw(self, content: bytes, seconds: float = 10) -> bytes:
        """What comes back for these bytes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            reply = b""
            with contextlib.suppress(ConnectionError):  # the server closes before everything is sent
                connection.sendall(content)
                while part := connection.recv(65536):
                    reply += part
            return reply


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as free:
        free.bind(("::1", 0))
        return True
    return False


@contextlib.contextmanager
def started(bundle: Path, *options: str, at: str = "http://127.0.0.1:") -> Iterator[Server]:
    command = [sys.executable, "-c", CODE, "serve", str(bundle), "--port", "0", "--threads", "2", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert at in line, process.communicate()
    running = Server(int(line.split(at)[1].split()[0]), process)
    yield running
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with started(
        bundle, *(f"--max-{name.replace('_', '-')}={limit}" for name, limit in LIMITS.items())
    ) as running:
        yield running


def test_it_says_unknown_if_it_is_not_sure_enough(bundle: Path) -> None:
    contents = [picture(seed) for seed in range(8)]
    answers = Predictor(bundle)(contents)
    level = sorted(answer.probability for answer in answers)[4]
    with started(bundle, f"--min-confidence={level}") as server:
        for content, want in zip(contents, answers, strict=True):
            status, answer = server.ask("POST", "/predict", content)
            label = want.label if want.probability >= level else "unknown"
            assert (status, answer["class"]) == (200, label)
            assert answer.get("guess", answer["class"]) == want.label
            assert answer["probability"] == round(want.probability, 6)
        assert server.ask("GET", "/health")[1]["min_confidence"] == level
        paths = server.ask("GET", "/openapi.json")[1]["paths"]
    schema = paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["properties"]["class"]["enum"] == [*answers[0].classes, "unknown"]
    assert schema["properties"]["guess"]["enum"] == answers[0].classes
    assert "unknown" not in schema["properties"]["top"]["items"]["properties"]["class"]["enum"]


def test_one_picture_as_body_or_as_form(server: Server, bundle: Path) -> None:
    content = picture(1)
    want = Predictor(bundle)([content])[0]
    body, headers = form(content, name="image")
    for status, answer in (
        server.ask("POST", "/predict?top=3", content),
        server.ask("POST", "/predict?top=3", body, headers),
    ):
        assert status == 200
        assert answer["class"] == want.label
        assert [(each["class"], each["probability"]) for each in answer["top"]] == [
            (name, round(p, 6)) for name, p in want.top(3)
        ]


def test_a_batch_with_a_broken_picture(server: Server, bundle: Path) -> None:
    contents = [picture(2), b"no picture", picture(3, "JPEG")]
    status, reply = server.ask("POST", "/predict/batch", *form(*contents))
    assert status == 200
    want = Predictor(bundle)([contents[0], contents[2]])
    assert [answer.get("class") for answer in reply["answers"]] == [want[0].label, None, want[1].label]
    assert "known format" in reply["answers"][1]["error"]


def test_health_page_and_description(server: Server, bundle: Path) -> None:
    status, health = server.ask("GET", "/health")
    assert (status, health["status"], health["bundle"], health["format"]) == (200, "ok", "tiny", "onnx")
    assert health["limits"] == LIMITS
    status, api = server.ask("GET", "/openapi.json")
    assert (status, api["openapi"], sorted(api["paths"])) == (
        200,
        "3.1.0",
        ["/health", "/predict", "/predict/batch"],
    )
    status, page = server.ask("GET", "/")
    assert status == 200
    assert "/predict/batch" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
    assert "https://" not in page


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/predict", b"", {}, 422),
        ("POST", "/predict", b"\x89PNG\r\n\x1a\nrubbish", {}, 422),
        ("POST", "/predict", b"x" * 200_001, {}, 413),
        ("POST", "/predict?top=0", picture(), {}, 400),
        ("POST", "/predict?top=-1", picture(), {}, 400),
        ("POST", "/predict?top=1e3", picture(), {}, 400),
        ("POST", "/predict?top=99999999999", picture(), {}, 400),
        ("POST", "/predict/batch", picture(), {}, 415),
        ("POST", "/predict/batch", b"rubbish", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        ("POST", "/predict/batch", b"rubbish", {"Content-Type": "multipart/form-data"}, 400),
        ("POST", "/predict/batch", *form(), 400),
        ("POST", "/predict/batch", *form(*[picture()] * 6), 400),
        ("POST", "/predict", *form(picture(), picture()), 400),
        ("GET", "/predict", None, {}, 405),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("GET", "/health", None, {"Host": "evil.example"}, 400),
    ],
)
def test_wrong_requests_are_refused_and_the_server_goes_on(
    server: Server, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    got, reply = server.ask(method, path, body, headers)
    assert got == status
    assert "Traceback" not in str(reply)
    assert server.ask("POST", "/predict", picture())[0] == 200


def test_a_form_field_without_a_file_name_is_refused(server: Server) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nhello\r\n--b--\r\n'
    assert (
        server.ask("POST", "/predict/batch", body, {"Content-Type": "multipart/form-data; boundary=b"})[0]
        == 400
    )


@pytest.mark.parametrize("side", [1_001, 20_000])
def test_a_decompression_bomb_is_refused(server: Server, side: int) -> None:
    bomb = bytearray(picture())
    bomb[16:24] = side.to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    status, reply = server.ask("POST", "/predict", bytes(bomb))
    assert status == 413 if side == 1_001 else status in (413, 422)
    assert "error" in reply


def test_a_body_that_is_too_long_is_refused_whatever_its_header_says(server: Server) -> None:
    endless = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n") * 5
    )
    assert b"413" in server.raw(endless).split(b"\r\n")[0]
    lying = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert b"413" in server.raw(lying).split(b"\r\n")[0]
    negative = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n"
    assert b"400" in server.raw(negative).split(b"\r\n")[0]


def test_a_caller_who_is_slow_is_not_waited_for(server: Server) -> None:
    begun = time.monotonic()
    slow = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhello"
    assert b"408" in server.raw(slow).split(b"\r\n")[0]
    assert server.raw(b"") == b""  # sends nothing
    assert server.raw(b"GET /health HTTP/1.1\r\nHost: loc") == b""  # never ends its header
    assert time.monotonic() - begun < 15
    assert b"400" in server.raw(b"rubbish\r\n\r\n").split(b"\r\n")[0]
    assert b"200" not in server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 300_000)


def test_callers_who_leave_do_no_harm(server: Server) -> None:
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhello"
            )
    assert server.ask("POST", "/predict", picture())[0] == 200


def test_under_load_every_caller_gets_their_own_answer(server: Server, bundle: Path) -> None:
    contents = [picture(seed) for seed in range(12)]
    want = [round(answer.probability, 6) for answer in Predictor(bundle)(contents)]
    before = server.ask("GET", "/health")[1]
    wrong: list[Any] = []

    def client(start: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for n in range(25):
            which = (start + n) % len(contents)
            connection.request("POST", "/predict", contents[which])
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            if reply.status != 200 or abs(answer["probability"] - want[which]) > 2e-6:
                wrong.append((reply.status, answer))
        connection.close()

    threads = [threading.Thread(target=client, args=(start,)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    after = server.ask("GET", "/health")[1]
    assert after["answered"] - before["answered"] == 16 * 25
    assert after["batches"] - before["batches"] < 16 * 25  # some were answered together
    assert after["waiting"] == 0


def test_an_answer_does_not_wait_for_an_acknowledgement(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    taken = []
    for _ in range(30):
        begun = time.perf_counter()
        connection.request("GET", "/openapi.json")
        connection.getresponse().read()
        taken.append(time.perf_counter() - begun)
    connection.close()
    assert min(taken) < 0.035


def test_as_many_connections_as_said_are_answered_and_no_more(server: Server) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(42)]
    try:
        replies = []
        for each in crowd[::-1]:  # those beyond the limit do no harm to those before
            each.sendall(ask)
            replies.append(each.recv(65536))
        refused = [reply for reply in replies if b" 503 " in reply.split(b"\r\n")[0]]
        assert replies[:2] == refused
        assert all(b" 200 " in reply.split(b"\r\n")[0] for reply in replies[2:])
        assert all(b"retry-after: 1\r\n" in reply.lower() for reply in refused)
    finally:
        for each in crowd:
            each.close()
    time.sleep(0.3)
    assert server.ask("GET", "/health")[0] == 200


def test_a_slow_picture_keeps_nobody_waiting(server: Server) -> None:
    slow = picture() + b"slowly"
    body, headers = form(*[slow] * 4)
    replies: list[bytes] = []
    head = "POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    asking = threading.Thread(target=lambda: replies.append(server.raw(head.encode() + body)))
    asking.start()
    time.sleep(0.5)
    for method, path, content in (("GET", "/health", None), ("POST", "/predict", picture())):
        begun = time.monotonic()
        assert server.ask(method, path, content)[0] == 200
        assert time.monotonic() - begun < 1
    asking.join()
    assert b" 503 " in replies[0].split(b"\r\n")[0]
    assert b"retry-after: 1\r\n" in replies[0].lower()


def test_the_pixels_of_a_request_are_limited(server: Server) -> None:
    large = picture(format="JPEG", size=(1000, 700))
    assert server.ask("POST", "/predict/batch", *form(large, large))[0] == 200
    status, reply = server.ask("POST", "/predict/batch", *form(large, large, large))
    assert status == 413
    assert reply["error"].startswith("The pictures have 2100000 pixels together; 2000000 are allowed")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("https://127.0.0.1:{port}", 200),
        ("http://127.0.0.1:1", 403),
        ("https://other.example", 403),
        ("https://friend.example", 200),
        ("https://friend.example:444", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_are_refused(open_server: Server, origin: str, status: int) -> None:
    headers = {"Origin": origin.format(port=open_server.port)}
    got, reply = open_server.ask("POST", "/predict", picture(), headers)
    assert got == status
    assert got == 200 or "--allow-origin" in reply["error"]


@pytest.fixture(scope="module")
def open_server(bundle: Path) -> Iterator[Server]:
    with started(bundle, "--allow-origin=https://Friend.example/") as running:
        yield running


def test_a_page_that_is_allowed_may_read_the_answer(open_server: Server) -> None:
    for origin, allowed in (("https://friend.example", True), ("https://other.example", False)):
        wish = f"Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n"
        wish += "Access-Control-Request-Headers: content-type\r\n"
        for method in ("OPTIONS /predict", "GET /health"):
            reply = open_server.raw(f"{method} HTTP/1.1\r\nHost: localhost\r\n{wish}\r\n".encode())
            assert (f"access-control-allow-origin: {origin}".encode() in reply.lower()) == allowed


@pytest.mark.parametrize(
    "url", ["friend.example", "https://", "ftp://host", "https://host/page", "https://ann:pw@host", "*"]
)
def test_an_origin_that_is_none_is_refused(
    url: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", str(bundle), f"--allow-origin={url}"])
    assert "is not the address of a site" in capsys.readouterr().err


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_it_answers_at_the_address_of_ipv6_that_it_prints(bundle: Path) -> None:
    with started(bundle, "--host=::1", at="http://[::1]:") as running:
        connection = http.client.HTTPConnection("::1", running.port, timeout=20)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_port_that_is_taken_is_named(server: Server, bundle: Path) -> None:
    command = [sys.executable, "-m", "pipeline.deploy", "serve", str(bundle), "--port", str(server.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Choose another port with --port" in done.stderr
