import math

import numpy as np
import pytest
import torch

from engine.errors import ConfigurationError
from engine.pretraining.dino import DinoConfig, DinoHead, DinoLoss
from engine.pretraining.regions import RegionConfig, contrast_regions, cut_regions
from engine.pretraining.schedules import OptimiserConfig, schedules_at

# Two images of four patches each; the first two patches of an image are one region, the others another.
LABELS = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]]).expand(2, -1, -1)
ONE_HOT = torch.eye(4)[torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]])]


def test_contrast_of_perfect_keys_is_what_softmax_and_sigmoid_leave():
    config = RegionConfig(temperature=1.0, within_share=0.25, same_cosine=0.2)
    contrast = contrast_regions(torch.stack([ONE_HOT, ONE_HOT]), LABELS, config)
    # Cosine 1 with the own region, 0 with three others in the batch, of which one is in the image.
    among_all = math.log(math.e + 3) - 1
    within = (math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-0.2))) / 2
    assert float(contrast.loss) == pytest.approx(0.75 * among_all + 0.25 * within)
    assert float(contrast.accuracy) == 1


def test_key_length_is_ignored_and_swapped_regions_are_never_found():
    keys = torch.stack([ONE_HOT, 5 * ONE_HOT.flip(1)])
    contrast = contrast_regions(keys, LABELS, RegionConfig())
    assert float(contrast.accuracy) == 0
    assert float(contrast.loss) > 5


def test_regions_shown_in_one_view_only_are_left_out():
    labels = LABELS.clone()
    labels[1] = 2
    contrast = contrast_regions(torch.stack([ONE_HOT, ONE_HOT]), labels, RegionConfig())
    assert float(contrast.loss) == 0

    # A region of one patch is too small to compare with, unless min_patches is 1.
    labels[1, 0, 0] = 0
    accuracies = [
        float(contrast_regions(torch.stack([ONE_HOT, ONE_HOT]), labels, RegionConfig(min_patches=n)).accuracy)
        for n in (1, 2)
    ]
    assert accuracies == [1.0, 0.5]


def test_contrast_pulls_a_region_together():
    torch.manual_seed(0)
    keys = torch.randn(2, 2, 4, 8, requires_grad=True)
    optimiser = torch.optim.Adam([keys], 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        contrast_regions(keys, LABELS, RegionConfig()).loss.backward()
        optimiser.step()
    directions = torch.nn.functional.normalize(keys.detach(), dim=-1)[0, 0]
    cosines = directions @ directions.T
    assert cosines[0, 1] > cosines[0, 2] + 0.5


def test_there_is_a_plane_of_regions_per_count():
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = 255
    planes = cut_regions(image, (2, 4))
    assert planes.shape == (24, 32, 2)
    assert [len(np.unique(planes[..., i])) for i in (0, 1)] == [2, 4]
    assert len(np.unique(planes[:, :16, 0])) == len(np.unique(planes[:, 16:, 0])) == 1


def test_dino_compares_only_different_views():
    config = DinoConfig(num_prototypes=3, student_temperature=1.0, warmup_share=0.0)
    loss = DinoLoss(config)
    teacher = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]])  # one image; its global views disagree
    agreeing = torch.tensor(
        [[0, 50.0, 0], [50.0, 0, 0]]
    )  # each student view agrees with the teacher's other view
    value, entropy = loss(agreeing, teacher, 1, 0.5)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert float(entropy) == pytest.approx(0, abs=1e-6)
    value, _ = loss(agreeing.flip(0), teacher, 1, 0.5)
    assert float(value) == pytest.approx(50)


def test_the_centre_moves_towards_the_mean_and_is_subtracted():
    loss = DinoLoss(DinoConfig(num_prototypes=2, centre_momentum=0.5))
    teacher = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    loss.update_centre(teacher)
    assert loss.centre.tolist() == [[2.0, 0.0]]
    for _ in range(40):
        loss.update_centre(teacher)
    _, entropy = loss(torch.zeros(2, 2), teacher, 1, 1.0)
    assert float(entropy) == pytest.approx(1)  # the common part is subtracted


def test_the_heads_last_layer_keeps_its_norms():
    config = DinoConfig(num_prototypes=5, hidden_size=8, bottleneck_size=4)
    head = DinoHead(6, config)
    weight = head.last_layer.weight
    assert torch.allclose(weight.norm(dim=1), torch.ones(5))
    assert head(torch.randn(3, 6)).shape == (3, 5)
    assert not head.last_layer.parametrizations.weight.original0.requires_grad


def test_ends_and_peak_of_the_schedules():
    config = OptimiserConfig(learning_rate=0.1, final_learning_rate=0.01, warmup_share=0.1)
    begin, peak, end = (schedules_at(progress, 512, config) for progress in (0.0, 0.1, 1.0))
    assert (begin.learning_rate, peak.learning_rate, end.learning_rate) == pytest.approx((0, 0.2, 0.01))
    assert (begin.weight_decay, end.weight_decay) == pytest.approx((0.04, 0.4))
    assert (begin.teacher_momentum, end.teacher_momentum) == pytest.approx((0.996, 1))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RegionConfig(counts=(1,)), "counts is a number of regions, 2 to 256"),
        (lambda: RegionConfig(counts=(8, 300)), "counts is"),
        (lambda: RegionConfig(counts=()), "counts needs at least one"),
        (lambda: RegionConfig(same_cosine=1), "same_cosine is a cosine"),
        (lambda: RegionConfig(within_share=1.5), "within_share is a share"),
        (lambda: DinoConfig(num_prototypes=1), "num_prototypes is a whole number >= 2"),
        (lambda: DinoConfig(student_temperature=0), "student_temperature is a number > 0"),
        (lambda: OptimiserConfig(learning_rate=0), "learning_rate is a number > 0"),
        (lambda: OptimiserConfig(warmup_share=1), "warmup_share is a share"),
    ],
)
def test_settings_out_of_range_are_named(make, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        make()
