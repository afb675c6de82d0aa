"""The pseudo-label store: versions of labels, written shard by shard; a shard's file is its commit.

    round-000.json                        name of the current version of round 0
    round-000-1f0c2a9b44de/               one version, named by its round and the digest of its configuration
        version.json                        configuration, parent, weights, code version, device
        plan/000123.parquet                 the images of shard 123; written before they are labelled
        shard-000123.parquet                their rows; its existence commits the shard
        manifest.parquet                    a row per shard; written when all shards are committed
        evaluation/77aa01c93e5d.json        metrics against a ground truth, named by the digest of the
                                            protocol and ground truth, so that rounds are comparable
        calibration.json                    settings that were chosen on the corpus, see
                                            engine.labelling.calibration
        runs/000002.json                    duration of a finished run
    tar-index/                            positions of images in tars, see engine.corpora.tar_index

Only the files in runs/ hold a time, and none holds a host name: equal work gives equal bytes in all others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore
from engine.store import schema
from engine.store.columns import InstanceColumn, ShardColumns, decode_columns, decode_instance_column
from engine.store.runs import RunRecord
from engine.store.schema import ShardSummary
from engine.store.version_info import VersionInfo, describe_difference
from engine.types import ImageRecord, Outcome, Reason, ShardPlan

Mode = Literal["resume", "extend", "overwrite"]
_SHARD = re.compile(r"shard-(\d{6,})\.parquet$")
_MANIFEST = "manifest.parquet"
_EVALUATIONS = "evaluation/"
_RUNS = "runs/"
_CALIBRATION = "calibration.json"
# Footers that are read concurrently.
_READERS = 16


class PseudoLabelStore:
    """The versions of labels in one place."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    @property
    def uri(self) -> str:
        return self._objects.uri

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a version, ascending."""
        keys = (re.fullmatch(r"round-(\d{3})\.json", key) for key in self._objects.keys("round-"))
        return [int(match[1]) for match in keys if match]

    def version(self, round_number: int | None = None) -> Version:
        """The current version of a round, or of the latest round if None. Raises StoreError without one."""
        if round_number is None:
            rounds = self.rounds()
            if not rounds:
                raise StoreError(f"{self.uri} holds no labels yet: run a label job with --store {self.uri}")
            round_number = rounds[-1]
        name = self._current(round_number)
        if name is None:
            raise StoreError(f"{self.uri} has no round {round_number}; it has {self.rounds()}")
        return Version(self._objects, name)

    def begin(self, info: VersionInfo, mode: Mode) -> Version:
        """The version to label into: the round's current one if it matches `info`, or else a new one.

        With `overwrite`, it is a new version beside the current one, or an unfinished one that an earlier
        call began; it becomes current when it is finished, see `Version.finish`. Raises StoreError if the
        current version has another configuration and `mode` is not `overwrite`.
        """
        version = self.find_begun(info, mode)
        if version is not None:
            return version
        current = self._current(info.round)
        if current is not None:
            return self._create(info, self._unfinished_or_new_name(info, current))
        version = self._create(info, info.name)
        if not self._objects.create(_pointer(info.round), _to_json({"version": version.name})):
            return self.begin(info, mode)  # another job has begun this round in the meantime
        return version

    def find_begun(self, info: VersionInfo, mode: Mode) -> Version | None:
        """The round's current version if `begin` would return it, None if `begin` would create one.

        Raises StoreError as `begin` does, and writes nothing.
        """
        current = self._current(info.round)
        if current is None or mode == "overwrite":
            return None
        version = Version(self._objects, current)
        if version.info.digest != info.digest:
            difference = describe_difference(version.info, info)
            raise StoreError(
                f"{self.uri} holds round {info.round} of another configuration ({difference}); "
                "use those flags, another --store, or --overwrite"
            )
        return version

    def _create(self, info: VersionInfo, name: str) -> Version:
        self._objects.create(f"{name}/version.json", _to_json(asdict(info)))
        return Version(self._objects, name)

    def _unfinished_or_new_name(self, info: VersionInfo, current: str) -> str:
        attempt = 0
        while True:
            name = info.name if attempt == 0 else f"{info.name}-{attempt}"
            version = Version(self._objects, name)
            if name != current and not (version.exists() and version.is_finished()):
                return name
            attempt += 1

    def _current(self, round_number: int) -> str | None:
        key = _pointer(round_number)
        try:
            pointer = json.loads(self._objects.read(key))
            return str(pointer["version"])
        except ObjectMissing:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.uri}/{key} is damaged: restore it, or remove it and run the label job again"
            ) from error


class Version:
    """One version of labels: its description, plans and shards. Its pickle is small."""

    def __init__(self, objects: ObjectStore, name: str) -> None:
        self._objects = objects
        self.name = name

    @property
    def info(self) -> VersionInfo:
        """What the version was made from. Raises StoreError if version.json cannot be read."""
        key = self._key("version.json")
        try:
            return VersionInfo(**json.loads(self._objects.read(key)))
        except (ObjectMissing, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._objects.uri}/{key} is missing, damaged or of another version of maskmill: "
                "restore it, or label again with --overwrite"
            ) from error

    def exists(self) -> bool:
        """Whether the version has been begun."""
        return next(self._objects.keys(self._key("version.json")), None) is not None

    def is_finished(self) -> bool:
        """Whether all images are labelled: there is a manifest, and its shards are committed."""
        key = self._key(_MANIFEST)
        try:
            summaries = schema.decode_manifest(self._objects.read(key), key)
        except ObjectMissing:
            return False
        return {summary.shard for summary in summaries} <= self.committed()

    def plans(self) -> Iterator[ShardPlan]:
        """The recorded plans, in the order of their shards."""
        for key in self._objects.keys(self._key("plan/")):
            yield schema.decode_plan(self._objects.read(key), key)

    def record_plan(self, plan: ShardPlan) -> None:
        """Fix which images a shard holds, for this and every later run."""
        self._objects.create(self._key(f"plan/{plan.index:06d}.parquet"), schema.encode_plan(plan))

    def commit(self, shard: int, outcomes: Sequence[Outcome]) -> None:
        """Write a shard atomically. A committed shard is not replaced: it holds the same rows."""
        self._objects.create(self._shard_key(shard), schema.encode_shard(self.name, shard, outcomes))

    def replace_rows(self, shard: int, outcomes: Sequence[Outcome]) -> None:
        """Replace rows of a committed shard by `outcomes` for the same images, atomically.

        The file has the bytes that it would have if these had been its rows from the start. The version is
        unfinished until `finish` is called.
        """
        new = {outcome.record.image_id: outcome for outcome in outcomes}
        rows = [new.get(row.record.image_id, row) for row in self.shard(shard)]
        # In this order, so that no manifest describes rows that are no longer there.
        self._objects.delete(self._key(_MANIFEST))
        self._objects.write(self._shard_key(shard), schema.encode_shard(self.name, shard, rows))

    def rows_with(self, reasons: frozenset[Reason]) -> dict[int, list[ImageRecord]]:
        """Images rejected for one of these reasons, by shard; reads only the shards that hold any."""
        shards = [item.shard for item in self.summaries() if not reasons.isdisjoint(item.reasons)]
        return {shard: [row.record for row in self.shard(shard) if row.reason in reasons] for shard in shards}

    def committed(self) -> frozenset[int]:
        """Numbers of the committed shards."""
        keys = self._objects.keys(self._key("shard-"))
        return frozenset(int(match[1]) for match in map(_SHARD.search, keys) if match)

    def finish(self) -> list[ShardSummary]:
        """Write the manifest and make this the round's current version; returns the shards' summaries."""
        summaries = self._read_summaries()
        self._objects.write(self._key(_MANIFEST), schema.encode_manifest(summaries))
        self._objects.write(_pointer(self.info.round), _to_json({"version": self.name}))
        return summaries

    def summaries(self) -> list[ShardSummary]:
        """Summaries of the committed shards, with one read if the version is finished, else one per shard."""
        key = self._key(_MANIFEST)
        try:
            return schema.decode_manifest(self._objects.read(key), key)
        except ObjectMissing:
            return self._read_summaries()

    def content_digest(self) -> str:
        """Digest of all committed rows, 12 hexadecimal digits.

        It tells apart versions of the same name in different stores, or before and after an extension.
        """
        digests = [summary.digest for summary in self.summaries()]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]

    def summary(self, shard: int) -> ShardSummary:
        """Read the footer of a committed shard. Raises ObjectMissing or StoreError."""
        key = self._shard_key(shard)
        return schema.read_summary(partial(self._objects.read_range, key), self._objects.size(key), key)

    def _read_summaries(self) -> list[ShardSummary]:
        # Concurrently: each takes two round trips to a server, and a large corpus has ten thousand shards.
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self.summary, sorted(self.committed())))

    def shard(self, shard: int) -> list[Outcome]:
        """Read the rows of a committed shard. Raises ObjectMissing, or StoreError if the file is damaged."""
        key = self._shard_key(shard)
        return schema.decode_shard(self._objects.read(key), key)[1]

    def outcomes(self) -> Iterator[Outcome]:
        """Stream all committed rows in the order of the shards, with one shard in memory at a time."""
        for shard in sorted(self.committed()):
            yield from self.shard(shard)

    def columns(self) -> Iterator[ShardColumns]:
        """Stream the committed shards as columns, in order; see engine.store.columns."""
        for shard in sorted(self.committed()):
            key = self._shard_key(shard)
            yield decode_columns(self._objects.read(key), key)

    def instance_columns(self, column: InstanceColumn) -> Iterator[NDArray[np.float32]]:
        """Stream one column of all instances shard by shard, float32 (M,), NaN for null."""
        for shard in sorted(self.committed()):
            key = self._shard_key(shard)
            yield decode_instance_column(self._objects.read(key), column, key)

    def record_evaluation(self, digest: str, evaluation: Mapping[str, Any]) -> None:
        """Store an evaluation (see engine.evaluation.protocol), replacing one of the same digest."""
        self._objects.write(self._key(f"{_EVALUATIONS}{digest}.json"), _to_json(evaluation))

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The recorded evaluations by digest. Raises StoreError if a file is damaged."""
        found = {}
        for key in self._objects.keys(self._key(_EVALUATIONS)):
            try:
                found[PurePosixPath(key).stem] = json.loads(self._objects.read(key))
            except ValueError as error:
                raise StoreError(f"{key} is not JSON ({error}); remove it and evaluate again") from error
        return found

    def record_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Fix the settings that were chosen on the corpus, for this and every later run."""
        self._objects.create(self._key(_CALIBRATION), _to_json(calibration))

    def calibration(self) -> dict[str, Any] | None:
        """The recorded settings, None if there are none yet. Raises StoreError if the file is damaged."""
        key = self._key(_CALIBRATION)
        try:
            recorded: dict[str, Any] = json.loads(self._objects.read(key))
        except ObjectMissing:
            return None
        except ValueError as error:
            raise StoreError(
                f"{self._objects.uri}/{key} is not JSON ({error}): restore it, or label with --overwrite"
            ) from error
        return recorded

    def record_run(self, run: RunRecord) -> None:
        """Store the record of a finished run, after those of earlier runs."""
        number = sum(1 for _ in self._objects.keys(self._key(_RUNS)))
        while not self._objects.create(self._key(f"{_RUNS}{number:06d}.json"), _to_json(asdict(run))):
            number += 1

    def runs(self) -> list[RunRecord]:
        """Records of the finished runs, oldest first."""
        keys = self._objects.keys(self._key(_RUNS))
        return [RunRecord(**json.loads(self._objects.read(key))) for key in keys]

    def find(self, image_id: str) -> Outcome:
        """Read one image's row, from the shards whose range of ids contains it. Raises ObjectMissing."""
        for summary in self.summaries():
            if summary.first_image_id <= image_id <= summary.last_image_id:
                for outcome in self.shard(summary.shard):
                    if outcome.record.image_id == image_id:
                        return outcome
        raise ObjectMissing(f"version {self.name} has no image {image_id!r}")

    def _key(self, name: str) -> str:
        return f"{self.name}/{name}"

    def _shard_key(self, shard: int) -> str:
        return self._key(f"shard-{shard:06d}.parquet")


def _pointer(round_number: int) -> str:
    return f"round-{round_number:03d}.json"


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
