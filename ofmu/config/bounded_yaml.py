"""YAML of a person's own hand: no key stands twice, and depth, aliases and numbers are bounded.

PyYAML itself keeps the last value of a key and drops the others without a word. Its aliases may refer to themselves, or
multiply a text of some lines to gigabytes.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from ofmu.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"
_MAX_DEPTH = 50
_MAX_NODES = 200_000
"""Bound on the values of a text, where every alias counts as much as what it stands for."""
_MAX_INTEGER = 2**64
"""Larger integers are no settings. Python also refuses to print those of more than 4,300 digits."""


class _BoundedLoader(yaml.SafeLoader):
    """The safe loader, with an error for a key that a mapping holds twice. Merged keys (``<<``) may be overridden."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()
        self._depth, self._nodes = 0, 0
        self._open: set[str] = set()
        """Anchors whose nodes are not complete."""
        self._sizes: dict[str, int] = {}
        """Number of nodes of each anchor."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node within the bounds on depth, aliases and size."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line, anchor = event.start_mark.line + 1, event.anchor
        is_alias = self.check_event(yaml.AliasEvent)
        if is_alias and anchor in self._open:
            raise ConfigError(f"has in line {line} the alias '*{anchor}' of a value that it is part of: remove it")
        before = self._nodes
        self._nodes += self._sizes.get(anchor, 1) if is_alias else 1
        if self._nodes > _MAX_NODES:
            raise ConfigError(f"has more than {_MAX_NODES:,} values in line {line}, with aliases written out: cut it")
        if self._depth >= _MAX_DEPTH:
            raise ConfigError(f"is nested more than {_MAX_DEPTH} deep in line {line}: write sections with settings")
        if anchor is not None and not is_alias:
            self._open.add(anchor)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not is_alias:
            self._open.discard(anchor)
            self._sizes[anchor] = self._nodes - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value. A number or a date that Python refuses is an error with its line."""
        try:
            value = super().construct_object(node, deep=deep)
        except ConfigError:
            raise
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"has in line {node.start_mark.line + 1} a number or a date that cannot be read ({error}): correct it"
            ) from None
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ConfigError(f"has in line {node.start_mark.line + 1} an integer above 2^64: write a smaller one")
        return value

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
                both = f"line {line}" if line == lines[key] else f"line {lines[key]} and in line {line}"
                raise ConfigError(f"holds '{key}' twice, in {both}: write one '{key}' with all of its settings")
            lines[key] = line


def load_yaml(text: str, source: str, *, text_if_invalid: bool = False) -> Any:
    """Parse YAML.

    Args:
        text: the YAML.
        source: what the text is, for errors: ``The config mine.yaml``.
        text_if_invalid: whether to return ``text`` if it is not YAML.

    Raises:
        ConfigError: the text is not YAML; a mapping holds a key twice; the text is nested too deeply, or refers to
            itself; or a number is too large.
    """
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from None
    except yaml.YAMLError as error:
        if text_if_invalid:
            return text
        raise ConfigError(f"{source} is not valid YAML{_problem(error)}") from error


def _problem(error: yaml.YAMLError) -> str:
    """Return the line, where it is known, and what is wrong there."""
    if isinstance(error, yaml.MarkedYAMLError):
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        words = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        return f"{line}: {words}"
    return ": " + " ".join(str(error).split())
