"""The base class of every config section, and the scalar types that sections share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen config section. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the section as a dict.

        Raises:
            KeyboardInterrupt: Ctrl-C came during serialisation. Pydantic wraps KeyboardInterrupt in
                PydanticSerializationError, which callers would take for an ordinary error.
        """
        try:
            return super().model_dump(**options)
        except PydanticSerializationError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise

    @classmethod
    def section_schema(cls, name: str, mapping: Mapping[str, Any]) -> type[BaseModel] | None:
        """Return the class of the subsection ``name``; None if the field's annotation decides.

        A subclass overrides this where the values in ``mapping`` choose the class.
        """
        return None
