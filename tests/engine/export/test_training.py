"""An export trains a detector that knows nothing of us."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.transforms import v2

from engine.export import ExportConfig, export_version
from engine.export.split import SplitConfig
from engine.store.objects import open_objects


def test_mask_r_cnn_learns_from_a_coco_export(make_labelled: Callable[..., Any], tmp_path: Path) -> None:
    labelled = make_labelled(6)
    config = ExportConfig(format="coco", split=SplitConfig(val_fraction=0))
    export_version(labelled.version, config, open_objects(str(tmp_path / "out")), corpus=labelled.corpus)

    dataset = CocoDetection(
        str(tmp_path / "out/images"),
        str(tmp_path / "out/annotations/instances_train.json"),
        transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    )
    dataset = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))
    samples = [(image, target) for image, target in dataset if "boxes" in target]
    assert len(samples) == 6
    assert all(np.array(target["masks"]).any() for _, target in samples)

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    model = MaskRCNN(backbone, num_classes=2, min_size=64, max_size=128, box_detections_per_img=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = sum(model([image for image, _ in samples], [target for _, target in samples]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
