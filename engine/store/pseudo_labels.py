"""The pseudo-label store: versions of labels, made shard by shard, where presence is the commit.

    round-000.json                        which version is round 0's
    round-000-1f0c2a9b44de/               one version: a round and the digest of its configuration
        version.json                        configuration, parent, weights, code version, device
        plan/000123.parquet                 which images shard 123 holds; written before they are labelled
        shard-000123.parquet                their rows; its presence says that they are done
        manifest.parquet                    a row per shard; written when all are done
        evaluation/77aa01c93e5d.json        figures against a ground truth, named by the digest of the
                                            protocol and of what was drawn, so that rounds can be compared
        runs/000002.json                    how fast a run that came to its end was
    tar-index/                            where images lie in tars, see engine.corpora.tar_index

No file but those of runs/ holds a time, and none a host: equal work gives equal bytes there.
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
from engine.types import Outcome, ShardPlan

Mode = Literal["resume", "extend", "overwrite"]
_SHARD = re.compile(r"shard-(\d{6,})\.parquet$")
_MANIFEST = "manifest.parquet"
_EVALUATIONS = "evaluation/"
_RUNS = "runs/"
# Footers that are read at one time.
_READERS = 16


class PseudoLabelStore:
    """All versions below one place."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    @property
    def uri(self) -> str:
        return self._objects.uri

    def rounds(self) -> list[int]:
        """The rounds that have a version, rising."""
        keys = (re.fullmatch(r"round-(\d{3})\.json", key) for key in self._objects.keys("round-"))
        return [int(match[1]) for match in keys if match]

    def version(self, round_number: int | None = None) -> Version:
        """The version of a round (None: the latest). Raises StoreError where the store has none."""
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
        """The version to work on: the round's own where it matches `info`, a new one where there is none.

        `overwrite` begins a new version beside the round's own (or goes on with one that was begun and not
        finished); `Version.finish` makes it the round's own. Raises StoreError where the round has labels of
        another configuration and may not be overwritten.
        """
        version = self.find_begun(info, mode)
        if version is not None:
            return version
        current = self._current(info.round)
        if current is not None:
            return self._create(info, self._unfinished_or_new_name(info, current))
        version = self._create(info, info.name)
        if not self._objects.create(_pointer(info.round), _to_json({"version": version.name})):
            return self.begin(info, mode)  # somebody else has begun this round meanwhile
        return version

    def find_begun(self, info: VersionInfo, mode: Mode) -> Version | None:
        """The round's own version where `begin` would go on with it; None where it would begin a new one.

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
    """One version: its description, its plan, its shards. Pickles small."""

    def __init__(self, objects: ObjectStore, name: str) -> None:
        self._objects = objects
        self.name = name

    @property
    def info(self) -> VersionInfo:
        """What it was made from. Raises StoreError where its description cannot be read."""
        key = self._key("version.json")
        try:
            return VersionInfo(**json.loads(self._objects.read(key)))
        except (ObjectMissing, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._objects.uri}/{key} is missing, damaged or of another version of maskmill: "
                "restore it, or label anew with --overwrite"
            ) from error

    def exists(self) -> bool:
        return next(self._objects.keys(self._key("version.json")), None) is not None

    def is_finished(self) -> bool:
        """Whether every image of the plan is done: the manifest says so, and its shards are there."""
        key = self._key(_MANIFEST)
        try:
            summaries = schema.decode_manifest(self._objects.read(key), key)
        except ObjectMissing:
            return False
        return {summary.shard for summary in summaries} <= self.committed()

    def plans(self) -> Iterator[ShardPlan]:
        """The recorded plan, shard by shard."""
        for key in self._objects.keys(self._key("plan/")):
            yield schema.decode_plan(self._objects.read(key), key)

    def record_plan(self, plan: ShardPlan) -> None:
        """Fix which images a shard holds, for this and every later run."""
        self._objects.create(self._key(f"plan/{plan.index:06d}.parquet"), schema.encode_plan(plan))

    def commit(self, shard: int, outcomes: Sequence[Outcome]) -> None:
        """Write a shard in one step. A shard that is there already stays: it holds the same rows."""
        self._objects.create(self._shard_key(shard), schema.encode_shard(self.name, shard, outcomes))

    def committed(self) -> frozenset[int]:
        """The numbers of the shards that are there."""
        keys = self._objects.keys(self._key("shard-"))
        return frozenset(int(match[1]) for match in map(_SHARD.search, keys) if match)

    def finish(self) -> list[ShardSummary]:
        """Write the manifest and make this the round's version; returns the summaries."""
        summaries = self._read_summaries()
        self._objects.write(self._key(_MANIFEST), schema.encode_manifest(summaries))
        self._objects.write(_pointer(self.info.round), _to_json({"version": self.name}))
        return summaries

    def summaries(self) -> list[ShardSummary]:
        """What the committed shards hold: one read for a finished version, one a shard otherwise."""
        key = self._key(_MANIFEST)
        try:
            return schema.decode_manifest(self._objects.read(key), key)
        except ObjectMissing:
            return self._read_summaries()

    def content_digest(self) -> str:
        """Digest of all committed rows, 12 hexadecimal digits: by it versions of one name differ in different
        stores, and before and after an extension."""
        digests = [summary.digest for summary in self.summaries()]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]

    def summary(self, shard: int) -> ShardSummary:
        """A committed shard's footer. Raises ObjectMissing, StoreError."""
        key = self._shard_key(shard)
        return schema.read_summary(partial(self._objects.read_range, key), self._objects.size(key), key)

    def _read_summaries(self) -> list[ShardSummary]:
        # Each waits for two answers of a server, and a large corpus has ten thousand shards.
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self.summary, sorted(self.committed())))

    def shard(self, shard: int) -> list[Outcome]:
        """A committed shard's rows. Raises ObjectMissing; StoreError where the file is damaged."""
        key = self._shard_key(shard)
        return schema.decode_shard(self._objects.read(key), key)[1]

    def outcomes(self) -> Iterator[Outcome]:
        """All committed rows as a stream, in the order of the corpus; one shard is in memory at a time."""
        for shard in sorted(self.committed()):
            yield from self.shard(shard)

    def columns(self) -> Iterator[ShardColumns]:
        """All committed shards as columns, in the order of the corpus; see engine.store.columns."""
        for shard in sorted(self.committed()):
            key = self._shard_key(shard)
            yield decode_columns(self._objects.read(key), key)

    def instance_columns(self, column: InstanceColumn) -> Iterator[NDArray[np.float32]]:
        """One column of all instances, float32, shard by shard; NaN where it holds nothing."""
        for shard in sorted(self.committed()):
            key = self._shard_key(shard)
            yield decode_instance_column(self._objects.read(key), column, key)

    def record_evaluation(self, digest: str, evaluation: Mapping[str, Any]) -> None:
        """Store an evaluation (see engine.evaluation.protocol), replacing one of the same digest."""
        self._objects.write(self._key(f"{_EVALUATIONS}{digest}.json"), _to_json(evaluation))

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What was recorded, by digest. Raises StoreError where a file is damaged."""
        found = {}
        for key in self._objects.keys(self._key(_EVALUATIONS)):
            try:
                found[PurePosixPath(key).stem] = json.loads(self._objects.read(key))
            except ValueError as error:
                raise StoreError(f"{key} is not json ({error}); remove it and evaluate again") from error
        return found

    def record_run(self, run: RunRecord) -> None:
        """Keep how a run went, beside the runs before it."""
        number = sum(1 for _ in self._objects.keys(self._key(_RUNS)))
        while not self._objects.create(self._key(f"{_RUNS}{number:06d}.json"), _to_json(asdict(run))):
            number += 1

    def runs(self) -> list[RunRecord]:
        """How the runs went that came to their end, the first first."""
        keys = self._objects.keys(self._key(_RUNS))
        return [RunRecord(**json.loads(self._objects.read(key))) for key in keys]

    def find(self, image_id: str) -> Outcome:
        """One image's row. Reads the shards whose id range holds it. Raises ObjectMissing."""
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
