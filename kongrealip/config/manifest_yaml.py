"""YAML -> documents. Imported where there are manifests to read: PyYAML is an extra."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kongrealip.config.manifest_model import Document, Plain
from kongrealip.errors import StartError

_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "null", "merge")}


class _Loader(yaml.SafeLoader):
    """Scalars are their text, for ``80:8000`` is no number of seconds and ``010`` no eight."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _KINDS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _plain(loader: _Loader, node: yaml.ScalarNode) -> Plain:
    return Plain(node.value)


def _of_no_tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    """What a tag of some other program's stands at: the value counts, if there is one."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_Loader.add_constructor("tag:yaml.org,2002:bool", _plain)
_Loader.add_multi_constructor("!", _of_no_tag)


def load_documents(path: str, data: bytes) -> list[Document]:
    """Read the documents of a file. Raises StartError, a line with the place, where it is no YAML."""
    try:
        contents = list(yaml.load_all(data, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        raise StartError(f"{place}: no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise StartError(f"{path}: no YAML: {reason}") from error
    return [Document(path, number, content) for number, content in enumerate(contents, 1)]
