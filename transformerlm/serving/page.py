"""The playground: one static page, and headers that let it do what it needs and nothing else."""

import base64
import hashlib
import re
from importlib import resources
from typing import final

from starlette.responses import HTMLResponse, Response

from transformerlm.serving.errors import ApiError

_FILE = "playground.html"


@final
class Page:
    """The page of a file, read once."""

    def __init__(self, html: str | None) -> None:
        """`html` is None where the file is missing; the rest of the server does without."""
        self._html = html
        self._headers = {
            "Content-Security-Policy": content_security_policy(html or ""),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    @classmethod
    def load(cls) -> "Page":
        """Read the page that ships with this package."""
        file = resources.files("transformerlm.serving") / _FILE
        return cls(file.read_text(encoding="utf-8") if file.is_file() else None)

    def response(self) -> Response:
        """Return the answer that is the page. Raises `ApiError` (404) if there is none."""
        if self._html is None:
            raise ApiError(404, f"{_FILE} is missing from this installation", code="not_found")
        return HTMLResponse(self._html, headers=self._headers)


def content_security_policy(html: str) -> str:
    """Return a policy under which nothing runs but the page's own inline scripts and styles, known by their hashes."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(html, 'script')}",
            f"style-src {_hashes(html, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(html: str, element: str) -> str:
    # A browser reads CRLF as LF before it hashes.
    pattern = re.compile(rf"<{element}\b[^>]*>(.*?)</{element}\s*>", re.DOTALL | re.IGNORECASE)
    texts = pattern.findall(html.replace("\r\n", "\n"))
    digests = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
