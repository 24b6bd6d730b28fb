"""Errors as OpenAI words them: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """Something that ends a request; the message is for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`status` is HTTP's, `param` the field that is wrong, `headers` those to send besides."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.to_dict(), status_code=self.status, headers=self.headers)
