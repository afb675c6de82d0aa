"""Common part of the label jobs: flags, the run on the cluster, and the summary printed at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.bounds import Bounded, Count, Share
from engine.corpora import Corpus
from engine.errors import ConfigurationError, ImageError, TransientError
from engine.images.decoding import DecodingConfig, decode_image
from engine.labelling.config import LabellingConfig
from engine.labelling.description import describe_first_round, describe_network
from engine.objects.object_store import ObjectStore, open_objects
from engine.store.planning import check_has_images, check_same_corpus, count_remaining
from engine.store.pseudo_labels import Mode, PseudoLabelStore, Version
from engine.store.schema import ShardSummary
from engine.types import REJECTION_REASONS, Reason, Status
from jobs.cli.flags import ClusterFlags
from jobs.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from engine.labelling.calibration import Calibration
    from jobs.cli.cluster import ClusterResources

_MAX_LISTED_REJECTS = 20
_PREVIEW_IMAGES = 24
_PREVIEW_COLUMNS = 4
_PREVIEW_TILE_HEIGHT = 240


@dataclass(frozen=True, kw_only=True)
class LabelArguments(Bounded):
    """Label a corpus: images in, a store of instance masks out. Run it again to resume after a stop.

    Exit codes: 0 done (images that could not be read are rows with a reason), 1 failed, 2 wrong use.
    """

    corpus: str
    """The images: a folder, s3://bucket/prefix, or skimage: for a few photographs to try it on."""
    store: str
    """The store to write: a folder or s3://bucket/prefix."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)
    limit: Count | None = None
    """Label only the first N images."""
    shard_size: Count = 1000
    """Images in a shard. A run that is stopped loses at most the shards it is working on."""
    chunk_size: Count = 8
    """Images that are sent to a worker together."""
    extend: bool = False
    """Add shards for images that were added to the corpus since it was labelled."""
    overwrite: bool = False
    """Replace labels that the store holds from another configuration, once the new ones are complete."""
    preview: str | None = None
    """Also write pictures of the first labelled images to this folder or s3://bucket/prefix."""
    max_rejected: Share = 0.5
    """Stop if more than this share of the images, 100 of them or more, cannot be read or labelled."""
    retry: str | None = None
    """Label again the images that were rejected for these reasons, such as missing,unreadable; then go on."""
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extend and self.overwrite:
            raise ConfigurationError(
                "--extend adds to labels and --overwrite replaces them: give one of the two"
            )
        unknown = {*self.retry_reasons} - {*REJECTION_REASONS}
        if unknown:
            raise ConfigurationError(
                f"--retry takes reasons of rejected images, separated by commas, not {min(unknown)!r}: "
                f"{', '.join(REJECTION_REASONS)}"
            )
        if self.preview is not None and Path(self.preview).is_file():
            raise ConfigurationError(f"--preview {self.preview} is a file: give a folder")

    @property
    def retry_reasons(self) -> tuple[str, ...]:
        return tuple(self.retry.split(",")) if self.retry is not None else ()

    @property
    def mode(self) -> Mode:
        """What to do with labels that the store holds already."""
        return "overwrite" if self.overwrite else "extend" if self.extend else "resume"


def run_label_job(corpus: Corpus, arguments: LabelArguments) -> None:
    """Label `corpus` into the store. Raises UsageError if it cannot start, RunError if it fails."""
    # Ray takes seconds to import: --help and wrong flags answer without it.
    from jobs.cli.cluster import connect

    store = PseudoLabelStore(open_objects(arguments.store))
    previews = open_objects(arguments.preview) if arguments.preview is not None else None
    check_has_images(corpus)
    network = describe_network(arguments.labelling)
    info = describe_first_round(
        arguments.labelling,
        network,
        corpus.kind,
        shard_size=arguments.shard_size,
        chunk_size=arguments.chunk_size,
        limit=arguments.limit,
    )
    console = Console()
    # Neither a refusal nor a run that is complete already needs Ray.
    version = store.find_begun(info, arguments.mode)
    if version is not None and version.is_finished() and not (arguments.extend or arguments.retry):
        check_same_corpus(corpus, version)
        print(f"nothing to do: {store.uri} holds these labels already (--extend adds new images)")
        summaries = version.summaries()
    else:
        cluster = connect(arguments.cluster)
        version = store.begin(replace(info, device=cluster.device), arguments.mode)
        check_same_corpus(corpus, version)
        summaries = _label(corpus, version, network.image_size, cluster, arguments, console)
    console.print(_summary_table(summaries))
    for line in _rejected_lines(version, summaries):
        print(line)
    for line in _note_lines(version):
        print(line)
    print(f"labels: {store.uri} (version {version.name})")
    if previews is not None:
        _write_previews(corpus, version, previews, arguments.labelling.decoding)


