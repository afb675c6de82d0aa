from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ConfigurationError
from engine.solo.config import SoloConfig
from engine.training.settings import RunSettings
from jobs.studies.compare_mask_losses import CompareArguments, coarsen, main


@pytest.fixture
def arguments(tmp_path, photograph):
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(4):
        image = photograph(number)
        is_object = image.mean(axis=2) > (float(image.min()) + float(image.max())) / 2
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{number}.jpg")
        Image.fromarray(is_object.astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{number}.png")
    solo = SoloConfig(
        backbone="test_resnet",
        image_size=64,
        pyramid_channels=8,
        head_channels=8,
        mask_channels=8,
        head_depth=1,
    )
    training = CompareArguments(data=tmp_path, output=tmp_path).training
    return CompareArguments(
        data=tmp_path / "data",
        output=tmp_path / "output",
        seeds=(0,),
        num_train=2,
        training=replace(training, steps=2, batch_size=2, solo=solo),
        run=RunSettings(processes=0, checkpoint_every=2),
    )


def test_losses_are_compared_once(arguments, capsys):
    main(arguments)
    first = capsys.readouterr().out
    assert "step 2: mask_AP" in first
    table = first.partition("| loss |")[2]
    assert "| superpixel | 0.0 (0.0 to 0.0) |" in table
    assert "| pixel | 0.0 (0.0 to 0.0) |" in table
    kept = {path: path.stat().st_mtime_ns for path in arguments.output.glob("*/network.safetensors")}
    assert len(kept) == 2
    main(arguments)
    second = capsys.readouterr().out
    assert "step" not in second
    assert second.partition("| loss |")[2] == table
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(ConfigurationError, match="it differs in labels"):
        main(replace(arguments, block_px=8))
    # Other photographs in the place of these, without objects.
    for path in (arguments.data / "masks").glob("*.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    with pytest.raises(ConfigurationError, match="it differs in labels"):
        main(arguments)


def test_coarse_masks_are_blocks_that_grow_or_shrink():
    mask = np.zeros((30, 50), bool)
    mask[8:24, 10:40] = True
    places = {"data": Path("data"), "output": Path("output")}
    arguments = CompareArguments(**places, block_px=4, max_shift_px=6)
    coarse = [coarsen(mask, arguments, np.random.default_rng(seed)) for seed in range(20)]
    assert len({one.sum() for one in coarse}) > 3
    assert min(one.sum() for one in coarse) < mask.sum() < max(one.sum() for one in coarse)
    for one in coarse:
        assert (one[:28, :48].reshape(7, 4, 12, 4) == one[:28:4, :48:4][:, None, :, None]).all()
    grown = CompareArguments(**places, block_px=1, max_shift_px=0, growth_px=3)
    larger = coarsen(mask, grown, np.random.default_rng(0))
    assert larger[8:24].any(axis=0).nonzero()[0].tolist() == list(range(7, 43))
    smaller = coarsen(mask, replace(grown, growth_px=-3), np.random.default_rng(0))
    assert smaller.any(axis=0).nonzero()[0].tolist() == list(range(13, 37))
