"""URLs that download one thing for a while without a key: `…?signature=<key>.<expires>.<hmac>`.

The signature covers the method, the path, the rest of the query, the API key that made it (and
with it the tenant) and when it ends. Revoking the key ends it at once.
"""

import hmac
import time
from urllib.parse import parse_qsl, quote, unquote, urlencode

from starlette.datastructures import URL

from api.errors import Problem
from api.sessions import SessionSigner

_PURPOSE = "download"
_METHOD = "GET"
"""HEAD, which tells less, may use it too; nothing that writes looks at signatures."""


def sign_download(
    signer: SessionSigner, path: str, query: dict[str, str], *, key_id: str, expires: int
) -> str:
    """The path and query with a signature; `expires` in seconds since 1970."""
    signed = signer.sign(_PURPOSE, _text(path, list(query.items()), key_id, str(expires)))
    parameters = urlencode({**query, "signature": f"{key_id}.{expires}.{signed}"})
    return f"{quote(path)}?{parameters}"


def verify_download(signer: SessionSigner, url: URL, signature: str) -> str:
    """The id of the API key that signed this URL.

    Raises:
        Problem: 401, it was signed for something else, or its time is over.
    """
    key_id, _, rest = signature.partition(".")
    expires, _, given = rest.partition(".")
    query = [pair for pair in parse_qsl(url.query, True) if pair[0] != "signature"]
    right = signer.sign(_PURPOSE, _text(unquote(url.path), query, key_id, expires))
    if not hmac.compare_digest(given.encode(), right.encode()):
        raise Problem("invalid_signature", "The signature was not made for this URL.")
    if int(expires) <= time.time():
        raise Problem("expired_signature", "The time of this URL is over; ask for another.")
    return key_id


def _text(path: str, query: list[tuple[str, str]], key_id: str, expires: str) -> str:
    return "\0".join((_METHOD, path, urlencode(sorted(query)), key_id, expires))
