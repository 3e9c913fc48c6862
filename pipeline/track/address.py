"""Addresses of servers and databases as they may be printed: never with a password, whatever is in it."""

import re
from urllib.parse import parse_qsl, unquote

LOCAL = ("sqlite", "file")
WEB = ("http", "https")
SECRET = re.compile("pass|pwd|token|secret|key", re.IGNORECASE)
UNREADABLE = re.compile(r"[@/?#\[\]\s]")  # in a password, these end it too early for one driver or another
HIDDEN = "(its message is not shown, since it may hold a part of the password)"


def kind(uri: str) -> str:
    """Such as "postgresql" or "http"."""
    return uri.partition("://")[0].partition("+")[0].strip().lower()


def public(uri: str) -> str:
    """The address without user, password and options. If in doubt, nothing after its kind."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return "(an address without ://)" if "@" in uri else uri
    if is_local_file(uri):
        return uri.partition("?")[0]
    before, user, place = rest.rpartition("@")
    shown = re.split("[?#]", place)[0]
    # an `@` among the options may be a part of a password, and a port that is no number too
    if (user and re.search("[?#]", before)) or not _is_place(shown):
        return f"{scheme}://(hidden)"
    return f"{scheme}://{shown}"


def is_local_file(uri: str) -> bool:
    return kind(uri) in LOCAL and uri.partition("://")[2].startswith("/")


def _is_place(text: str) -> bool:
    """host:port/path, or /path"""
    return re.fullmatch(r"(\[[\w.:%]+\]|[^:/\s\[\]]*)(:\d*)?(/.*)?", text) is not None


def secrets(uri: str) -> set[str]:
    """All that nobody else may see, as written and as meant. A user without a password may be a token."""
    rest = "" if is_local_file(uri) else uri.partition("://")[2]
    user = rest.rpartition("@")[0]
    password = user.partition(":")[2] or (user if kind(uri) in WEB else "")
    options = [value for key, value in parse_qsl(rest.partition("?")[2]) if SECRET.search(key)]
    return {each for text in (password, *options) for each in (text, unquote(text)) if each}


def hint(uri: str) -> str:
    """What to change in an address whose password cannot be read as one; else nothing."""
    if is_local_file(uri) or not UNREADABLE.search(uri.partition("://")[2].rpartition("@")[0]):
        return ""
    return (
        "In its password write @ as %40, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D, a space as %20. "
    )


def clean(message: str, uri: str) -> str:
    """An error's message about this address without credentials, or HIDDEN if it may quote some."""
    text = re.sub(r"//\S*@", "//", message.replace(uri, public(uri)))
    if hint(uri) or any(secret in text for secret in secrets(uri)):
        return HIDDEN
    return text
