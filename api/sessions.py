"""The dashboard's sign-in: a signed cookie that names an API key, and tokens for its forms.

The cookie holds no secret: the id of the key, when the session ends, and an HMAC over both under a
secret of this installation. Revoking the key ends the session at the next request.
"""

import hashlib
import hmac
import time
from dataclasses import dataclass
from pathlib import Path

from registry.installation import installation_secret

SESSION_COOKIE = "espalier_session"
FORM_COOKIE = "espalier_form"
SESSION_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class SessionSigner:
    """Signs and checks what the browser keeps."""

    secret: bytes

    def issue(self, key_id: str) -> str:
        """A cookie value for a session of this API key."""
        body = f"{key_id}.{int(time.time()) + SESSION_SECONDS}"
        return f"{body}.{self.sign('session', body)}"

    def key_id_of(self, cookie: str) -> str | None:
        """The API key's id, or None when the cookie is forged, malformed or over."""
        body, _, signature = cookie.rpartition(".")
        key_id, _, ends = body.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self.sign("session", body).encode()):
            return None
        return key_id if float(ends) > time.time() else None

    def form_token(self, cookie: str) -> str:
        """What a form must send along, bound to the cookie of the browser that was shown it."""
        return self.sign("form", cookie)

    def form_is_ours(self, cookie: str, token: str) -> bool:
        """Whether a form's token belongs to this browser."""
        return bool(cookie) and hmac.compare_digest(
            token.encode(), self.form_token(cookie).encode()
        )

    def sign(self, purpose: str, text: str) -> str:
        """A signature that is worth nothing for another purpose."""
        return hmac.new(self.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def load_signer(data_dir: Path, given: str | None) -> SessionSigner:
    """The signer of this installation."""
    return SessionSigner(installation_secret(data_dir, given))
