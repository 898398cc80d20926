"""Downloads: reachability of hosts, and one-line errors for failed downloads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from gendd.errors import UserError, first_line


def reachable(host: str) -> bool:
    """Whether a host's name resolves, or a proxy is set, which may resolve it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """Yield the Hugging Face Hub's host; offline, only its cache is used, instead of minutes of retries."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not reachable(host)
    try:
        yield host
    finally:
        constants.HF_HUB_OFFLINE = offline


def unreached(error: Exception, host: str) -> str:
    """Reason why a download from ``host`` failed, in one line without a full stop."""
    if not reachable(host):
        return f"{host} can't be reached, and the cache has none"
    return first_line(error).rstrip(".")


def unfetched(what: str, error: Exception, host: str, remedy: str) -> UserError:
    """Error for something that could not be downloaded from ``host`` and is not in its cache."""
    return UserError(
        f"{what} could not be fetched: {unreached(error, host)}. Check the connection, or {remedy}."
    )
