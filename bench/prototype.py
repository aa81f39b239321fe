"""The yardstick: the least that a gateway of this kind can do.

A Flask route, one shared `requests.Session`, a prepared request through `Session.send`, and
nothing else: no token check, no validation, no translation, no usage record, no retries. What
the service costs beyond this is the price of its contract.
"""

import os
from collections.abc import Iterator

import requests
from flask import Flask, Response, request

UPSTREAM = os.environ.get("UPSTREAM", "")
READ_SIZE = 65536

app = Flask(__name__)
session = requests.Session()
session.trust_env = False
pool = requests.adapters.HTTPAdapter(pool_maxsize=1024)
session.mount("http://", pool)


@app.post("/v1/chat/completions")
@app.post("/v1/messages")
def forward() -> Response:
    headers = {"content-type": "application/json", "authorization": "Bearer key"}
    outgoing = requests.Request("POST", UPSTREAM + request.path, headers, data=request.get_data())
    answer = session.send(outgoing.prepare(), stream=True, timeout=60, allow_redirects=False)
    content_type = answer.headers["content-type"]
    if content_type.startswith("text/event-stream"):
        return Response(read(answer), answer.status_code, content_type=content_type)
    return Response(answer.content, answer.status_code, content_type=content_type)


def read(answer: requests.Response) -> Iterator[bytes]:
    with answer:
        while piece := answer.raw.read1(READ_SIZE):
            yield piece