def _calibrate(
    corpus: Corpus, version: Version, config: LabellingConfig, cluster: ClusterResources
) -> Calibration | None:
    """The calibration recorded in the version, made now if there is none; None for a trained network."""
    if config.uses_network:
        return None
    from actors.calibration import run_calibration
    from engine.labelling.calibration import Calibration

    if version.calibration() is None:
        calibration = run_calibration(corpus, config, cluster.device, cluster.cpus, cluster.gpus)
        version.record_calibration(calibration.to_json())
    # Of two jobs that begin a version together, the first to record decides for both.
    recorded = Calibration.from_json(version.calibration() or {})
    print(f"encoder {config.encoder.name}: {recorded.describe()}", flush=True)
    return recorded


def _label(
    corpus: Corpus,
    version: Version,
    image_size: tuple[int, int],
    cluster: ClusterResources,
    arguments: LabelArguments,
    console: Console,
) -> list[ShardSummary]:
    """Label the remaining images on the cluster, with a progress display."""
    from actors.pipeline import LabellingRun, run_labelling
    from actors.pool import size_pool
    from actors.storage import Work

    calibration = _calibrate(corpus, version, arguments.labelling, cluster)
    work = Work(
        corpus=corpus,
        version=version,
        shard_size=arguments.shard_size,
        chunk_size=arguments.chunk_size,
        limit=arguments.limit,
        extend=arguments.extend,
        retry=frozenset(map(Reason, arguments.retry_reasons)),
    )
    run = LabellingRun(
        work=work,
        config=arguments.labelling if calibration is None else calibration.apply(arguments.labelling),
        image_size=image_size,
        device=cluster.device,
        statistics=None if calibration is None else calibration.statistics,
        max_rejected=arguments.max_rejected,
    )
    size = size_pool(cluster.cpus, cluster.gpus)

    def count() -> int:
        again = version.rows_with(work.retry) if work.retry else {}
        rest = count_remaining(corpus, version, limit=arguments.limit, extend=arguments.extend)
        return rest + sum(map(len, again.values()))

    with ProgressDisplay(count, console=console) as display:
        return run_labelling(run, size, display.show_labelling)


def _summary_table(summaries: list[ShardSummary]) -> Table:
    """Counts of images and masks in a version."""
    images = sum(summary.images for summary in summaries)
    instances = sum(summary.instances for summary in summaries)
    reasons: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(summary.reasons)
    table = Table("images", "count")
    table.columns[1].justify = "right"
    table.add_row("labelled", str(sum(summary.labelled for summary in summaries)))
    table.add_row("no object", str(sum(summary.no_object for summary in summaries)))
    table.add_row("rejected", str(sum(summary.rejected for summary in summaries)), end_section=not reasons)
    for i, (reason, count) in enumerate(sorted(reasons.items())):
        table.add_row(f"  {reason}", str(count), end_section=i == len(reasons) - 1)
    table.add_row("total", str(images))
    table.add_row("masks", str(instances))
    table.add_row("masks per image", f"{instances / max(images, 1):.2f}")
    return table


def _rejected_lines(version: Version, summaries: list[ShardSummary]) -> list[str]:
    """A line for each of the first rejected images; only shards with rejected images are read."""
    shards = (summary.shard for summary in summaries if summary.rejected)
    rejected = (
        outcome for shard in shards for outcome in version.shard(shard) if outcome.status == Status.REJECTED
    )
    lines = [
        f"rejected {o.record.image_id!r}: {o.reason}: {o.detail}"
        for o in islice(rejected, _MAX_LISTED_REJECTS)
    ]
    num_more = sum(summary.rejected for summary in summaries) - len(lines)
    return [*lines, f"... and {num_more} more, see the column reason of the store"] if num_more > 0 else lines


def _note_lines(version: Version) -> list[str]:
    """What the statistics of a version say about its labels, for people."""
    from engine.report.notes import find_notes, note_lines
    from engine.report.statistics import read_statistics

    return note_lines(find_notes(read_statistics(version)))


def _write_previews(corpus: Corpus, version: Version, previews: ObjectStore, config: DecodingConfig) -> None:
    """Draw the first labelled images, one picture each, and all of them on one sheet."""
    from engine.report.drawing import contact_sheet, draw_instances, encode_jpeg, select_shown

    labelled = (outcome for outcome in version.outcomes() if outcome.status == Status.LABELLED)
    pictures = []
    for number, outcome in enumerate(islice(labelled, _PREVIEW_IMAGES)):
        try:
            image = decode_image(corpus.read(outcome.record), config)
        except (ImageError, TransientError) as error:
            print(f"no preview of {outcome.record.image_id!r}: {error}")
            continue
        shown = select_shown(outcome.instances) if outcome.instances is not None else None
        pictures.append(draw_instances(image, shown))
        # File systems limit names to 255 bytes.
        name = PurePosixPath(outcome.record.path).stem[:60]
        previews.write(f"{number:03d}-{name}.jpg", encode_jpeg(pictures[-1]))
    if pictures:
        sheet = contact_sheet(pictures, _PREVIEW_COLUMNS, _PREVIEW_TILE_HEIGHT)
        previews.write("sheet.jpg", encode_jpeg(sheet))
    print(f"previews: {previews.uri} ({len(pictures)} images and sheet.jpg; at most 10 masks of an image)")
