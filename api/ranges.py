"""One byte range of something whose length is known (RFC 9110 §14)."""

import re
from collections.abc import Callable, Iterator, Mapping

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from api.errors import Problem
from api.serving import matches_etag

_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")

Read = Callable[[int, int], Iterator[bytes]]
"""The bytes `[start, end)` in pieces."""


def parse_range(header: str | None, length: int) -> tuple[int, int] | None:
    """`[start, end)` asked for; None for all of it, also when the header asks in another way.

    Raises:
        Problem: 416, it lies outside.
    """
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(length - int(last), 0), length
    else:
        start, end = int(first), min(int(last) + 1, length) if last else length
        if last and int(last) < start:
            return None
    if start >= length or start >= end:
        raise Problem(
            "range_not_satisfiable",
            f"There are {length} bytes; {header!r} lies outside.",
            headers={"Content-Range": f"bytes */{length}"},
        )
    return start, end


def serve_ranges(
    request: Request,
    read: Read,
    *,
    length: int,
    etag: str,
    media_type: str,
    headers: Mapping[str, str],
) -> Response:
    """The response to GET or HEAD: all of it, one range, or 304."""
    sent = {**headers, "ETag": etag, "Accept-Ranges": "bytes"}
    if matches_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=sent)
    wanted = None
    if_range = request.headers.get("if-range")
    # A weak tag is not good enough to put two parts together (RFC 9110 §13.1.5).
    if if_range is None or (if_range == etag and not etag.startswith("W/")):
        wanted = parse_range(request.headers.get("range"), length)
    start, end = wanted or (0, length)
    if wanted is not None:
        sent["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
    sent["Content-Length"] = str(end - start)
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=sent, media_type=media_type)
    return StreamingResponse(read(start, end), status, sent, media_type)
