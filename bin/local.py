"""The service on one's own machine, at once: `bin/serve` runs this.

Without a provider's key it answers offline, without a token it makes one up. Once it takes calls,
it prints what to paste.
"""

import json
import secrets
import shlex
import socket
from typing import Any
from urllib.parse import quote

from gunicorn.app.wsgiapp import WSGIApplication

from core.settings import Settings, environment, load, set_defaults
from providers import PROVIDER_OF
from providers.anthropic import Anthropic

TO_FILL_IN = "$ACCESS_TOKEN"


def serve(invitation: str) -> None:
    """Run gunicorn with gunicorn.conf.py, and print `invitation` when its socket is bound."""
    server = WSGIApplication(prog="gunicorn")
    in_file = server.cfg.when_ready

    def when_ready(arbiter: Any) -> None:
        in_file(arbiter)
        print(invitation, flush=True)  # noqa: T201

    server.cfg.set("when_ready", when_ready)
    server.run()


def invitation(settings: Settings, token: str, brand_id: str) -> str:
    """What to paste to call the service, and a link to its page."""
    url = f"http://localhost:{settings.port}"
    document: dict[str, Any] = {"brand_id": brand_id, "requested_by": "me"}
    if not settings.offline and not settings.anthropic_api_key:
        document["model"] = next(m for m in PROVIDER_OF if PROVIDER_OF[m] != Anthropic.name)
    document |= {"messages": [{"role": "user", "content": "Hello"}]}
    header = f"Authorization: Bearer {token}"
    header = f'"{header}"' if token == TO_FILL_IN else shlex.quote(header)

    def curl(option: str = "", **more: bool) -> str:
        return (
            f"curl {option}{url}/v1/chat/completions \\\n"
            f'  -H {header} -H "Content-Type: application/json" \\\n'
            f"  -d {shlex.quote(json.dumps(document | more))}\n"
        )

    if token == TO_FILL_IN:
        hint = f"Set ACCESS_TOKEN to a token first: ACCESS_TOKENS has only hashes.\nPage: {url}/\n"
    else:
        hint = f"Page: {url}/#token={quote(token, safe='')}\n"
    return f"\n{url} takes calls; stop it with Ctrl-C. {hint}\n{curl()}\n{curl('-N ', stream=True)}"


def a_token(access_tokens: str) -> tuple[str, str]:
    """A token among these, if there is one that is more than a hash, and a brand it is good for."""
    entries = [entry.strip(" ").split(":") for entry in access_tokens.split(",")]
    entries.sort(key=lambda entry: (entry[1].startswith("sha256="), len(entry)))
    _name, token, *brands = entries[0]
    brand_id = brands[0].split("|")[0] if brands else "loop"
    return TO_FILL_IN if token.startswith("sha256=") else token, brand_id


def require_free(port: int) -> None:
    """Raises SystemExit with one line where gunicorn would try for five seconds."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - where gunicorn binds
        except OSError as error:
            text = (
                f"PORT {port} cannot be used: {error.strerror}. PORT=8001 bin/serve takes another."
            )
            raise SystemExit(text) from None


def main() -> None:
    """Serve until stopped."""
    given = environment()
    if not any(given.get(n) for n in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OFFLINE")):
        set_defaults(OFFLINE="1")
    set_defaults(ACCESS_TOKENS=f"local:{secrets.token_urlsafe(24)}")
    settings = load()
    require_free(settings.port)
    serve(invitation(settings, *a_token(environment()["ACCESS_TOKENS"])))


if __name__ == "__main__":
    main()
