"""What a response consists of: its body, read as `Response.content` reads it, but faster; and whether it is whole."""

from __future__ import annotations

import requests
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, SSLError
from urllib3 import HTTPResponse
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.exceptions import SSLError as Urllib3SSLError

from retrypolicy.urllib3.answers import cut_short
from retrypolicy.urllib3.reading import HeadTruncated


def is_cut_short(error: requests.ConnectionError) -> bool:
    """Did the connection end within a head? requests says ChunkedEncodingError there, if the body is missed at all."""
    reason = error.args[0] if error.args else None
    return isinstance(reason, ProtocolError) and isinstance(reason.args[-1], HeadTruncated)


def read(response: requests.Response) -> bytes:
    """The body, which is then in `response.content`. Raises what requests raises.

    A gzip stream that stops in the middle is a ContentDecodingError too, where it can be told.
    """
    raw = response.raw
    if type(raw) is not HTTPResponse or response._content is not False:
        return response.content
    if raw.chunked or "content-encoding" in raw.headers:
        if cut_short(raw, response.content):
            raise ContentDecodingError("the body stopped before the end of its compressed stream")
        return response.content
    # In one piece: requests would go through two generators for it. The errors are mapped as in Response.iter_content.
    try:
        response._content = raw.read()
    except ProtocolError as error:
        raise ChunkedEncodingError(error) from error
    except ReadTimeoutError as error:
        raise requests.ConnectionError(error) from error
    except Urllib3SSLError as error:
        raise SSLError(error) from error
    response._content_consumed = True
    return response.content
