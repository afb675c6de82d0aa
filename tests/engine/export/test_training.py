"""An independent detector trains on an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms import v2

from engine.export.export import ExportConfig, export_version
from engine.export.split import SplitConfig
from engine.objects.object_store import open_objects


def test_mask_r_cnn_learns_from_a_coco_export(make_labelled: Callable[..., Any], tmp_path: Path) -> None:
    labelled = make_labelled(3)
    config = ExportConfig(format="coco", split=SplitConfig(val_fraction=0))
    export_version(labelled.version, config, open_objects(str(tmp_path / "out")), corpus=labelled.corpus)

    dataset = CocoDetection(
        str(tmp_path / "out/images"),
        str(tmp_path / "out/annotations/instances_train.json"),
        transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    )
    dataset = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))
    samples = [(image, target) for image, target in dataset if "boxes" in target]
    assert len(samples) == 3
    assert all(np.array(target["masks"]).any() for _, target in samples)

    torch.manual_seed(0)
    model = small_mask_r_cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = sum(model([image for image, _ in samples], [target for _, target in samples]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])


def small_mask_r_cnn() -> MaskRCNN:
    """torchvision's Mask R-CNN with a two-layer backbone and few proposals."""
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, stride=2, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
    )
    backbone.out_channels = 32
    return MaskRCNN(
        backbone,
        num_classes=2,
        min_size=48,
        max_size=80,
        rpn_anchor_generator=AnchorGenerator(sizes=((8, 16, 32),), aspect_ratios=((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        mask_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        rpn_pre_nms_top_n_train=64,
        rpn_post_nms_top_n_train=32,
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=16,
    )
