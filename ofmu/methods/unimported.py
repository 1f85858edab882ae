"""The stand-in for a method of the user whose module is not imported: where only results are read."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict

from ofmu.data.kinds import TRAITS
from ofmu.methods.base import Method
from ofmu.methods.config import MethodConfig


class UnimportedConfig(MethodConfig):
    """The settings of a method whose module is not imported. Any key is valid, since only the module knows the keys."""

    model_config = ConfigDict(extra="allow")


class UnimportedMethod(Method[Any]):
    """A method that cannot run. Its class is abstract, so it has no instance."""

    Config = UnimportedConfig
    source = ""
    tasks = frozenset(TRAITS)
    space: ClassVar[dict[str, Any]] = {}
    published: ClassVar[dict[str, Any]] = {}
    no_op_config: ClassVar[dict[str, Any]] = {}
