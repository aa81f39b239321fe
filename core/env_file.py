"""The file .env as people write it: quotes, `export`, spaces, comments, CRLF, a byte-order mark.

It is read as python-dotenv reads it, which everybody's examples assume; tests/test_env_file.py
holds the two together. But a line that is not understood is refused, not skipped.
"""

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

_NOTHING = re.compile(r"\s*(?:#.*)?(?:\n|\Z)")
_ENTRY = re.compile(
    r"""[^\S\n]*(?:export[^\S\n]+)?(?P<name>[^=\#\s'"]+)[^\S\n]*=
    (?:[^\S\n]*(?:'(?P<single>(?:\\.|[^'\\])*)'|"(?P<double>(?:\\.|[^"\\])*)")[^\S\n]*(?:\#[^\n]*)?
    |(?![^\S\n]*['"])(?P<plain>[^\n]*))(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE_IN_SINGLE, _ESCAPE_IN_DOUBLE = re.compile(r"\\[\\']"), re.compile(r"\\[\\'\"abfnrtv]")
_REFERENCE = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")


def read(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What the file sets, empty where there is none; SystemExit with one line where it is wrong."""
    try:
        return parse(path.read_text("utf-8-sig"), environ)
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise SystemExit(f"{path.name} is wrong: it must be encoded in UTF-8") from None
    except OSError as error:
        raise SystemExit(f"{path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SystemExit(f"{path.name} is wrong {error}: it must be NAME=value") from None


def parse(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that `text` sets; ${NAME} in a value is looked up in `environ`, then before it.

    Raises ValueError that says at which line something is not understood, but not what it is.
    """
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        entry = _NOTHING.match(text, place) or _ENTRY.match(text, place)
        if not entry:
            raise ValueError(f"at line {text.count(chr(10), 0, place) + 1}")
        place = entry.end()
        if entry.re is _ENTRY:
            found[entry["name"]] = _with_references({**found, **environ}, _value(entry))
    return found


def _value(entry: re.Match[str]) -> str:
    if (single := entry["single"]) is not None:
        return _ESCAPE_IN_SINGLE.sub(lambda escape: escape[0][1], single)
    if (double := entry["double"]) is not None:
        return _ESCAPE_IN_DOUBLE.sub(lambda it: codecs.decode(it[0], "unicode-escape"), double)
    return re.sub(r"\s+#.*", "", entry["plain"]).strip()


def _with_references(known: Mapping[str, str], value: str) -> str:
    return _REFERENCE.sub(lambda name: known.get(name[1], name[2] or ""), value)
