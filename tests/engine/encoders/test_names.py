import pytest
import timm

from engine.encoders import EncoderConfig
from engine.encoders.names import SHORT_NAMES, suggest_names

PUBLISHED = timm.list_models(pretrained=True)


@pytest.mark.parametrize("short", ["dino", "dinov2", "dinov3"])
def test_short_names_stand_for_published_models(short):
    assert EncoderConfig(name=short).name == SHORT_NAMES[short]
    assert SHORT_NAMES[short] in PUBLISHED
    assert EncoderConfig(name=short) == EncoderConfig(name=SHORT_NAMES[short])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"),
        ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dinov2-base", "vit_base_patch14_dinov2.lvd142m"),
        ("facebook/dinov2-with-registers-small", "vit_small_patch14_reg4_dinov2.lvd142m"),
        ("dino_vitb8", "vit_base_patch8_224.dino"),
        ("facebook/dino-vits16", "vit_small_patch16_224.dino"),
        ("dinov3_vitb16", "vit_base_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", "vit_large_patch16_dinov3.lvd1689m"),
        ("DINOv2 ViT-B/14", "vit_base_patch14_dinov2.lvd142m"),
        ("vit_base_patch8_dino", "vit_base_patch8_224.dino"),
        ("vit_bas_patch16_224.mae", "vit_base_patch16_224.mae"),
    ],
)
def test_names_of_other_libraries_are_understood(name, meant):
    assert suggest_names(name, PUBLISHED)[0] == meant


def test_nothing_is_suggested_for_nothing_similar():
    assert suggest_names("0123456789", PUBLISHED) == []
    assert suggest_names("dinov2", []) == []
