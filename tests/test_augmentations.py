"""Augmentations of batches, against the same done image by image."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from zanalysis.errors import InputError
from zanalysis.experiments import augmentations
from zanalysis.experiments.augmentations import (
    Statistics,
    augment,
    channel_statistics,
    crop_boxes,
    mixed_up,
    random_crop,
    random_flip,
    random_resized_crop,
    standardized,
)
from zanalysis.experiments.data import MemorySplit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=16, channels=3, height=8, width=6, seed=0):
    return torch.rand(count, channels, height, width, generator=generator(seed))


def literal_crop(batch, padding, seed):
    offsets = torch.randint(0, 2 * padding + 1, (2, len(batch)), generator=generator(seed))
    out = []
    for image, (top, left) in zip(batch.numpy(), offsets.T.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        out.append(padded[:, top : top + image.shape[1], left : left + image.shape[2]])
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=st.integers(0, 1000), padding=st.integers(0, 5), height=st.integers(1, 7), width=st.integers(1, 7)
)
@settings(max_examples=25, deadline=None)
def test_crops_are_those_cut_one_by_one(device, seed, padding, height, width):
    batch = images(5, 2, height, width, seed)
    cropped = random_crop(batch.to(device), padding, generator(seed)).cpu()
    assert torch.equal(cropped, literal_crop(batch, padding, seed))


def test_crops_reach_every_corner():
    batch = torch.ones(400, 1, 4, 4)
    cropped = random_crop(batch, 4, generator())
    kept = cropped.sum((1, 2, 3))
    assert kept.min() == 0  # nine offsets in each direction: at the ends nothing of the image is left
    assert kept.max() == 16


@pytest.mark.parametrize("device", DEVICES)
def test_flips_are_those_of_single_images_and_of_about_half(device):
    batch = images(400)
    flipped = random_flip(batch.to(device), generator(3)).cpu()
    chosen = torch.rand(400, generator=generator(3)) < 0.5
    for image, result, turned in zip(batch.numpy(), flipped.numpy(), chosen.tolist(), strict=True):
        assert np.array_equal(result, image[:, :, ::-1] if turned else image)
    # 400 draws: 200 ± 10 is one standard deviation.
    assert abs(int(chosen.sum()) - 200) < 50


@pytest.mark.parametrize("device", DEVICES)
def test_mixup_blends_images_and_labels_alike(device):
    batch, labels = images(16).double(), torch.arange(16) % 5
    blended, soft = mixed_up(batch.to(device), labels.to(device), 0.7, 5, generator(1))
    blended, soft = blended.cpu(), soft.cpu()
    drawn = generator(1)
    uniform = float(torch.rand((), generator=drawn, dtype=torch.float64))
    weight = stats.beta(0.7, 0.7).ppf(uniform)
    order = torch.randperm(16, generator=drawn)
    for i in range(16):
        j = int(order[i])
        torch.testing.assert_close(
            blended[i], weight * batch[i] + (1 - weight) * batch[j], rtol=0, atol=1e-15
        )
        expected = np.zeros(5)
        expected[labels[i]] += weight
        expected[labels[j]] += 1 - weight
        np.testing.assert_allclose(soft[i].numpy(), expected, rtol=0, atol=1e-15)
    assert soft.dtype == torch.float64
    torch.testing.assert_close(soft.sum(1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_weights_of_mixup_follow_their_distribution():
    drawn, batch, labels = generator(), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    weights = []
    while len(weights) < 400:
        blended, soft = mixed_up(batch, labels, 0.5, 2, drawn)
        if blended[0] != 0:  # the two were exchanged
            weights.append(1 - float(blended[0]))
        assert torch.equal(soft[:, 1], blended.flatten())
    assert stats.kstest(weights, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


def test_soft_labels_train_as_hard_ones_when_they_are():
    labels = torch.tensor([2, 0, 1])
    _, soft = mixed_up(images(3), labels, 1e-6, 3, generator(0))  # the weight is 0 or 1, up to rounding
    logits = torch.randn(3, 3, generator=generator(5))
    order = soft.argmax(1)
    loss = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss(logits, soft), loss(logits, order), rtol=1e-5, atol=1e-6)


def literal_box(height, width, draws, scale, ratio):
    # The rule of torchvision's RandomResizedCrop, with its draws given.
    for share, shape, down, right in draws.T.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w, h = min(width, round(height * ratio[1])), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.5, 2.0))])
def test_boxes_are_those_drawn_one_by_one(scale, ratio):
    rng = np.random.default_rng(0)
    heights, widths = (torch.from_numpy(rng.integers(1, 300, 500)) for _ in range(2))
    boxes = crop_boxes(heights, widths, generator(2), scale, ratio)
    draws = torch.rand((4, 500, 10), generator=generator(2), dtype=torch.float64).numpy()
    for i in range(500):
        found = tuple(int(side[i]) for side in boxes)
        assert found == literal_box(int(heights[i]), int(widths[i]), draws[:, i], scale, ratio)
    assert (boxes.top >= 0).all()
    assert (boxes.top + boxes.height <= heights).all()
    assert (boxes.left >= 0).all()
    assert (boxes.left + boxes.width <= widths).all()


@pytest.mark.parametrize("device", DEVICES)
def test_resized_crops_are_those_interpolated_one_by_one(device):
    batch = images(6, 2, 12, 9)
    size = (5, 7)
    result = random_resized_crop(batch.to(device), size, generator(4)).cpu()
    boxes = crop_boxes(torch.full((6,), 12), torch.full((6,), 9), generator(4))
    for i in range(6):
        top, left, height, width = (int(side[i]) for side in boxes)
        cut = batch[i : i + 1, :, top : top + height, left : left + width]
        # Independent: torch's own resizing of the rectangle alone.
        expected = torch.nn.functional.interpolate(cut, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(result[i : i + 1], expected, rtol=0, atol=2e-6)


def test_a_resized_crop_of_everything_is_the_image():
    batch = images(3, 1, 8, 8)
    whole = random_resized_crop(batch, (8, 8), generator(), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    torch.testing.assert_close(whole, batch, rtol=0, atol=1e-6)
    larger = random_resized_crop(batch, (16, 16), generator(), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    pillow = Image.fromarray(batch[0, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(larger[0, 0].numpy(), np.asarray(pillow), rtol=0, atol=1e-6)


def test_standardization_gives_mean_0_and_deviation_1():
    batch = images(64, 3)
    split = MemorySplit((batch * 255).round().to(torch.uint8), torch.zeros(64, dtype=torch.int64))
    statistics = channel_statistics(split)
    everything = split.everything().double()
    np.testing.assert_allclose(statistics.mean, everything.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, everything.std((0, 2, 3), correction=0), rtol=1e-9)
    result = standardized(everything, statistics)
    assert result.mean((0, 2, 3)).abs().max() < 1e-9
    assert (result.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-9


def test_statistics_do_not_depend_on_how_they_are_cut(monkeypatch):
    split = MemorySplit(
        torch.randint(0, 256, (50, 2, 3, 3), dtype=torch.uint8, generator=generator()), torch.zeros(50)
    )
    whole = channel_statistics(split)
    monkeypatch.setattr(augmentations, "_CHUNK", 7)
    np.testing.assert_allclose(np.array(channel_statistics(split)), np.array(whole), rtol=1e-12)


def test_a_batch_is_cropped_then_flipped_then_standardized_then_mixed():
    batch, labels = images(8), torch.arange(8) % 3
    statistics = Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    options = {"crop": 2, "flip": True, "mixup": 1.0, "classes": 3, "statistics": statistics}
    got = augment(batch, labels, **options, generator=generator(9))
    drawn = generator(9)
    step = standardized(random_flip(random_crop(batch, 2, drawn), drawn), statistics)
    expected = mixed_up(step, labels, 1.0, 3, drawn)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    again = augment(batch, labels, **options, generator=generator(9))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    other = augment(batch, labels, **options, generator=generator(10))
    assert not torch.equal(got[0], other[0])


def test_nothing_asked_for_changes_nothing():
    batch, labels = images(4), torch.arange(4)
    kept = batch.clone()
    same = augment(batch, labels, generator=generator())
    assert same[0] is batch
    assert same[1] is labels
    augment(batch, labels, crop=2, flip=True, mixup=1.0, classes=4, generator=generator())
    assert torch.equal(batch, kept)


def test_the_global_random_state_is_not_touched():
    before, numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    augment(
        images(),
        torch.zeros(16, dtype=torch.int64),
        crop=4,
        flip=True,
        mixup=0.5,
        classes=2,
        generator=generator(),
    )
    random_resized_crop(images(), (4, 4), generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"crop": -1}, "the padding of a crop is not negative, got -1"),
        ({"mixup": 0.5}, r"MixUp makes soft labels .*: pass classes="),
        ({"mixup": -0.5, "classes": 4}, "the alpha of MixUp is positive, got -0.5"),
        ({"mixup": float("nan"), "classes": 4}, "the alpha of MixUp is positive, got nan"),
        ({"mixup": 0.5, "classes": 3}, "labels lie in 0 to 2, got 0 to 3"),
        ({"statistics": Statistics((0.5,), (0.5,))}, "images of 3 channels need as many means"),
        ({"statistics": Statistics((0.5,) * 3, (0.5, 0.0, 0.5))}, "standard deviations are positive"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        augment(images(4), torch.arange(4), **arguments, generator=generator())


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
def test_images_of_another_shape_or_type_are_refused(wrong):
    with pytest.raises(
        InputError, match=r"images are \[samples, channels, height, width\] of floating point, got"
    ):
        random_flip(wrong, generator())


def test_loading_data_loads_no_pictures_and_no_tables():
    code = (
        "import sys, zanalysis.experiments.data, zanalysis.experiments.augmentations\n"
        "found = {'PIL', 'pyarrow', 'pooch', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
def test_a_generator_of_the_device_works_too():
    drawn = torch.Generator("cuda").manual_seed(0)
    batch, labels = images().cuda(), (torch.arange(16) % 4).cuda()
    result, soft = augment(batch, labels, crop=2, flip=True, mixup=1.0, classes=4, generator=drawn)
    assert result.device.type == soft.device.type == "cuda"
    assert random_resized_crop(batch, (4, 4), drawn).shape == (16, 3, 4, 4)
