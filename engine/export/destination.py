"""Where an export goes, and how it is known to be whole.

    export.json    what the export is of; `finished` is true, and counts are there, once all is written
    ...            the files of the format, in folders that are its own

An export that was killed has `finished` false, and the same command makes it anew. So it does where images
that are `listed` as left out can be had by now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.errors import ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore

MANIFEST = "export.json"
# What any format writes; nothing else is ever deleted.
_OWN_PREFIXES = ("annotations/", "images/", "labels/", "train/", "val/", "data.yaml")


def begin_export(
    objects: ObjectStore,
    description: Mapping[str, Any],
    overwrite: bool,
    any_available: Callable[[Sequence[str]], bool],
) -> bool:
    """Clear the place for an export; False where this very export is there already.

    `any_available` is asked about images, given by id, that the export there does without. Raises StoreError
    where something else is there: files that are no export, or another export that `overwrite` does not give
    up.
    """
    there = _read_manifest(objects)
    if there is None and next(objects.keys(), None) is not None:
        raise StoreError(f"{objects.uri} holds files that are no export: name a new or an empty place")
    if there is not None and not overwrite:
        if there["export"] != description:
            raise StoreError(
                f"{objects.uri} holds another export ({_difference(there['export'], description)}); "
                "use another --output, or --overwrite"
            )
        if there["finished"] and not any_available([image_id for image_id, *_ in there["listed"]]):
            return False
    _write_manifest(objects, {"finished": False, "export": description})
    for prefix in _OWN_PREFIXES:
        for key in list(objects.keys(prefix)) if there is not None else ():
            objects.delete(key)
    return True


def finish_export(objects: ObjectStore, description: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Say that all is written."""
    _write_manifest(objects, {"finished": True, "export": description, **report})


def _read_manifest(objects: ObjectStore) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads(objects.read(MANIFEST))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise StoreError(f"{objects.uri}/{MANIFEST} is damaged: remove it and what it stood for") from error
    if not isinstance(manifest, dict) or not {"export", "finished"} <= manifest.keys():
        raise StoreError(f"{objects.uri} holds files that are no export: name a new or an empty place")
    return manifest


def _write_manifest(objects: ObjectStore, manifest: Mapping[str, Any]) -> None:
    objects.write(MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    parts = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    return "; ".join(parts)
