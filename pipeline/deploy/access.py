"""Who may ask the service: by which name it is called, and from pages of which sites."""

from collections.abc import Collection
from urllib.parse import urlsplit

Refusal = tuple[int, str]


def refusal(
    method: str, host: str, origin: str | None, *, hosts: Collection[str], origins: Collection[str]
) -> Refusal | None:
    """Why this request is refused, if it is. A browser names in `origin` the site whose page asks."""
    if "*" not in hosts and host_name(host) not in hosts:
        return (
            400,
            f"This service does not answer to the name {host[:100]!r}. Use {', '.join(sorted(hosts))}.",
        )
    if method in ("GET", "HEAD") or origin is None or origin in origins or _same(origin, host):
        return None
    return 403, (
        f"A page of {origin[:100]!r} may not use this service. "
        "Start the service with --allow-origin and this address to allow it."
    )


def host_name(host: str) -> str | None:
    """Of a Host header, such as `::1` of `[::1]:8000`."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def origin_of(url: str) -> str:
    """A site as a browser names it: https://host:port. Raises ValueError for anything else."""
    parts = urlsplit(url.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or url.rstrip("/") != _plain(url):
        raise ValueError(f"{url} is not the address of a site. Give it as https://host or https://host:port.")
    return _plain(url).lower()


def _plain(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _same(origin: str, host: str) -> bool:
    """Whether the page came from this service. http and https are one: a server before it may add TLS."""
    scheme, _, place = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return place.removesuffix(port) == host.lower().removesuffix(port)
