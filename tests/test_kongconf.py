"""Texts as Kong, nginx and docker read them: what the recorded answers do not say."""

from __future__ import annotations

import re

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.kongconf import (
    nginx_seconds,
    nginx_time,
    nginx_word,
    parse_environment,
    parse_file,
)

# --- kong.conf --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1000", "1000"),
        ("0x64", "100"),
        ("1e2", "100"),
        ("+7", "7"),
        ("-7.50", "-7.5"),
        ("010", "10"),
        ("9", "9"),
        # A number is looked for where a digit or a sign stands first, and there alone.
        (".5", ".5"),
        ("inf", "inf"),
        ("10.0.0.1", "10.0.0.1"),
        ("4k", "4k"),
    ],
)
def test_numbers_of_a_file_are_plain_ones(value: str, text: str) -> None:
    assert parse_file(f"key = {value}") == {"key": text}


def test_a_key_is_spoilt_byte_by_byte() -> None:
    assert parse_file("\udcfflog_level = info\nä = 1") == {"_log_level": "info", "__": "1"}


def test_lines_that_go_on() -> None:
    """Comments and blank lines between the parts are passed over, and a last line that goes on is lost."""
    text = "a = 1, \\\n2, \\ \n\n; b = 2\n # c = 3\n3\n; d = 4\ne = 5, \\\n f = 6\ng = lost \\"
    assert parse_file(text) == {"a": "1, 2, 3", "e": "5,  f = 6"}


def test_a_section_ends_what_is_read() -> None:
    assert parse_file("a = 1\n [no section] = 2\n[section]\nb = 3") == {"a": "1", "_no_section_": "2"}


# --- environment files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=", ""),
        ("KEY=a b", "a b"),
        (" KEY = a=b ", "a=b"),
        ('KEY="a b"', "a b"),
        ("KEY='a b'", "a b"),
        ('KEY=""', ""),
        ("KEY='\"a\"'", '"a"'),
        # A quote that is not round the whole value is part of it.
        ('KEY="', '"'),
        ("KEY='a", "'a"),
        ("KEY=a'", "a'"),
        ("KEY='a\"", "'a\""),
        ('KEY=a"b"a', 'a"b"a'),
        ("KEY=xax", "xax"),
        ("KEY=XaX", "XaX"),
        ("KEY=a # b", "a # b"),
    ],
)
def test_values_of_an_environment_file(line: str, value: str) -> None:
    assert parse_environment(f"{line}\n") == {"KEY": value}


def test_comments_and_blank_lines_of_an_environment_file() -> None:
    text = "# a\n; b\n \t\n  # c\nkey_1=x\n_Key=y\nkey_1=z\n"
    assert parse_environment(text) == {"key_1": "z", "_Key": "y"}


@pytest.mark.parametrize("line", ["KEY", "=x", "1KEY=x", "KEY-A=x", "export KEY=x", "KÄY=x", "KEY: x"])
def test_a_line_that_is_no_pair_is_told_by_its_number(line: str) -> None:
    """The line itself may hold a secret."""
    with pytest.raises(ValueError, match=r"^line 3: write NAME=value$"):
        parse_environment(f"A=1\n\n{line}\nB=2\n")


# --- nginx ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("X-A", "X-A"),
        ('"X-A"', "X-A"),
        ("'X A'", "X A"),
        ("''", ""),
        ('"a;{}#b"', "a;{}#b"),
        ("'a\"b'", 'a"b'),
        ("a'b\"", "a'b\""),
        ("${a}", "${a}"),
        ("a${b}", "a${b}"),
        ("a$b", "a$b"),
        ("X-#A", "X-#A"),
        ("a}", "a}"),
        # Known escapes are resolved, and the backslash of others stays.
        (r"a\"b\'c\\d", "a\"b'c\\d"),
        (r"a\tb\rc\nd", "a\tb\rc\nd"),
        (r"a\ b\;c", r"a\ b\;c"),
        (r"'a\'b'", "a'b"),
        (r"\tb", "\tb"),
        (r"a\"", 'a"'),
        (r"a\n", "a\n"),
    ],
)
def test_words_of_nginx(text: str, word: str) -> None:
    assert nginx_word(text) == word


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no value there"),
        ("#a", "no value there"),
        ("}", "no value there"),
        ("a b", "' ' inside a value"),
        ("a\vb", r"'\\x0b' inside a value"),
        ("a;", "';' inside a value"),
        ("a{", "'{' inside a value"),
        ("{", "'{' inside a value"),
        ("$a{", "'{' inside a value"),
        ("'a' b", "behind the closing quote"),
        ("'a'b'", "behind the closing quote"),
        ("'a", "open quote"),
        ("'", "open quote"),
        ("a\\", "swallow the end"),
        ("\\", "swallow the end"),
    ],
)
def test_what_is_no_word_of_nginx(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        nginx_word(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1w", 604800), ("1d", 86400), ("1h", 3600), ("1m", 60), ("1s", 1), ("1ms", 0.001), ("1", 1), ("0", 0),
     ("2w 3d 4h 5m 6s 7ms", 2 * 604800 + 3 * 86400 + 4 * 3600 + 5 * 60 + 6 + 0.007), ("1m 30", 90)],
)  # fmt: skip
def test_times_of_nginx(text: str, seconds: float) -> None:
    assert nginx_time(text) == pytest.approx(seconds)
    assert nginx_seconds(text) == (None if "ms" in text else seconds)


@pytest.mark.parametrize("text", ["", "s", "1x", "1s1m", "1m1m", "-1", "1.5", " 1", "1S"])
def test_what_is_no_time_of_nginx(text: str) -> None:
    assert nginx_time(text) is nginx_seconds(text) is None


# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("KONG_REAL_IP_HEADER", "a b", "'a b': nginx cannot read ' ' inside a value, so it would not start; write one plain word"),
        ("KONG_REAL_IP_HEADER", "#a", "'#a': nginx reads no value there, so it would not start; write one plain word"),
        ("KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT", "1x", "'1x': write a time above 0 as nginx does, as in 60s or 500ms"),
    ],
)  # fmt: skip
def test_the_word_is_shown_as_it_was_written(name: str, value: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(f'{name}: {problem}')}$"):
        Settings.load({name: value})
