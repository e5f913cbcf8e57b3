"""The vectors of which we want something else than nginx did, each with the outcome and the reason.

Nothing else may differ: ``tests/test_resolve_vectors.py`` and ``tests/test_wire_vectors.py``
take every vector that is not listed here as it stands.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """``outcome`` is ``ok`` (decided by the rules), ``waits`` (until the deadline), ``config_error``,
    ``closed`` or ``status`` (an HTTP error)."""

    outcome: str
    reason: str


_IN_PIECES = (
    "pp1_fragments-100632b534a0",
    "pp1_fragments-13fc5f8b9147",
    "pp1_fragments-1937f48cf9d2",
    "pp1_fragments-1b94579f7380",
    "pp1_fragments-2457218026ec",
    "pp1_fragments-2ba07bb87494",
    "pp1_fragments-69968fa4f131",
    "pp1_fragments-766c021608ac",
    "pp1_fragments-a1f504a99266",
    "pp1_fragments-a8c80247a60d",
    "pp1_fragments-c03ea13c8c6d",
    "pp1_fragments-cb1e06c17948",
    "pp1_fragments-d14455edefd3",
    "pp1_fragments-e678d112e88d",
    "pp1_fragments-f19e72bda1d6",
    "pp1_fragments-f2434ecb2a98",
    "pp2_fragments-004ef9796557",
    "pp2_fragments-11d6f9619ddf",
    "pp2_fragments-309bb65220ec",
    "pp2_fragments-33a81dce29c7",
    "pp2_fragments-3bbdc124b434",
    "pp2_fragments-619529335510",
    "pp2_fragments-6866aaf8bff2",
    "pp2_fragments-7110c69f32f3",
    "pp2_fragments-841de02852db",
    "pp2_fragments-a653b10032b9",
    "pp2_fragments-ddb34d5b544c",
    "tls_pp-05299f0b572e",
    "tls_pp-072ace226c35",
    "tls_pp-1ecaac320453",
    "tls_pp-212e76c089d0",
    "tls_pp-2e6861f43588",
    "tls_pp-2f8cba03460b",
    "tls_pp-417d4a9e9c8a",
    "tls_pp-46ef34552057",
    "tls_pp-673b15534493",
    "tls_pp-9cd656b3f594",
    "tls_pp-9e883fee06a3",
    "tls_pp-a0e9cc518c87",
    "tls_pp-a550201ed993",
)

_LONGER_THAN_1_KIB = (
    "pp1_length-025d941c52e1",
    "pp1_length-1f7c9fe3b332",
    "pp1_length-572c93127af4",
    "pp1_length-6b3981c2b93d",
    "pp1_length-7eec281f5da1",
    "pp1_length-bf918d08c633",
    "pp1_length-efb39aa82209",
    "pp2_large-029506a2ae22",
    "pp2_large-159770d8abf9",
    "pp2_large-1fdac208e65d",
    "pp2_large-256bd0d761ae",
    "pp2_large-2bb8b7b31a71",
    "pp2_large-3adb3380a0b2",
    "pp2_large-3d6809a79502",
    "pp2_large-3ea0b8b72b24",
    "pp2_large-3f65e3a65027",
    "pp2_large-49eb5728cd85",
    "pp2_large-56c199115a31",
    "pp2_large-7d2caba7bf63",
    "pp2_large-867d69bd48fd",
    "pp2_large-ac7953d56f20",
    "pp2_large-b578272ab7ba",
    "pp2_large-b8afa346df75",
    "pp2_large-be4f180a5e9f",
    "pp2_large-e6f244b3e94d",
)

_UNFINISHED = (
    "pp2_length-b4152093503d",
    "pp2_length-e55418a3b429",
    "pp2_mutated-488bb13240c1",
    "pp2_mutated-4d5cfa1428ef",
    "pp2_mutated-a1ca5fe2a203",
    "pp_missing-4ff8d3d525b7",
    "pp_missing-64229ba62ff2",
    "pp_missing-fb13004a14ba",
)

_REFUSED_BY_KONG = (
    "trusted_forms-246566002ae4",
    "trusted_forms-277ce6cf69a9",
    "trusted_forms-2b8daf4931bc",
    "trusted_forms-2e926b56f8a1",
    "trusted_forms-330cad17aa1d",
    "trusted_forms-38c1096ad749",
    "trusted_forms-3d946fffa378",
    "trusted_forms-3e42015fd811",
    "trusted_forms-47ba7f2a8e9f",
    "trusted_forms-4d892279a642",
    "trusted_forms-4f9ce060cda3",
    "trusted_forms-516aec588237",
    "trusted_forms-64f778b77c57",
    "trusted_forms-6defcf7f8271",
    "trusted_forms-7176f1be0537",
    "trusted_forms-721014a0d637",
    "trusted_forms-7c7e9449a946",
    "trusted_forms-832f99f7a756",
    "trusted_forms-84ea8b119dee",
    "trusted_forms-9102cd0119be",
    "trusted_forms-ab509dc4b3a8",
    "trusted_forms-ac922c56a186",
    "trusted_forms-b3ee59dc8450",
    "trusted_forms-b421440260d1",
    "trusted_forms-bed31abfd30b",
    "trusted_forms-c265373c37cb",
    "trusted_forms-cd3f62dd2fed",
    "trusted_forms-cd88cbc5db3f",
    "trusted_forms-d016770ada57",
    "trusted_forms-d112413a30bc",
    "trusted_forms-d85e4678d3c9",
    "trusted_forms-f3639974f0f7",
    "trusted_forms-f381de112646",
    "trusted_forms-f4f24a3a9d33",
    "trusted_forms-f624f69289ce",
    "trusted_forms-faeee59856fc",
    "trusted_forms-fb639dd32b1c",
    "trusted_peer-111803f65890",
    "trusted_peer-13538f4c58a0",
    "trusted_peer-1abecba7127a",
    "trusted_peer-3bc27e9b2e10",
    "trusted_peer-4148f31b9df0",
    "trusted_peer-462be16cb446",
    "trusted_peer-4c75b9b1bcac",
    "trusted_peer-636b62037c44",
    "trusted_peer-63b9a3e24b3b",
    "trusted_peer-7aaca77dea44",
    "trusted_peer-a7bcd3a19b33",
    "trusted_peer-e166727b3b88",
    "trusted_peer-eb2992a502cf",
    "trusted_peer-fd2783510ee2",
)

_OF_4097_BYTES = (
    "tls_pp_length-5d4792b87870",
    "tls_pp_length-c43f763755a2",
)

DIFFERENCES = {
    **dict.fromkeys(
        _IN_PIECES, Difference("ok", "nginx needs the preamble in its first read, we wait for the rest")
    ),
    **dict.fromkeys(
        _LONGER_THAN_1_KIB, Difference("ok", "nginx has 1 KiB for it in front of plain HTTP, we 4 KiB")
    ),
    **dict.fromkeys(
        _OF_4097_BYTES, Difference("closed", "nginx has 4097 bytes for it in front of TLS, we 4 KiB")
    ),
    **dict.fromkeys(
        _UNFINISHED, Difference("waits", "nginx gives up after the first read, we at the deadline")
    ),
    **dict.fromkeys(
        _REFUSED_BY_KONG, Difference("config_error", "nginx alone takes the trusted entry, Kong refuses it")
    ),
}

# What the HTTP/1.1 parser decides is uvicorn's. These count with nginx's values in test_resolve_vectors.
_REFUSED_BY_UVICORN = (
    "header_framing-24450e9e8168",
    "header_framing-30a8ab2d291c",
    "header_framing-3ec151c326d2",
    "header_framing-4d9b0ea24511",
    "header_framing-50675b04bf09",
    "header_framing-62006c6ac2b8",
    "header_framing-67313b9084b9",
    "header_framing-7a9556f4d3d3",
    "header_framing-838ac6768261",
    "header_framing-94974128e493",
    "header_framing-a455ace07398",
    "header_framing-c3d064d600b1",
    "header_framing-d5186c846974",
    "xff_grammar-2c628c541fd0",
    "xff_grammar-8401a35bd93e",
    "xrealip_grammar-8793d22a52ed",
    "xrealip_grammar-ef86a72165b0",
)
_HOST_IS_ODD = (
    "custom_header-1fb53b73e5ab",
    "custom_header-976eb9150755",
    "custom_header-e5ad78466cb3",
    "header_framing-cad58dac89b6",
)
_TABS_ROUND_A_VALUE = (
    "header_framing-73a672946d10",
    "header_framing-7a330917b54c",
    "header_framing-8af93ad878c2",
    "header_framing-9750a53dd5b7",
    "header_framing-cdea0c5b4326",
    "header_framing-e56011d3fddf",
    "recursion-871744630642",
    "xff_list-27b443eab1de",
    "xff_list-54fbf38297ea",
    "xff_list-ba71371e195a",
    "xff_multiline-2597365aae15",
)
_LONG_LINES = (
    "long_list-2e136e7afaba",
    "long_list-92563bd5d819",
    "long_list-a6fd6e85fce2",
)
_ODD_METHOD = (
    "pp1_malformed-2e0b26abefa6",
    "pp1_unknown-bdb0e28eb6c7",
)
_HTTP_TO_A_TLS_PORT = (
    "tls-002b60d42815",
    "tls-18dff8566f6e",
    "tls_pp-4dafa32d6ff2",
    "tls_pp-9710802bacaa",
    "tls_pp-d16ec9552561",
    "tls_pp-f1883e71f100",
)

HTTP_DIFFERENCES = {
    **dict.fromkeys(
        _REFUSED_BY_UVICORN,
        Difference(
            "status", "control characters, bare LF, odd names, a line without colon: uvicorn answers 400"
        ),
    ),
    **dict.fromkeys(
        _HOST_IS_ODD, Difference("ok", "nginx judges the Host header, uvicorn leaves that to the application")
    ),
    **dict.fromkeys(
        _TABS_ROUND_A_VALUE,
        Difference("ok", "uvicorn takes tabs away round a value, and the rules apply to what is left"),
    ),
    **dict.fromkeys(
        _LONG_LINES, Difference("ok", "nginx refuses header lines over 8 KiB, uvicorn takes them")
    ),
    **dict.fromkeys(
        _ODD_METHOD, Difference("status", "nginx takes any word for a method, uvicorn only those it knows")
    ),
    **dict.fromkeys(
        _HTTP_TO_A_TLS_PORT,
        Difference("closed", "nginx answers 400 in plain text on a TLS port, we close as a failed handshake"),
    ),
}
