"""The base of all options: frozen, unknown keys refused, wrong values named."""

import hashlib
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_pipeline.errors import ConfigError


class Options(BaseModel):
    """Base of all options: frozen, unknown keys refused, wrong values named."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __init__(self, **values: Any) -> None:  # Any: pydantic checks each value
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(type(self).__name__, error)) from None

    def digest(self) -> str:
        """sha256 (hex) of the options as sorted JSON."""
        data = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(data).hexdigest()


def _expected(item: Any) -> str:  # Any: pydantic's error, a typed dict
    """What was expected; a pattern is no words, its field's description is."""
    if item["type"] == "string_pattern_mismatch":
        for options in Options.__subclasses__():
            field = options.model_fields.get(str(item["loc"][-1]))
            if field is not None and field.description:
                return f"expected {field.description}"
    message: str = item["msg"]
    return message[:1].lower() + message[1:]


def _explain(name: str, error: ValidationError) -> str:
    """One line per wrong value: where, what was got, what was expected."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or name
        got = item.get("input")
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):
            lines.append(f"[{where}] {inner}")
        elif item["type"] == "extra_forbidden":
            lines.append(f"unknown option {where!r}")
        elif not item["loc"] and inner is not None:  # options that do not go together
            lines.append(str(inner))
        else:
            lines.append(f"option {where!r}: got {got!r}, {_expected(item)}")
    return "; ".join(lines)
