"""Kong's rules for turning text into values (reference, sections 1.2 and 1.3).

Also the one piece of nginx's own configuration syntax that shows through: the texts of
``nginx_proxy_*`` settings are written into nginx.conf as they are.
"""

from __future__ import annotations

import re

from kongrealip.realip.numbers import BLANKS, number

# Patterns as texts, compiled when they are first used: an import of the middleware should be cheap.
_KEY_BYTE = rb"[^A-Za-z0-9_]"
_COMMENT = r"[ \t\n\v\f\r]*(?<!\\)#.*$"
_SECTION = r"\[[^\]]+\]"
_CONTINUED = r"\\[ \t\v\f\r]*$"

Scalar = str | bool | int | float | None


def strip(text: str) -> str:
    """Remove Kong's blanks at both ends."""
    return text.strip(BLANKS)


def array(text: str) -> list[str]:
    """Split at every comma, strip, drop what is empty."""
    return [piece for piece in map(strip, text.split(",")) if piece]


def parse_value(value: Scalar, kind: str | None) -> Scalar | list[str]:
    """Give one raw value the type of its key; None means unset."""
    if isinstance(value, str):
        value = strip(value)
    if kind == "boolean":
        return value is True or value in ("on", "true")
    if kind == "ngx_boolean":
        return "on" if value is True or value == "on" else "off"
    if kind == "number":
        return number(value) if isinstance(value, str) else _untyped_number(value)
    if kind == "array" and isinstance(value, str):
        return array(value)
    if kind == "string" and not isinstance(value, str):
        return _lua_text(value)
    return None if value == "" else value


def _untyped_number(value: bool | int | float | None) -> int | float | None:
    return None if isinstance(value, bool) else value


def _lua_text(value: bool | int | float | None) -> str:
    """``tostring`` of a value that is not a text."""
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    return f"{value:.14g}"


def parse_file(text: str) -> dict[str, str]:
    """Read the text of a kong.conf: key to value, both as Kong would see them."""
    values: dict[str, str] = {}
    for line in _logical_lines(text):
        if re.match(_SECTION, line):
            break
        key, equals, value = line.partition("=")
        if equals:
            values[_key(strip(key))] = _uncomment(_plain_number(strip(value)))
    return values


def parse_environment(text: str) -> dict[str, str]:
    """Read an environment file: ``NAME=value`` lines, as docker and systemd take them.

    Quotes round a whole value are taken off. Raises ValueError with the line that is none.
    """
    values: dict[str, str] = {}
    for position, line in enumerate(text.split("\n"), 1):
        line = strip(line)
        if not line or line.startswith(("#", ";")):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", strip(name)):
            # Without the line itself, which may hold a secret.
            raise ValueError(f"line {position}: write NAME=value")
        value = strip(value)
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        values[strip(name)] = value[1:-1] if quoted else value
    return values


def _logical_lines(text: str) -> list[str]:
    """The lines that say something, continued ones joined. An unfinished last one is lost."""
    lines = []
    begun = ""
    for line in text.split("\n"):
        if strip(line)[:1] in ("", "#", ";"):
            continue
        continued = re.search(_CONTINUED, line)
        if continued:
            begun += line[: continued.start()]
        else:
            lines.append(begun + line)
            begun = ""
    return lines


def _key(text: str) -> str:
    # Byte by byte, so that a byte-order mark spoils the first key just as it does for Kong.
    return re.sub(_KEY_BYTE, b"_", text.encode("utf-8", "surrogateescape")).decode("ascii")


def _plain_number(text: str) -> str:
    value = number(text) if text[:1] in tuple("0123456789+-") else None
    return text if value is None else f"{value:.14g}"


def _uncomment(text: str) -> str:
    return strip(re.sub(_COMMENT, "", text, count=1).replace("\\#", "#"))


def nginx_word(text: str) -> str:
    """Read the argument of a directive as nginx does when ``text;`` stands in its file.

    Returns the word with its quotes and escapes resolved. Raises ValueError where nginx would
    not start: blanks, a semicolon or a brace inside, a comment, an open quote.
    """
    quote = text[:1] if text[:1] in ("'", '"') else ""
    if text[:1] in ("", "#", "}"):
        raise ValueError("nginx reads no value there")
    word = ""
    index = len(quote)
    while index < len(text):
        character = text[index]
        if character == "\\" and index + 1 < len(text):
            escaped = text[index + 1]
            word += _ESCAPES.get(escaped, "\\" + escaped)
            index += 2
            continue
        if character == quote:
            if index + 1 != len(text):
                raise ValueError("nginx finds something behind the closing quote")
            return word
        if not quote and (character in BLANKS + ";" or (character == "{" and word[-1:] != "$")):
            raise ValueError(f"nginx cannot read {character!r} inside a value")
        word += character
        index += 1
    if quote:
        raise ValueError("nginx finds an open quote")
    if word.endswith("\\"):
        raise ValueError("the backslash would swallow the end of nginx's directive")
    return word


_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}

_SECONDS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}
_TIME = (
    r"(?:([0-9]+)(w) ?)?(?:([0-9]+)(d) ?)?(?:([0-9]+)(h) ?)?(?:([0-9]+)(m) ?(?!s))?"
    r"(?:([0-9]+)(s) ?)?(?:([0-9]+)(ms|))?"
)


def nginx_time(text: str) -> float | None:
    """Read an nginx time (``60``, ``1m30s``, ``500ms``) as seconds, or None."""
    match = re.fullmatch(_TIME, text)
    if match is None or not text:
        return None
    parts = match.groups()
    return sum(
        int(amount) * _SECONDS[unit]
        for amount, unit in zip(parts[::2], parts[1::2], strict=True)
        if amount is not None
    )


def nginx_seconds(text: str) -> int | None:
    """Read an nginx time where only whole seconds are allowed, or None."""
    seconds = None if "ms" in text else nginx_time(text)
    return None if seconds is None else int(seconds)
