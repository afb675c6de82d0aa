"""maskmill: label images without humans, from Python or with the command `maskmill`.

    label           instances of images in memory or in files
    masks_of        the masks of an image's instances
    draw            a picture of an image and its instances
    read_labels     the rows of a label store, image by image
    LabelDataset    a label store and its images as a torch dataset
    open_labels     the version of labels and the corpus that LabelDataset takes
    export          write a label store as a training set

Configurations and results are those of `engine`: LabellingConfig, EncoderConfig, SelectionConfig, Instances,
Outcome. Labelling a corpus on all cores or on a cluster is the work of the command `maskmill label`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.corpora import Corpus
    from engine.encoders import EncoderConfig
    from engine.export.batch import ExportReport
    from engine.export.dataset import LabelDataset
    from engine.export.export import Format
    from engine.labelling.config import LabellingConfig
    from engine.masks.instances import Instances
    from engine.store.pseudo_labels import Version
    from engine.store.selection import SelectionConfig
    from engine.types import Outcome

__all__ = [
    "EncoderConfig",
    "Instances",
    "LabelDataset",
    "LabellingConfig",
    "Outcome",
    "SelectionConfig",
    "draw",
    "export",
    "label",
    "masks_of",
    "open_labels",
    "read_labels",
]

# Loaded on first use: torch and timm take seconds to import, and the command's help needs neither.
_HOMES = {
    "EncoderConfig": "engine.encoders",
    "Instances": "engine.masks.instances",
    "LabelDataset": "engine.export.dataset",
    "LabellingConfig": "engine.labelling.config",
    "Outcome": "engine.types",
    "SelectionConfig": "engine.store.selection",
}
_ROOT = Path(__file__).resolve().parent


def _find_own_packages() -> None:
    """Make `engine`, `actors` and `jobs` the packages beside this file.

    A working folder or PYTHONPATH with packages of these names comes before the installed ones. Raises
    ImportError if another package of such a name is already loaded.
    """
    for name in ("engine", "actors", "jobs"):
        spec = find_spec(name)
        if spec is not None and spec.origin and Path(spec.origin).resolve() == _ROOT / name / "__init__.py":
            continue
        if name in sys.modules:
            raise ImportError(
                f"maskmill has a package {name!r}, and {spec.origin if spec else 'another one'} of the same "
                "name is loaded: import maskmill first, or in another process"
            )
        sys.path.insert(0, str(_ROOT))


_find_own_packages()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("engine").__version__
    if name not in _HOMES:
        raise AttributeError(f"module 'maskmill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def label(
    images: Sequence[NDArray[np.uint8] | str | Path],
    config: LabellingConfig | None = None,
    *,
    device: str = "cpu",
) -> list[Instances]:
    """The instances of each image, best first: images are uint8 RGB (H, W, 3), or paths of image files.

    In this process, without Ray. The encoder stays in memory for the next call with the same configuration; a
    single image is encoded alone, not in a batch of eight. Raises ImageError for a file that is no image and
    UsageError for a configuration that cannot be used.

    >>> import numpy as np
    >>> from maskmill import EncoderConfig, LabellingConfig
    >>> image = np.full((60, 90, 3), 40, np.uint8)
    >>> image[15:45, 20:50] = (220, 60, 30)
    >>> (instances,) = label([image], LabellingConfig(encoder=EncoderConfig(name="descriptor")))
    >>> instances.size, len(instances) > 0, instances.boxes_xyxy.shape[1]
    ((60, 90), True, 4)
    """
    from engine.labelling.config import LabellingConfig
    from engine.labelling.in_memory import label_arrays

    return label_arrays([_as_array(image) for image in images], config or LabellingConfig(), device)


def masks_of(instances: Instances) -> NDArray[np.bool_]:
    """The masks bool (N, H, W) of an image's N instances, in their order.

    >>> from maskmill import Instances
    >>> masks_of(Instances(size=(2, 3), method="tree")).shape
    (0, 2, 3)
    """
    from engine.masks.rle import decode_rles

    return decode_rles(instances.rles, instances.size)


def draw(
    image: NDArray[np.uint8] | str | Path, instances: Instances, *, every: bool = False
) -> NDArray[np.uint8]:
    """A picture, uint8 RGB (H, W, 3), of an image and the best of its instances.

    At most 10 instances that hardly overlap are drawn, or with `every` all of them.

    >>> import numpy as np
    >>> from maskmill import Instances
    >>> draw(np.zeros((2, 3, 3), np.uint8), Instances(size=(2, 3), method="tree")).shape
    (2, 3, 3)
    """
    from engine.report.drawing import draw_instances, select_shown

    return draw_instances(_as_array(image), instances if every else select_shown(instances))


def read_labels(
    store: str, *, round: int | None = None, selection: SelectionConfig | None = None
) -> Iterator[Outcome]:
    """The rows of a label store, one for each image, with one shard in memory at a time.

    `store` is a folder or s3://bucket/prefix; `round` None is the latest. A row has the image's record, its
    status, its reason if nothing was found, and its selected instances. Raises StoreError.
    """
    from engine.store.selection import SelectionConfig, select_outcomes

    return select_outcomes(_version(store, round), selection or SelectionConfig())


def open_labels(store: str, corpus: str, *, round: int | None = None) -> tuple[Version, Corpus]:
    """The version of labels in a store, and the corpus that it labels, at its place now.

    `LabelDataset(*open_labels("photos-labels", "photos"))` is a torch dataset.
    Raises StoreError, CorpusError.
    """
    from engine.corpora import open_corpus
    from engine.objects.object_store import open_objects

    version = _version(store, round)
    return version, open_corpus(corpus, version.info.corpus_kind, kept_indexes=open_objects(store))


def export(
    store: str,
    output: str,
    format: Format,
    *,
    corpus: str | None = None,
    round: int | None = None,
    selection: SelectionConfig | None = None,
) -> ExportReport | None:
    """Write a label store as a training set: coco, yolo, webdataset or parquet.

    With `corpus`, images are copied; yolo and webdataset need it. Returns the counts of what was written, or
    None if `output` holds this export already. Raises UsageError.
    """
    from engine.export.export import ExportConfig, export_version
    from engine.objects.object_store import open_objects
    from engine.store.selection import SelectionConfig

    config = ExportConfig(format=format, selection=selection or SelectionConfig())
    images = None if corpus is None else open_labels(store, corpus, round=round)[1]
    return export_version(_version(store, round), config, open_objects(output), corpus=images)


def _version(store: str, round_number: int | None) -> Version:
    from engine.objects.object_store import open_objects
    from engine.store.pseudo_labels import PseudoLabelStore

    return PseudoLabelStore(open_objects(store)).version(round_number)


def _as_array(image: NDArray[np.uint8] | str | Path) -> NDArray[np.uint8]:
    """The image itself, or the decoded file of a path. Raises ImageError."""
    if not isinstance(image, str | Path):
        return image
    from engine.images.decoding import DecodingConfig, decode_image
    from engine.objects.object_store import read_uri

    return decode_image(read_uri(str(image)), DecodingConfig())


def run_command() -> None:
    """Run the command `maskmill` with the arguments of this process, and exit."""
    from jobs.cli.command import run

    run(sys.argv[1:])


if __name__ == "__main__":
    run_command()
