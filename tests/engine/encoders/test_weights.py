import argparse
import os
import pickle
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from engine.encoders.weights import backbone_state, check_fit, digest_state, read_weights
from engine.errors import WeightsError

STATE = {"cls_token": torch.arange(4.0), "blocks.0.norm1.weight": torch.ones(2, 3)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def one_line(caught):
    return "\n" not in str(caught.value)


def test_safetensors_and_torch_files_hold_the_same(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    torch.save(OrderedDict(STATE), tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth", "old.pt"):
        assert same(read_weights(str(tmp_path / name)).state, STATE)


def test_full_checkpoint_with_namespace_gives_its_teacher(tmp_path):
    def network(offset, prefix):
        backbone = {f"{prefix}backbone.{name}": tensor + offset for name, tensor in STATE.items()}
        return {
            **backbone,
            f"{prefix}head.mlp.0.weight": torch.ones(5),
            f"{prefix}head.last_layer.weight_v": torch.ones(5),
        }

    checkpoint = {
        "student": network(1, "module."),
        "teacher": network(0, ""),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "full.pth")
    assert same(read_weights(str(tmp_path / "full.pth")).state, STATE)
    del checkpoint["teacher"]
    torch.save(checkpoint, tmp_path / "student.pth")
    student = read_weights(str(tmp_path / "student.pth")).state
    assert torch.equal(student["cls_token"], STATE["cls_token"] + 1)


class Malicious:
    """What a hostile pickle does: calls a function of its choice when it is loaded."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "evil.pth"
    content = {"teacher": STATE, "args": Malicious(tmp_path / "made")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"more than tensors.*mkdir") as caught:
        read_weights(str(path))
    assert one_line(caught)
    assert not (tmp_path / "made").exists()


def test_namespace_is_allowed_nowhere_else(tmp_path):
    torch.save({"args": argparse.Namespace(a=1), **STATE}, tmp_path / "a.pth")
    read_weights(str(tmp_path / "a.pth"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 100, -8])
def test_truncated_file_is_one_line(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="no whole") as caught:
        read_weights(str(path))
    assert one_line(caught)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_something_else_is_one_line(tmp_path, suffix):
    path = tmp_path / f"page{suffix}"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(WeightsError, match="no whole") as caught:
        read_weights(str(path))
    assert one_line(caught)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.ones(1)], "hold a list"),
        ({"epoch": 3, "args": {}}, "no network: found epoch, args"),
        ({"head.weight": torch.ones(1)}, "no network"),
        ({}, "found nothing"),
    ],
)
def test_file_without_a_network_is_refused(tmp_path, content, complaint):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=complaint):
        read_weights(str(tmp_path / "a.pth"))


def test_missing_files_and_unknown_suffixes_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        read_weights(str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="cannot read the weights"):
        read_weights("ftp://host/a.pth")
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"unknown suffix '.npz': give a .safetensors"):
        read_weights(str(tmp_path / "a.npz"))


def test_prefixes_come_off_and_heads_are_left_out():
    checkpoint = {
        "module.backbone.cls_token": torch.zeros(1),
        "module.backbone.fc_norm.weight": torch.zeros(1),
        "module.dino_head.mlp.0.weight": torch.zeros(1),
        "header": torch.zeros(1),
    }
    assert set(backbone_state(checkpoint, "a.pth")) == {"cls_token", "header"}


def test_misfits_are_listed_by_name():
    expected = {f"w{number}": torch.zeros(2) for number in range(7)}
    state = {"w0": torch.zeros(3), "strange": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        check_fit(state, expected, "a.pth does not fit")
    assert str(caught.value) == (
        "a.pth does not fit: missing w1, w2, w3, w4 and 2 more; not expected strange; "
        "of another shape w0 (3,), expected (2,)"
    )
    check_fit(expected, expected, "fits")


def test_digest_tells_names_shapes_types_and_values_apart():
    states = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])},
        {"a": torch.zeros(4), "b": torch.zeros(())},
        {},
    ]
    assert len({digest_state(state) for state in states}) == len(states)
    transposed = torch.arange(6.0).reshape(2, 3).T
    assert digest_state({"a": transposed}) == digest_state({"a": transposed.contiguous()})
