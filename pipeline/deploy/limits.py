"""What a caller of the service may ask for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Each limit is an option of `serve`, such as --max-bytes."""

    bytes: int = field(default=16 << 20, metadata={"help": "bytes in one request"})
    pixels: int = field(default=25_000_000, metadata={"help": "pixels in one picture"})
    request_pixels: int = field(default=100_000_000, metadata={"help": "pixels in one request"})
    pictures: int = field(default=64, metadata={"help": "pictures in one request"})
    seconds: float = field(
        default=10.0, metadata={"help": "seconds to send a request, and again to answer it"}
    )
    waiting: int = field(default=512, metadata={"help": "pictures waiting, over all requests"})
    connections: int = field(default=64, metadata={"help": "open connections"})
