"""A line to one OpenAI-compatible server: connections that stay open, tries that wait, refusals that can be read.

Knows nothing of prompts or models; what is sent and what comes back are JSON objects.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from components.errors import EngineError, TryAgainError

NUM_TRIES = 7  # of one request, before the run is told to try again later
FIRST_WAIT_SECONDS = 0.5  # doubled at every try
MAX_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 1800.0  # an answer comes whole, when its last token is there

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that may be gone at the next try


class RefusedRequestError(Exception):
    """The server understood, and will not."""

    def __init__(self, status: int, content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            error = json.loads(text)
            error = error.get("error", error) if isinstance(error, dict) else error
            if isinstance(error, dict):
                text = str(error.get("message", error)) + (f" ({error['param']})" if error.get("param") else "")
            else:
                text = str(error)
        super().__init__(text)
        self.status = status
        self.message = text or "nothing more"

    def names(self, arguments: set[str]) -> set[str]:
        """Those of `arguments` that the message names."""
        if self.status not in (400, 422):
            return set()
        found = {name for name in arguments if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", self.message)}
        return found or {name for name in arguments if re.search(rf"['\"`.]{re.escape(name)}(?!\w)", self.message)}

    def room(self, max_tokens: int) -> int | None:
        """Tokens, fewer than `max_tokens`, that the model's context leaves; None: this is about something else."""
        if self.status not in (400, 413, 422) or not re.search(
            r"context (?:length|size|window)|max_model_len", self.message
        ):
            return None
        limit = re.search(r"(?:maximum context length is|max_model_len=)\D{0,20}(\d+)", self.message)
        used = re.search(r"(\d+) (?:input tokens|in the messages)", self.message)
        left = int(limit[1]) - int(used[1] if used else 0) if limit else 0
        return left if 0 < left < max_tokens else 0


class Wire:
    """JSON over connections that stay open, one a thread; what passes is tried again.

    Raises, from `get` and `post`:
        RefusedRequestError: a status that another try will not change.
        TryAgainError: the tries are used up.
        EngineError: what came is no JSON object, or the engine is closed.
    """

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        self.url = url
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") or "/v1"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = threading.Event()

    def get(self, path: str) -> dict[str, Any]:
        """What the server answers to GET."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server answers to a JSON object."""
        return self._ask("POST", path, json.dumps(body).encode())

    def close(self) -> None:
        """Drop the connections; whoever waits for an answer stops waiting."""
        self._closed.set()
        for connection in list(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(2)  # whoever waits for an answer stops waiting
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        why = ""
        for attempt in range(NUM_TRIES):
            pause = None
            if self._closed.is_set():
                raise EngineError(self.url, "the engine was closed while it asked", "see the error before this one")
            try:
                status, headers, content = self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise EngineError(self.url, f"its certificate is not trusted: {error}", "set SSL_CERT_FILE") from error
                why = f"does not answer: {error or type(error).__name__}"
            else:
                if status == 200:
                    answer = _json_object(content, self.url)
                    if not _was_aborted(answer):
                        return answer
                    why = "broke off an answer"
                elif status in _PASSING:
                    refusal = RefusedRequestError(status, content)
                    why, pause = f"answers {status}: {refusal.message}", _seconds_asked_for(headers)
                else:
                    raise RefusedRequestError(status, content)
            if attempt + 1 < NUM_TRIES:
                self._closed.wait(_pause(attempt, pause))
        raise TryAgainError(self.url, f"{why} ({NUM_TRIES} tries)", "start the server, or wait until it is less busy")

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, Any, bytes]:
        connection, is_fresh = self._connection()
        try:
            return self._exchange(connection, method, path, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._drop(connection)
            if is_fresh or self._closed.is_set():
                raise
        except BaseException:
            self._drop(connection)
            raise
        connection, _ = self._connection()  # an idle connection was closed meanwhile: that is no failure
        try:
            return self._exchange(connection, method, path, body)
        except BaseException:
            self._drop(connection)
            raise

    def _exchange(self, connection: Any, method: str, path: str, body: bytes | None) -> tuple[int, Any, bytes]:
        connection.request(method, self._path + path, body=body, headers=self._headers)
        response = connection.getresponse()
        content = response.read()
        if response.will_close:
            self._drop(connection)
        return response.status, response.headers, content

    def _connection(self) -> tuple[Any, bool]:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            return connection, False
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS)
        connection.connect()
        connection.sock.settimeout(ANSWER_SECONDS)
        self._local.connection = connection
        self._open.add(connection)
        return connection, True

    def _drop(self, connection: Any) -> None:
        connection.close()
        self._open.discard(connection)
        self._local.connection = None


def _was_aborted(answer: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") in ("abort", "error") for choice in answer.get("choices") or [])


def _json_object(content: bytes, url: str) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        what = f"answers {content[:80].decode('utf-8', 'replace')!r}, which is no JSON object"
        raise EngineError(url, what, "STEPFORGE_SERVER_URL names an OpenAI-compatible server, mostly ending in /v1")
    return answer


def _seconds_asked_for(headers: Any) -> float | None:
    """What Retry-After says, in seconds or as a date."""
    text = (headers.get("Retry-After") or "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _pause(attempt: int, asked_for: float | None) -> float:
    """Seconds before the next try: longer each time, and never the same for all who wait."""
    own: float = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt) * random.uniform(0.5, 1.0)
    if asked_for is None:
        return own
    return min(asked_for, 4 * MAX_WAIT_SECONDS) + own * 0.1
