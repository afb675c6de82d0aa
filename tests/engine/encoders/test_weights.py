import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from engine.encoders.formats import check_network
from engine.encoders.weights import check_fit, digest_state, read_weights, select_network
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
    torch.save(STATE, tmp_path / "a.pth.tar")
    for name in ("a.safetensors", "a.pth", "old.pt", "a.pth.tar"):
        assert same(read_weights(str(tmp_path / name)).state, STATE)


def test_containers_are_flattened_and_namespaces_allowed(tmp_path):
    checkpoint = {
        "teacher": {f"backbone.{name}": tensor for name, tensor in STATE.items()},
        "student": {"module": {name: tensor + 1 for name, tensor in STATE.items()}},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "full.ckpt")
    state = read_weights(str(tmp_path / "full.ckpt")).state
    assert set(state) == {
        *(f"teacher/backbone.{name}" for name in STATE),
        *(f"student/module/{name}" for name in STATE),
        "optimizer/state/0/exp_avg",
    }
    assert same(select_network(state, STATE, "full.ckpt"), STATE)


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
    with pytest.raises(WeightsError, match="no complete") as caught:
        read_weights(str(path))
    assert one_line(caught)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_something_else_is_one_line(tmp_path, suffix):
    path = tmp_path / f"page{suffix}"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(WeightsError, match="no complete") as caught:
        read_weights(str(path))
    assert one_line(caught)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.ones(1)], "hold a list"),
        ({"epoch": 3, "args": {}}, "no network: found epoch, args"),
        ({}, "found nothing"),
    ],
)
def test_file_without_a_network_is_refused(tmp_path, content, complaint):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=complaint):
        read_weights(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused_with_the_tensors_name(value):
    state = {f"model.{name}": tensor.clone() for name, tensor in STATE.items()}
    state["model.blocks.0.norm1.weight"][1, 2] = value
    with pytest.raises(
        WeightsError, match=r"NaN or infinite values in blocks\.0\.norm1\.weight: give"
    ) as caught:
        select_network(state, STATE, "a.pth")
    assert one_line(caught)
    other = {f"optimizer/{name}": torch.full_like(tensor, value) for name, tensor in STATE.items()}
    assert same(select_network({**other, **STATE}, STATE, "a.pth"), STATE)  # the network alone counts


def test_other_networks_are_refused():
    with pytest.raises(WeightsError, match=r"do not fit: they hold hardly any .* but fc\.weight") as caught:
        select_network({"fc.weight": torch.ones(1)}, STATE, "a.pth")
    assert one_line(caught)


def test_missing_files_and_unknown_suffixes_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        read_weights(str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="cannot read the weights"):
        read_weights("ftp://host/a.pth")
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"unknown suffix '.txt': give a .safetensors"):
        read_weights(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit.onnx", "a model converted for inference"),
        ("model.safetensors.index.json", "the index of a sharded checkpoint"),
        ("model-00001-of-00003.safetensors", "one shard of a sharded checkpoint"),
        ("ViT-B_16.npz", "a JAX or NumPy checkpoint"),
        ("tf_model.h5", "a TensorFlow or Keras file"),
        ("model_final.pkl", "a plain pickle"),
        ("weights.zip", "an archive"),
    ],
)
def test_other_file_formats_are_told_by_name(name, kind):
    with pytest.raises(WeightsError, match=rf"are {kind}.*: (?:give|load|unpack)") as caught:
        read_weights(f"folder/{name}")
    assert one_line(caught)


def test_torchscript_is_told_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "traced.pt", "w") as archive:
        archive.writestr("traced/constants.pkl", pickle.dumps(()))
        archive.writestr("traced/data.pkl", b"no pickle")
    with pytest.raises(WeightsError, match="TorchScript") as caught:
        read_weights(str(tmp_path / "traced.pt"))
    assert one_line(caught)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("module.encoder_q.layer1.0.conv1.weight", "a ResNet"),
        ("blocks.0.attn.relative_position_bias_table", "a BEiT or Swin"),
        ("vision_model.encoder.layers.0.layer_norm1.weight", "a CLIP or SigLIP model of Hugging Face"),
        ("visual.conv1.weight", "a CLIP checkpoint of open_clip"),
        ("base_model.model.blocks.0.attn.qkv.lora_A.default.weight", "a LoRA adapter"),
        ("mask_decoder.iou_token.weight", "a Segment Anything"),
        ("downsample_layers.0.0.weight", "a ConvNeXt"),
    ],
)
def test_other_networks_are_told_by_name(tensor, kind):
    with pytest.raises(WeightsError, match=f"are {kind}"):
        check_network(["epoch", tensor], "a.pth")
    check_network(["model.blocks.0.attn.qkv.weight", "embeddings.cls_token", "head.mlp.0.weight"], "a.pth")


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
