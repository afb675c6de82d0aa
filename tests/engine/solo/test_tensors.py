from dataclasses import dataclass

import torch

from engine.solo.tensors import TensorGroup


@dataclass(frozen=True)
class Leaf(TensorGroup):
    values: torch.Tensor
    missing: torch.Tensor | None = None


@dataclass(frozen=True)
class Tree(TensorGroup):
    name: str
    leaves: tuple[Leaf, ...]
    root: Leaf


def test_all_tensors_move_and_other_values_stay():
    tree = Tree("pine", (Leaf(torch.zeros(2, 3)), Leaf(torch.zeros(0), torch.ones(1))), Leaf(torch.zeros(1)))
    # The meta device exists on every machine.
    moved = tree.to(torch.device("meta"))
    tensors = [moved.root.values, moved.leaves[0].values, moved.leaves[1].values, moved.leaves[1].missing]
    assert all(tensor.is_meta for tensor in tensors)
    assert [tuple(tensor.shape) for tensor in tensors] == [(1,), (2, 3), (0,), (1,)]
    assert (moved.name, moved.root.missing, moved.leaves[0].missing) == ("pine", None, None)
    assert not tree.root.values.is_meta
