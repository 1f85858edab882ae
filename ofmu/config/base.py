"""The base class of every config section, and the scalar types that sections share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError, PydanticSerializationError

MAX_SIZE = 10**12
"""Bound on counts and sizes. Nobody means a larger one, and libraries may abort on it."""

PositiveInt = Annotated[int, Field(ge=1, le=MAX_SIZE)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every generator takes. NumPy's older one, which Optuna uses, takes 32 bits."""
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen config section. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)

    added_later: ClassVar[frozenset[str]] = frozenset()
    """Settings that older configs do not store. At their defaults they are not stored now either. So a stored config
    compares equal to a new one, and keys of caches stay as they are."""

    @model_serializer(mode="wrap")
    def _without_later_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {
            name
            for name in self.added_later
            if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }
        with _ctrl_c_as_itself():
            return {key: value for key, value in handler(self).items() if key not in unset}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``seed: true``, which pydantic would read as 1."""
        if isinstance(value, bool) and info.field_name is not None:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("no_number", "this is no number, write digits")
        return value

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the section as a dict.

        Raises:
            KeyboardInterrupt: Ctrl-C came during serialisation.
        """
        with _ctrl_c_as_itself():
            return super().model_dump(**options)

    @classmethod
    def section_schema(cls, name: str, mapping: Mapping[str, Any]) -> type[BaseModel] | None:
        """Return the class of the subsection ``name``; None if the field's annotation decides.

        A subclass overrides this where the values in ``mapping`` choose the class.
        """
        return None


@contextmanager
def _ctrl_c_as_itself() -> Iterator[None]:
    """Raise the KeyboardInterrupt that pydantic wraps, which callers would take for an ordinary error.

    A section around another one drops the cause of the inner section's error, so each section unwraps it.
    """
    try:
        yield
    except PydanticSerializationError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _kinds(annotation: Any) -> set[Any]:
    """Return the types of which an annotation is made, such as int and None of ``int | None``."""
    parts = get_args(annotation)
    return {annotation}.union(*(_kinds(part) for part in parts)) if parts else {annotation}
