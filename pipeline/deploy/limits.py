"""What a caller of the service may ask for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    bytes: int = field(default=16 << 20, metadata={"says": "bytes of one request"})
    pixels: int = field(default=25_000_000, metadata={"says": "pixels of one picture"})
    pictures: int = field(default=64, metadata={"says": "pictures in one request"})
    seconds: float = field(default=10.0, metadata={"says": "seconds for sending a request, and again for answering it"})
    waiting: int = field(default=512, metadata={"says": "pictures of all requests that may wait"})
    connections: int = field(default=64, metadata={"says": "open connections"})
