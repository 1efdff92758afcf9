"""What an answer above 399 says, as the OpenAI client reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
}  # fmt: skip


class ApiError(Exception):
    """One sentence that says what to do, without a path; ``code`` and ``param`` are of the API."""

    def __init__(
        self, status: int, message: str, code: str = "", param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or ("server_error" if status >= 500 else "invalid_request")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
