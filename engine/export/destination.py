"""Begin and finish an export; its manifest tells whether it is complete.

    export.json    identity of the export; once it is complete, `finished` is true and counts follow
    ...            the format's files, in folders of their own

`finished` stays false if an export is killed, and the same command rebuilds it. It also rebuilds an export
once images that are `listed` as unavailable are available.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.errors import ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore

MANIFEST = "export.json"
# Everything that any format writes; nothing else is ever deleted.
_OWN_PREFIXES = ("annotations/", "images/", "labels/", "train/", "val/", "data.yaml")


def begin_export(
    objects: ObjectStore,
    description: Mapping[str, Any],
    overwrite: bool,
    any_available: Callable[[Sequence[str]], bool],
) -> bool:
    """Clear the destination and mark the export as begun; False if this export is complete already.

    `any_available` is called with the ids of the images that an existing export lacks. Raises StoreError if
    the destination holds files that are not an export, or another export and `overwrite` is false.
    """
    manifest = _read_manifest(objects)
    if manifest is None and next(objects.keys(), None) is not None:
        raise StoreError(f"{objects.uri} holds files that are not an export: give a new or an empty folder")
    if manifest is not None and not overwrite:
        if manifest["export"] != description:
            raise StoreError(
                f"{objects.uri} holds another export ({_difference(manifest['export'], description)}); "
                "give another output, or overwrite it"
            )
        if manifest["finished"] and not any_available([image_id for image_id, *_ in manifest["listed"]]):
            return False
    _write_manifest(objects, {"finished": False, "export": description})
    for prefix in _OWN_PREFIXES:
        for key in list(objects.keys(prefix)) if manifest is not None else ():
            objects.delete(key)
    return True


def finish_export(objects: ObjectStore, description: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Mark the export as complete."""
    _write_manifest(objects, {"finished": True, "export": description, **report})


def _read_manifest(objects: ObjectStore) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads(objects.read(MANIFEST))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise StoreError(f"{objects.uri}/{MANIFEST} is damaged: remove this export and run again") from error
    if not isinstance(manifest, dict) or not {"export", "finished"} <= manifest.keys():
        raise StoreError(f"{objects.uri} holds files that are not an export: give a new or an empty folder")
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
