"""What is fetched over the network: whether it is there, and one line where it is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from gendd.errors import UserError


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
def hub() -> Iterator[str]:
    """The Hugging Face Hub's host; without a connection, its cache alone instead of minutes of retries."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not reachable(host)
    try:
        yield host
    finally:
        constants.HF_HUB_OFFLINE = offline


def first_line(error: Exception) -> str:
    """What an exception says first, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def unfetched(what: str, error: Exception, host: str, remedy: str) -> UserError:
    """The error for something that was to come from ``host``, and neither did nor is in its cache."""
    came = first_line(error) if reachable(host) else f"{host} can't be reached, and the cache has none"
    return UserError(f"{what} could not be fetched: {came}. Check the connection, or {remedy}.")
