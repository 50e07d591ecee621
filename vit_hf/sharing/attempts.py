"""Requests to the Hub: made again while that can help, and explained in one line where it cannot.

The client tries again by itself where it lists, announces and sends files; this is for what it asks once only (making a
repo, branch or tag, its description, a commit), and for what outlives its tries.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

logger = logging.getLogger(__name__)
T = TypeVar("T")

SILENCE_S = 120.0
"""How long the Hub may be silent before a request counts as lost; the client itself would wait for ever."""
ATTEMPTS = 5
_LONGEST_PAUSE_S = 330  # the Hub counts requests in windows of 5 minutes
_PASSING = (408, 429, 500, 502, 503, 504)
_REMEDIES = {
    400: "see what it says, and mend that",
    401: "log in with `hf auth login`, with a token that may write to {repo}",
    403: "take a token that may write to {repo} (`hf auth login`), and check the owner's name",
    404: "check the name and the revision; a private repo needs `hf auth login` with a token that may see it",
    413: "a file is too large for the Hub; save the model in smaller parts (save_pretrained(max_shard_size='4GB'))",
}
_LATER = "try again later"


class HubError(OSError):
    """The Hub did not do what was asked; the message says why, what is left, and the command that tries again."""


def retried(call: Callable[[], T], what: str) -> T:
    """Make a request; on a passing fault wait and make it again, `ATTEMPTS` times at most.

    Args:
        call: the request; a second one after a first that was carried out must do no harm.
        what: for the log, such as "making the repo".

    Raises:
        HTTPError: the last fault, or one that no waiting mends.
        OfflineModeIsEnabled: HF_HUB_OFFLINE is set.
    """
    for attempt in range(ATTEMPTS):
        limit_silence()
        try:
            return call()
        except (HTTPError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
            if attempt + 1 == ATTEMPTS or not is_passing(error):
                raise
            wait(error, attempt, what)
    raise AssertionError("the last attempt returns or raises")


def wait(error: Exception, attempt: int, what: str) -> None:
    """Say what went wrong, and wait before the next attempt: as long as the Hub asks for, else 1, 2, 4, 8 s."""
    seconds = pause_for(error, attempt)
    logger.warning("%s: %s; next try in %g s", what, cause(error), seconds)
    time.sleep(seconds)


def pause_for(error: BaseException, attempt: int) -> float:
    """Seconds to wait after an attempt (0, 1, ...) that failed."""
    return _asked_pause(error) or 2.0**attempt


def limit_silence() -> float:
    """Let the client's requests end where the Hub is silent for so many seconds, which are returned."""
    client = get_session()
    if client.timeout.read is None:
        client.timeout = SILENCE_S
    return SILENCE_S


def is_passing(error: BaseException) -> bool:
    """Whether a fault may pass by itself: too many requests, the Hub's own, or the line's."""
    error = _origin(error)
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in _PASSING and (_asked_pause(error) or 0) <= _LONGEST_PAUSE_S
    return isinstance(error, HTTPError | json.JSONDecodeError)  # the second: a gateway's page instead of an answer


def is_refused(error: BaseException) -> bool:
    """Whether the Hub said that it will not do something, other than because the repo has changed meanwhile."""
    status = status_of(_origin(error))
    return isinstance(_origin(error), OfflineModeIsEnabled) or (
        status is not None and status != 412 and not is_passing(error)
    )


def _origin(error: BaseException) -> BaseException:
    """What made the client say that an upload failed, or that there is no local copy."""
    is_said_by_the_client = isinstance(error, LocalEntryNotFoundError | RuntimeError | ValueError)
    return error.__cause__ if is_said_by_the_client and isinstance(error.__cause__, Exception) else error


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error; None where there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def cause(error: BaseException) -> str:
    """Say in a few words what went wrong, without the address: that of an upload is a key to it."""
    error = _origin(error)
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if status is not None:
        said = (getattr(error, "server_message", None) or "").strip().rstrip(".")
        return f"the Hub answered {status}{f' ({said.splitlines()[0]})' if said else ''}"
    if isinstance(error, HTTPError):
        return f"no answer from {constants.ENDPOINT} ({type(error).__name__})"
    return str(error) or type(error).__name__


def remedy(error: BaseException, repo: str) -> str:
    """Say what to do about it."""
    error = _origin(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "set HF_HUB_OFFLINE=0"
    return _REMEDIES.get(status_of(error) or 0, _LATER).format(repo=repo)


def _asked_pause(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait for, by its count of requests or Retry-After."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None
