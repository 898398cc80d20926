"""What is fetched over the network: whether it is there, and one line where it is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from gendd.errors import UserError, first_line


def reachable(host: str) -> bool:
    """Whether a host has an address here, or a proxy would know it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """The Hugging Face Hub's host; without a connection, its cache alone instead of minutes of retries."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not reachable(host)
    try:
        yield host
    finally:
        constants.HF_HUB_OFFLINE = offline


def unreached(error: Exception, host: str) -> str:
    """Why something did not come from ``host``, in one line without a full stop."""
    if not reachable(host):
        return f"{host} can't be reached, and the cache has none"
    return first_line(error).rstrip(".")


def unfetched(what: str, error: Exception, host: str, remedy: str) -> UserError:
    """The error for something that was to come from ``host``, and neither did nor is in its cache."""
    return UserError(
        f"{what} could not be fetched: {unreached(error, host)}. Check the connection, or {remedy}."
    )
