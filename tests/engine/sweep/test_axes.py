from dataclasses import dataclass

import pytest

from engine.errors import ConfigurationError
from engine.labelling.config import LabellingConfig
from engine.sweep.axes import GridAxis, grid_points, parse_axis, with_settings


@dataclass(frozen=True)
class Options:
    limit: int | None = None
    is_fast: bool = False
    sizes: tuple[int, ...] = ()


def axis(text: str) -> tuple[object, ...]:
    return parse_axis(text, LabellingConfig).values


def test_values_have_the_type_of_the_field() -> None:
    assert axis("promerge.tau-b=0.1, 0.2,1") == (0.1, 0.2, 1.0)
    assert all(isinstance(value, float) for value in axis("promerge.tau_b=1"))
    assert axis("promerge.stride=4,6") == (4, 6)
    assert axis("promerge.filter=ioa,cascade") == ("ioa", "cascade")
    assert axis("encoder.name=descriptor,vit_base_patch8_224.dino") == (
        "descriptor",
        "vit_base_patch8_224.dino",
    )
    assert parse_axis("limit=none,3", Options).values == (None, 3)
    assert parse_axis("is-fast=true,False", Options).values == (True, False)
    assert parse_axis("promerge.tau-b=0.1", LabellingConfig).name == "promerge.tau_b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promerge.tau-b", "write FIELD=VALUE"),
        ("promerge.tau-b=", "write FIELD=VALUE"),
        ("promerge.tau=0.1", "no field 'promerge.tau' to sweep over: promerge has stride, tau_b"),
        ("tau-b=0.1", "the configuration has method, refine"),
        ("refine.x=1", "refine has no fields"),
        ("promerge=1", "sweep over one of them: promerge.stride"),
        ("promerge.stride=4.5", "promerge.stride is of type int, got '4.5'"),
        ("promerge.filter=all", "one of cascade, ioa, feature, got 'all'"),
    ],
)
def test_invalid_axes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_axis(text, LabellingConfig)


def test_fields_of_other_types_are_refused() -> None:
    for text in ("sizes=1", "is_fast=yes"):
        with pytest.raises(ConfigurationError, match="cannot take"):
            parse_axis(text, Options)


def test_points_are_all_combinations_of_values() -> None:
    axes = [GridAxis(name="a", values=(1, 2)), GridAxis(name="b", values=(None, "x"))]
    assert grid_points(axes) == [
        {"a": 1, "b": None},
        {"a": 1, "b": "x"},
        {"a": 2, "b": None},
        {"a": 2, "b": "x"},
    ]
    assert grid_points([]) == [{}]
    with pytest.raises(ConfigurationError, match="two axes"):
        grid_points([axes[0], axes[0]])


def test_settings_change_the_named_fields_only() -> None:
    config = LabellingConfig()
    settings = {"promerge.stride": 6, "promerge.tau_b": 0.1, "refine": "none", "encoder.image_size": 240}
    changed = with_settings(config, settings)
    assert (changed.promerge.stride, changed.promerge.tau_b, changed.refine) == (6, 0.1, "none")
    assert changed.encoder.image_size == 240
    assert with_settings(changed, {"promerge.stride": 4, "promerge.tau_b": 0.2, "refine": "auto",
                                   "encoder.image_size": 480}) == config  # fmt: skip
    with pytest.raises(ConfigurationError, match="tau_b"):
        with_settings(config, {"promerge.tau_b": 3.0})


def test_settings_that_depend_on_each_other_are_changed_together() -> None:
    settings = {"encoder.precision": "bfloat16", "encoder.name": "vit_tiny_patch16_224"}
    assert with_settings(LabellingConfig(), settings).encoder.precision == "bfloat16"
