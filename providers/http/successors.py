"""What models refuse that others take, learned from their refusals.

Tables of what each model takes are wrong every few months, so there is none.
"""

import re
from collections.abc import Mapping
from typing import Any

from providers.base import Call
from providers.http.failures import Failure

# The token limit is renamed, never dropped; this is the name that callers know it by.
LIMIT = "max_tokens"


class Refused:
    """The optional parameters that each upstream model was seen to refuse, in this process.

    `optional` has those that may be refused, each with its other name, if it has one. (The
    settings bound how many models there are.)
    """

    def __init__(self, optional: Mapping[str, str | None]) -> None:
        self.optional = optional
        self.of_model: dict[str, frozenset[str]] = {}
        # The name is matched at the start or after a few plain words, or in quotes (but not as
        # the key of a body that is quoted); what is said of it is not.
        names = "|".join(optional)
        self._named = re.compile(
            rf"(?:(?!messages\b)[\w'-]+[:.]?\s+){{0,6}}?(?:body\.)?[\"'`*[]{{0,2}}({names})\b"
            rf"|(?:(?!\bmessages\b).){{0,120}}?[\"'`]({names})[\"'`](?!\s*:\s*[-\d\"'{{[])",
            re.IGNORECASE,
        )

    def named_in(self, failure: Failure) -> str | None:
        """The parameter of these that a refusal is about."""
        if failure.words is None:
            return None
        found = self._named.match(failure.words) if failure.param is None else None
        name = found[1] or found[2] if found else failure.param
        return name if name in self.optional else None


class Fitting:
    """One call's body, fitted to what its model takes."""

    def __init__(self, refused: Refused, body: dict[str, Any], call: Call) -> None:
        self.body = body
        self._refused = refused
        self._call = call
        self._refuses = refused.of_model.get(body["model"], frozenset())
        self._first_failure: Failure | None = None
        for name in self._refuses & body.keys():
            self._leave_out(name)

    def refit(self, failure: Failure) -> bool:
        """Whether the body is now one without what was refused.

        Where the limit is refused under both names, what is said of it is meant; `failure`
        becomes the first of the two.
        """
        name = self._refused.named_in(failure)
        if name is None or name not in self.body:
            return False
        other = self._refused.optional[name]
        if other in self._refuses:
            if self._first_failure is not None:
                failure.text = self._first_failure.text
            return False
        if other is not None:
            self._first_failure = failure
        self._refuses |= {name}
        self._leave_out(name)
        return True

    def succeeded(self) -> None:
        """The model took it: what it refused before is left out from now on."""
        of_model, model = self._refused.of_model, self.body["model"]
        known = of_model.get(model, frozenset())
        if not self._refuses <= known:
            of_model[model] = known | self._refuses

    def _leave_out(self, name: str) -> None:
        other = self._refused.optional[name]
        self.body = dict(self.body)
        value = self.body.pop(name)
        if other is None:
            self._call.adjusted[name] = None
        else:
            self.body[other] = self._call.adjusted[LIMIT] = value
