"""The Hugging Face Hub as our loaders see it: a file of a repository, or one line that says why not."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_PATIENCE = 3.0  # seconds
_REMEMBERED = 60.0  # seconds for which an answer holds at most
_LOCK = threading.RLock()
_ADDRESS = "https://huggingface.co/"


def reachable() -> bool:
    """Whether the Hub answers at all, asked once a minute; False where HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    return _answers(constants.ENDPOINT, int(time.monotonic() // _REMEMBERED))


@functools.lru_cache(maxsize=1)
def _answers(endpoint: str, period: int) -> bool:
    """Whether it does; `period` tells answers of different times apart."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=_PATIENCE)
    except Exception:  # the HTTP library below, and so its errors, changes with the client's version
        return False
    return True


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Within it the Hub's client, and all that is built on it, looks in its cache alone where the Hub cannot
    be reached: it would try again for a minute, with a line each time."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable():
        yield
        return
    with _LOCK:
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = False


def fetch(repo: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a repository, from the cache or the Hub; None where the repository has none of that name.

    Raises UserError for a repository that is not there or cannot be asked.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with without_waiting():
            return Path(hf_hub_download(repo, file, revision=revision))
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(f"{repo!r}: {explain(error)}") from error


def cached(repo: str, file: str, revision: str | None = None) -> Path | None:
    """The same where it is on this machine already, without asking the Hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def explain(error: Exception) -> str:
    """An error of the Hub's client, or of what is built on it, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    for link in chain:
        if isinstance(link, LocalEntryNotFoundError):
            why = (
                "HF_HUB_OFFLINE is set"
                if constants.HF_HUB_OFFLINE
                else "the Hugging Face Hub cannot be reached"
            )
            return f"not on this machine, and {why}"
        if isinstance(link, GatedRepoError):
            return "its owner grants access one by one; ask on its page on the Hub, then run `hf auth login`"
        if isinstance(link, RepositoryNotFoundError):
            return (
                "no such repository on the Hugging Face Hub, or a private one; for that, run `hf auth login`"
            )
        if isinstance(link, HFValidationError):
            return "no id of a repository; those are OWNER/NAME"
        if isinstance(link, socket.gaierror | ConnectionRefusedError):
            return "the Hugging Face Hub cannot be reached"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    """Its first line, with the next where that says no more than where to look."""
    if isinstance(error, KeyError):  # which is nothing but the key
        return f"{error} is unknown or missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def address(repo: str) -> str:
    """Where a repository stands."""
    return _ADDRESS + repo


def repository(url: str | None) -> str | None:
    """OWNER/NAME of such an address; None for any other."""
    name = (url or "").removeprefix(_ADDRESS).strip("/")
    return name if (url or "").startswith(_ADDRESS) and name.count("/") == 1 else None
