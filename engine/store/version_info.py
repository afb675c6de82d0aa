"""The identity of a version of labels, and the difference between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """What a version was made from. `configuration` is nested and holds JSON values only; the code version,
    the device and the kind of corpus are recorded but are not part of the digest."""

    round: int
    configuration: Mapping[str, Any]
    weights_digest: str
    parent: str | None
    code_version: str
    device: str
    corpus_kind: str = "folder"

    @property
    def digest(self) -> str:
        """Digest of everything that affects the labels, 12 hexadecimal digits."""
        identity = [self.round, self.configuration, self.weights_digest, self.parent]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"round-{self.round:03d}-{self.digest}"


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration into one with dotted names.

    >>> flatten_settings({"method": "promerge", "promerge": {"tau_b": 0.2}})
    {'method': 'promerge', 'promerge.tau_b': 0.2}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def describe_difference(there: VersionInfo, here: VersionInfo) -> str:
    """The settings in which two versions differ, as text for an error message."""
    # Through JSON, so that tuples become lists, as they are in `there`, which was read from a file.
    ours = json.loads(json.dumps(dict(here.configuration)))
    old, new = flatten_settings(there.configuration), flatten_settings(ours)
    old["weights"], new["weights"] = there.weights_digest[:12], here.weights_digest[:12]
    parts = [
        f"{name} is {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return "; ".join(parts) or f"parent is {there.parent} there, {here.parent} here"
