"""Tells what a second run of the same repeats to the byte from what it does not.

Times, memory and how the work was shared out differ; what was found does not.
"""

from collections.abc import Mapping
from typing import Any

import orjson

FREE = frozenset(
    {
        "compile",
        "device",
        "gpu_memory",
        "memory",
        "patience",
        "queue",
        "scheduler",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "workers",
    }
)
"""Options that change speed and memory, and results by rounding at most."""
MEASURED = frozenset(
    {
        "batch",
        "budget_bytes",
        "counted_bytes",
        "downgrades",
        "fit",
        "measured_bytes",
        "patches_per_s",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "reading",
        "resumed_patches",
    }
)
"""Facts about the machine and the moment."""
# Where things lie: their content is in the keys and among the inputs.
_PLACES = frozenset({"model", "mask"})

type Tables = dict[str, Any]
"""JSON values; the tables among them are taken apart one level deep."""


def set_apart(told: Mapping[str, Any], names: frozenset[str]) -> tuple[Tables, Tables]:
    """Take entries out of a mapping and out of the tables in it.

    Returns
    -------
    rest, taken : dict
        `rest` without the names, `taken` with nothing else; see `put_together`.
    """
    rest: Tables = {}
    taken: Tables = {}
    for key, value in told.items():
        if key in names:
            taken[key] = value
        elif isinstance(value, Mapping):
            rest[key] = {k: v for k, v in value.items() if k not in names}
            found = {k: v for k, v in value.items() if k in names}
            if found:
                taken[key] = found
        else:
            rest[key] = value
    return rest, taken


def put_together(rest: Mapping[str, Any], taken: Mapping[str, Any]) -> Tables:
    """What `set_apart` took apart, at any depth."""
    whole = dict(rest)
    for key, value in taken.items():
        inner = whole.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            whole[key] = put_together(inner, value)
        else:
            whole[key] = value
    return whole


def split_facts(facts: Mapping[str, Any]) -> tuple[Tables, Tables]:
    """Facts by stage: those that repeat, and those that do not."""
    return set_apart(facts, MEASURED)


def split_config(config: Mapping[str, Any]) -> tuple[Tables, Tables]:
    """A resolved config: what decides results, and what does not."""
    return set_apart(config, FREE | _PLACES)


def to_toml(config: Mapping[str, Any]) -> str:
    """A config as the TOML that `RunConfig.from_toml` reads; null is left out."""
    top = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    lines = _pairs(top)
    for table, values in config.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{table}]", *_pairs(values)]
    return "\n".join(lines).lstrip() + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """TOML writes text and numbers as JSON does, but for one character."""
    return [
        f"{key} = {orjson.dumps(value).decode().replace(chr(127), r'\u007f')}"
        for key, value in values.items()
        if value is not None
    ]
