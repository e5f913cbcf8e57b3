"""``kongrealip decode``: a preamble field by field, from hexadecimal, a file of bytes or a capture."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from kongrealip.cli.pasted import MOST_BYTES, in_bytes, is_file, read_bytes, wrong
from kongrealip.cli.screen import echo
from kongrealip.preamble.capture import frames, is_capture
from kongrealip.preamble.dissect import dissect
from kongrealip.preamble.segments import data_of_packet, preamble_segments

_INPUT = "HEX|FILE|PCAP"


@click.command()
@click.argument("preamble", metavar=_INPUT)
def decode(preamble: str) -> None:
    """Print a PROXY preamble field by field, and what nginx and this server would do with it.

    HEX is hexadecimal text, with or without blanks, colons and 0x; FILE holds the bytes or such text,
    also as xxd, hexdump -C or tcpdump -x print it; - is standard input. Of a PCAP (pcap or pcapng) each TCP
    connection is shown whose first data begins with a preamble. No variable is read.
    """
    if preamble == "-":
        _decode_file(preamble, sys.stdin.buffer)
    elif is_file(preamble):
        try:
            with open(preamble, "rb") as file:
                _decode_file(preamble, file)
        except OSError as error:
            raise wrong(_INPUT, f"{preamble!r}: cannot be read: {error.strerror}") from error
    else:
        _decode_bytes(read_bytes(_INPUT, preamble))


def _decode_file(name: str, file: BinaryIO) -> None:
    beginning = file.read(4)
    if is_capture(beginning):
        _decode_capture(name, file, beginning)
    else:
        _decode_bytes(in_bytes(_INPUT, name, beginning + file.read(MOST_BYTES)))


def _decode_capture(name: str, file: BinaryIO, beginning: bytes) -> None:
    count = 0
    try:
        for count, segment in enumerate(preamble_segments(frames(file, beginning)), 1):
            blank = "" if count == 1 else "\n"
            echo(f"{blank}packet {segment.number}: {segment.source} -> {segment.destination}")
            _show(segment.data)
    except ValueError as error:
        raise wrong(_INPUT, f"{name!r}: {error}") from error
    if not count:
        raise wrong(_INPUT, f"{name!r}: no TCP connection in it begins with a preamble")


def _decode_bytes(data: bytes) -> None:
    # What tcpdump -x prints are packets. A preamble begins neither with a 4 nor with a 6.
    _show(data_of_packet(data) or data)


def _show(data: bytes) -> None:
    found = dissect(data)
    for field in found.fields:
        echo(f"{field.offset:6} {field.length:5}  {'  ' * field.depth + field.name:22}  {field.value}")
    for who, verdict in found.verdicts:
        echo(f"{who + ':':15}{verdict}")
