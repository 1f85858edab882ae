"""YAML in which no key stands twice. PyYAML itself keeps the last value and drops the others without a word."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from ofmu.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, with an error for a key that a mapping holds twice. Merged keys (``<<``) may be overridden."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check a mapping before other mappings are merged into it, and merge them."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    f"holds '{key}' twice, in line {lines[key]} and in line {line}: write one '{key}' with all of its "
                    "settings"
                )
            lines[key] = line


def load_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: the YAML.
        source: what the text is, for errors: ``The config mine.yaml``.

    Raises:
        ConfigError: a mapping holds a key twice.
        yaml.YAMLError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from None
