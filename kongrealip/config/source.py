"""Where settings are read from, and the kinds of values that there are.

A kind is how one text becomes one value; which key has which kind is decided in ``settings``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from kongrealip.address import bounded_decimal
from kongrealip.config import kongconf
from kongrealip.config.listen import Listen, parse_listens
from kongrealip.errors import SettingsError
from kongrealip.realip.networks import UNIX, parse_network
from kongrealip.realip.numbers import BLANKS

Entry = TypeVar("Entry")
#: The prefix of what goes beyond Kong. Such keys are read from the environment alone.
OURS = "KONGREALIP_"
# Options that are not called as their key.
_OPTIONS = {"stream_listen": "--listen"}


class Source:
    """An environment and a file, read key by key, collecting problems on the way.

    ``given`` maps each key that was set to the name it was set by. ``options`` are the command
    line's words by key, and win over both. ``options_are`` says what they are if not that.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        file: Mapping[str, str],
        options: Mapping[str, str] = {},
        options_are: str = "",
    ) -> None:
        self.environ = environ
        self.file = file
        self.options = options
        self.problems: list[str] = []
        self.given: dict[str, str] = {}
        self._options_are = options_are

    def text(self, key: str, prefix: str = "KONG_") -> str | None:
        """The stripped text that was given for a key: "" where it was set and empty."""
        name = prefix + key.upper()
        if key in self.options:
            text, name = self.options[key], self._name_of_option(key)
        elif name in self.environ:
            text = self.environ[name]
        elif key in self.file and prefix == "KONG_":
            text, name = self.file[key], f"{key} in kong.conf"
        else:
            return None
        self.given[key] = name
        return kongconf.strip(text)

    def _name_of_option(self, key: str) -> str:
        if self._options_are:
            return f"{self._options_are} {key}"
        return _OPTIONS.get(key, f"--{key.replace('_', '-')}")

    def problem(self, key: str, text: str) -> None:
        """One line: the name that the key was set by, and what is wrong."""
        self.problems.append(f"{self.given[key]}: {text}")

    def check(self) -> None:
        """Raise SettingsError with all problems that there are."""
        if self.problems:
            raise SettingsError(self.problems)

    def networks(self, key: str, prefix: str = "KONG_") -> tuple[str, ...]:
        """Addresses, CIDR blocks and ``unix:``, as written and checked."""
        entries = kongconf.array(self.text(key, prefix) or "")
        for position, entry in enumerate(entries, 1):
            try:
                if entry != UNIX:
                    parse_network(entry)
            except ValueError as error:
                self.problem(key, f"entry {position} {entry!r}: {error}")
        return tuple(entries)

    def parsed(self, key: str, parse: Callable[[str], Entry], prefix: str = "KONG_") -> tuple[Entry, ...]:
        """The entries of a list, each read by ``parse``, whose ValueError names fault and fix."""
        found = []
        for position, entry in enumerate(kongconf.array(self.text(key, prefix) or ""), 1):
            try:
                found.append(parse(entry))
            except ValueError as error:
                self.problem(key, f"entry {position} {entry!r}: {error}")
        return tuple(found)

    def nginx_text(self, key: str, default: str, *spellings: str) -> str:
        """The argument of a directive, by the first of its spellings that was given."""
        for spelling in spellings:
            text = self.text(spelling)
            if text is None:
                continue
            self.given[key] = self.given[spelling]
            if text in ("", "NONE"):
                return default
            try:
                return kongconf.nginx_word(text)
            except ValueError as error:
                self.problem(key, f"{text!r}: {error}, so it would not start; write one plain word")
                return default
        return default

    def listens(self, key: str, default: str, flags: tuple[str, ...]) -> tuple[Listen, ...]:
        text = self.text(key)
        listens, problems = parse_listens(default if text is None else text, flags)
        for problem in problems:
            self.problem(key, problem)
        return tuple(listens)

    def choice(self, key: str, choices: tuple[str, ...], default: str, prefix: str = "KONG_") -> str:
        text = self.text(key, prefix) or default
        if text not in choices:
            self.problem(key, f"{text!r}: write one of {', '.join(choices)}")
        return text

    def switch(self, key: str, default: str, prefix: str = "KONG_") -> bool:
        return self.choice(key, ("on", "off"), default, prefix) == "on"

    def seconds(self, key: str, prefix: str = "KONG_") -> float | None:
        """An nginx time above 0, or None where none was given."""
        text = self.text(key, prefix)
        if not text:
            return None
        seconds = kongconf.nginx_time(text)
        if not seconds:
            self.problem(key, f"{text!r}: write a time above 0 as nginx does, as in 60s or 500ms")
        return seconds

    def number(self, key: str, low: int, high: int, what: str, prefix: str = "KONG_") -> int | None:
        """A plain decimal number within bounds, or None where none was given."""
        text = self.text(key, prefix)
        if not text:
            return None
        value = bounded_decimal(text, high)
        if value is not None and low <= value:
            return value
        self.problem(key, f"{text!r}: write {what} from {low} to {high}")
        return None

    def number_or_auto(self, keys: tuple[str, ...], high: int) -> int | None:
        """The first of these keys that was given; None is ``auto``, the default."""
        for key in keys:
            text = self.text(key)
            if not text:
                continue
            self.given[keys[-1]] = self.given[key]
            if text == "auto":
                return None
            value = bounded_decimal(text, high - 1)
            if not value:
                self.problem(key, f"{text!r}: write auto or a number of at least 1")
                return None
            return value
        return None

    def log_path(self, key: str, default: str) -> str:
        """A path, ``off`` included: nginx's named formats and syslog are not to be had here."""
        text = self.text(key) or default
        if kongconf.strip(text).startswith("syslog:"):
            self.problem(key, f"{text!r}: there is no syslog here, write a path or /dev/stdout")
        elif any(blank in text for blank in BLANKS):
            self.problem(
                key, f"{text!r}: write a path alone; the form of the access log is {OURS}ACCESS_LOG_FORMAT"
            )
        return text

    def pem_list(self, key: str) -> tuple[str, ...]:
        """Paths or PEM texts; base64, the third form that Kong takes, has been resolved."""
        return tuple(map(_pem_or_path, kongconf.array(self.text(key) or "")))

    def pem(self, key: str, prefix: str = "KONG_") -> str | None:
        """One path or PEM text, or None where none was given."""
        text = self.text(key, prefix)
        return _pem_or_path(text) if text else None


def _pem_or_path(entry: str) -> str:
    if "-----BEGIN" in entry:
        return entry
    import base64
    import binascii

    try:
        decoded = base64.b64decode("".join(entry.split()), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return entry
    return decoded if "-----BEGIN" in decoded else entry
