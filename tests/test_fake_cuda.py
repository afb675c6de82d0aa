"""The fake device refuses what a GPU would refuse."""

import numpy as np
import pytest
import torch

from tests.fake_cuda import fake_cuda


def test_operands_on_two_devices_are_an_error() -> None:
    with fake_cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        devices = [tensor.device.type for tensor in (there, there + 1, there.cpu())]
        assert devices == ["cuda", "cuda", "cpu"]
        assert torch.equal(there.cpu() + here, torch.full((3,), 2.0))
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there > 0]):
            with pytest.raises(RuntimeError, match="on one device"):
                mix()


def test_a_tensor_on_the_device_has_no_numpy_array() -> None:
    with fake_cuda():
        there = torch.ones(3).to("cuda")
        for convert in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(TypeError, match=r"before \.cpu"):
                convert()
        assert there.cpu().numpy().tolist() == [1, 1, 1]


def test_the_device_has_its_own_memory() -> None:
    with fake_cuda():
        here = torch.zeros(3)
        there = here.to("cuda")
        there[1:] = 5
        assert here.tolist() == [0, 0, 0]
        assert there.tolist() == [0, 5, 5]
        assert there.to(torch.int64).dtype == torch.int64
