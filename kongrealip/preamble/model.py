"""The value that both wire forms are read into."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kongrealip.preamble.said import TLVs


class Preamble(NamedTuple):
    """What a load balancer said about a connection.

    ``version`` is 1 or 2, or 0 where another server read the preamble and does not say.
    ``command`` is ``PROXY``, ``LOCAL``, or the undefined nibble in hexadecimal (``0x7``). The
    four address fields are None where the preamble carries no information (LOCAL, UNKNOWN, a
    family other than TCP over IPv4 or IPv6). In version 1 the addresses are the text as sent,
    valid or not; in version 2 they are printed as nginx prints them. A port may be 0.
    ``tlv_area`` is what stands behind the addresses, in which nothing has been checked, and
    ``tlvs`` is that decoded.
    """

    version: int
    command: str
    source_ip: str | None = None
    source_port: int | None = None
    destination_ip: str | None = None
    destination_port: int | None = None
    tlv_area: bytes = b""

    @property
    def tlvs(self) -> "TLVs":
        """The TLVs, decoded anew each time. Broken ones are left out and never raise."""
        # Imported when it is read: most connections have none, and most programs never look.
        from kongrealip.preamble.said import tlvs_of

        return tlvs_of(self.tlv_area)
