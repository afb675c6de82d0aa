"""Conversion of image records and outcomes to rows of a store's Parquet files, and back.

A row is a dictionary with the columns of `engine.store.schema`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.masks.instances import Instances
from engine.types import ImageRecord, Optimality, Outcome, Reason, Status


def record_row(record: ImageRecord) -> dict[str, Any]:
    """The row of an image in a plan."""
    return {"image_id": record.image_id, "coco_id": record.coco_id, "path": record.path}


def row_record(row: dict[str, Any]) -> ImageRecord:
    """The image of a row of a plan or a shard."""
    return ImageRecord(image_id=row["image_id"], coco_id=row["coco_id"], path=row["path"])


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """The row of an outcome in a shard."""
    return {
        **record_row(outcome.record),
        "height": outcome.height,
        "width": outcome.width,
        "sha256": outcome.sha256,
        "status": outcome.status.value,
        "reason": outcome.reason.value if outcome.reason is not None else None,
        "detail": outcome.detail,
        "objective": outcome.optimality.objective if outcome.optimality is not None else None,
        "gap": outcome.optimality.gap if outcome.optimality is not None else None,
        "instances": _instance_rows(outcome.instances),
    }


def _instance_rows(instances: Instances | None) -> list[dict[str, Any]]:
    if instances is None:
        return []
    return [
        {
            "rle": instances.rles[i].decode("ascii"),
            "bbox": instances.boxes_xyxy[i].tolist(),
            "area": int(instances.areas[i]),
            "score": float(instances.scores[i]),
            "method": instances.method,
            "stability": None if np.isnan(instances.stabilities[i]) else float(instances.stabilities[i]),
        }
        for i in range(len(instances))
    ]


def row_outcome(row: dict[str, Any]) -> Outcome:
    """The outcome of a row of a shard."""
    return Outcome(
        record=row_record(row),
        status=Status(row["status"]),
        height=row["height"],
        width=row["width"],
        sha256=row["sha256"],
        reason=Reason(row["reason"]) if row["reason"] is not None else None,
        detail=row["detail"],
        optimality=_row_optimality(row),
        instances=_row_instances(row),
    )


def _row_optimality(row: dict[str, Any]) -> Optimality | None:
    if row.get("objective") is None:
        return None
    return Optimality(objective=row["objective"], gap=row["gap"])


def _row_instances(row: dict[str, Any]) -> Instances | None:
    rows = row["instances"]
    if not rows:
        return None
    stabilities = [np.nan if item["stability"] is None else item["stability"] for item in rows]
    return Instances(
        size=(row["height"], row["width"]),
        method=rows[0]["method"],
        rles=tuple(item["rle"].encode("ascii") for item in rows),
        boxes_xyxy=np.array([item["bbox"] for item in rows], np.int32),
        areas=np.array([item["area"] for item in rows], np.int64),
        scores=np.array([item["score"] for item in rows], np.float32),
        stabilities=np.array(stabilities, np.float32),
    )
