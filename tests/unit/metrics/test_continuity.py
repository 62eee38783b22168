import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.metrics.continuity import gradient_error, seam_ratio


def ramp(shape):
    """An image that rises by 1 per voxel along every axis."""
    return sum(torch.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))])
               for axis, size in enumerate(shape)).double()[None, None]  # fmt: skip


def test_flicker_is_seen_along_its_axis_alone_and_per_mm():
    image = ramp((6, 5, 4))
    flicker = image.clone()
    flicker[:, :, ::2] += 0.5
    assert gradient_error(flicker, image, spacing=(2.5, 1.0, 1.0)).tolist() == [[0.2, 0.0, 0.0]]
    assert gradient_error(image + 7, image).tolist() == [[0.0, 0.0, 0.0]]


def test_an_axis_of_one_voxel_has_no_gradient():
    errors = gradient_error(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    assert errors.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("shape", [(12, 9), (8, 12, 9)])
def test_an_even_gradient_has_no_seams(shape):
    assert seam_ratio(ramp(shape), [[4]] * len(shape)) == pytest.approx(1)


def test_a_seam_shows():
    image = ramp((12, 10))
    image[:, :, 6:] += 1
    # 10 steps of 2 at the border; elsewhere steps of 1
    assert seam_ratio(image, [[6], []]) == pytest.approx(2)
    assert seam_ratio(image, [[5], []]) == pytest.approx(1 / ((100 + 10 + 108 - 10 + 0) / (110 - 10 + 108)), rel=0.1)


def test_content_that_is_steeper_at_the_border_is_divided_out():
    content = ramp((12, 10))
    content[:, :, 6:] += 3
    seam = content.clone()
    seam[:, :, 6:] += 1
    assert seam_ratio(content, [[6], []], reference=content) == 1
    assert seam_ratio(seam, [[6], []], reference=content) == pytest.approx(5 / 4)


def test_a_flat_image_has_no_seams():
    assert seam_ratio(torch.zeros(1, 1, 8, 8), [[4], [4]]) == 1


@pytest.mark.parametrize(
    ("borders", "fault"), [([[4]], "each of 2 axes"), ([[0], []], "from 1 to 7"), ([[], []], "some borders")]
)
def test_borders_have_to_be_inside(borders, fault):
    with pytest.raises(SettingError, match=fault):
        seam_ratio(torch.rand(1, 1, 8, 8), borders)
