"""What gunicorn itself refuses, answered in the contract's shape and logged without words."""

import json
from http import HTTPStatus

from gunicorn.http import errors as http_errors

from core import errors, records


def refuse(error: Exception) -> bytes:
    """The whole answer to a request that failed with `error` before the application had it."""
    request_id = records.new_request_id()
    kind = _kind_of(error)
    if kind is errors.INTERNAL_ERROR:
        records.log_crash(request_id, error)
    else:
        what = type(error).__name__
        records.log_refused(request_id, kind.code, kind.status, None, type=what)
    body = json.dumps({"error": kind.code, "message": kind.remedy}).encode()
    head = (
        f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\n"
        "Connection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        f"X-Content-Type-Options: nosniff\r\nX-Request-Id: {request_id}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _kind_of(error: Exception) -> errors.Kind:
    match error:
        case http_errors.LimitRequestLine():
            return errors.URI_TOO_LONG
        case http_errors.LimitRequestHeaders():
            return errors.HEADERS_TOO_LARGE
        case http_errors.InvalidResponseHeader() | http_errors.InvalidResponseHeaderName():
            return errors.INTERNAL_ERROR
        case http_errors.ParseException():
            return errors.MALFORMED_HTTP
    return errors.INTERNAL_ERROR
