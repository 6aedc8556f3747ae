"""Repeating what a network or a server failed to do, with growing pauses."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from errno import ENOENT
from http import HTTPStatus
from typing import TypeVar

from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

T = TypeVar("T")

# Seconds before each further try. A server that is restarted may need most of them.
PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0)
# What no second try changes: the path, the rights, the program or its libraries are wrong.
PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
    *(ImportError, NotImplementedError, TypeError, ValueError),
)
# Statuses from 400 to 499 that pass: the server was too busy, or waited too long.
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
# Statuses of a file that is not there.
ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class RemoteError(UserError):
    """A server cannot be reached, or refuses what is asked of it, also after several tries."""


class ShortReadError(OSError):
    """A server has sent fewer bytes than it was asked for."""


def retry(action: Callable[[], T], what: str) -> T:
    """Returns the result of ``action``, which is repeated with pauses while it fails.

    Args:
        action: what to do; doing it twice must be as good as doing it once.
        what: what is done, for the message, such as "read s3://bucket/video.mp4".

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: it failed in another way, or too often; its cause is what ``action`` raised. If
            ``action`` itself raises one, there is no further try.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except RemoteError:
            raise
        except Exception as error:  # libraries of networks have no class of errors in common
            cause = root_of(error)
            if isinstance(cause, FileNotFoundError) or status_in(cause) in ABSENT:
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT)) from error
            if pause is None or is_permanent(cause):
                again = "" if pause is not None else f", also after {len(PAUSES)} further tries"
                raise RemoteError(f"cannot {what}{again}: {describe(cause)}") from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def root_of(error: BaseException) -> BaseException:
    """Returns why a file was not found. ``fsspec`` says so of web servers that fail in any way."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        if isinstance(error.__cause__, KeyError):  # of a dictionary of files in memory
            break
        error = error.__cause__
    return error


def is_permanent(error: BaseException) -> bool:
    """Whether a further try of what raised ``error`` would fail as well."""
    status = status_in(error)
    if status is not None and 400 <= status < 500:
        return status not in PASSING
    return isinstance(error, (*PERMANENT, *missing_credentials()))


def status_in(error: BaseException) -> int | None:
    """Returns the status of HTTP in an error, where each library has its own place for it."""
    status = getattr(error, "status", None)
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, Mapping):
        status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = status or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def missing_credentials() -> tuple[type[Exception], ...]:
    """Returns the errors of libraries of object stores that know no account to use."""
    library = sys.modules.get("botocore.exceptions")
    return () if library is None else (library.NoCredentialsError, library.PartialCredentialsError)


def describe(error: BaseException) -> str:
    """Returns an error in one line, with its kind if it says nothing."""
    return first_sentence(error) if str(error) else type(error).__name__
