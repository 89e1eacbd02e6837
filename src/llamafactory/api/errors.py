"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the status code that fits.

What the engine raises is translated here, in one place.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi.responses import JSONResponse

from ..chat.requests import EngineStoppedError, QueueFullError, TooLongError, UnknownAdapterError
from ..extras.errors import UserError
from ..extras.registry import did_you_mean


INVALID = "invalid_request_error"
MAX_SHOWN = 200  # characters of a wrong value that an error message repeats


class ApiError(Exception):
    """An answer that is an error; `param` names the field that is wrong."""

    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    def as_dict(self) -> dict[str, Any]:
        """Return the body."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.as_dict(), self.status, dict(headers or {}))


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Make the error for a request that cannot be fulfilled as it is."""
    return ApiError(400, message, param=param, code=code)


def from_user_error(error: UserError) -> ApiError:
    """Translate what the engine or a template refuses."""
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), kind="rate_limit_error", code="queue_full")
    if isinstance(error, TooLongError):
        return bad_request(str(error), "messages", "context_length_exceeded")
    if isinstance(error, UnknownAdapterError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), kind="server_error", code="engine_stopped")
    return bad_request(str(error))


def from_validation(errors: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> ApiError:
    """Make one sentence of what pydantic found: an unknown field, which may be a misspelt one, comes first.

    Where a value may have several forms, the form that it fits best has the error that lies deepest.
    """
    first = min(errors, key=lambda error: (error["type"] != "extra_forbidden", -len(error["loc"])))
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path") and not is_form(str(part))]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(place[-1], known)
        return bad_request(f"Unrecognized request argument: {param}.{hint}", param, "unknown_parameter")
    if first["type"] == "json_invalid":
        return bad_request(f"The body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}.")
    if first["type"] == "missing":
        return bad_request(f"{param or 'The body'} is missing.", param, "missing_required_parameter")
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return bad_request(f"{param or 'The body'} is {shown}: {first['msg']}.", param, "invalid_value")


def is_form(part: str) -> bool:
    """Tell whether a part of pydantic's place names one of several forms of a value, rather than a field."""
    return "[" in part or part[:1].isupper() or part in ("str", "constrained-str")
