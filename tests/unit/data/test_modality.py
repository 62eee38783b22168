"""Intensities of the three modalities."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.preprocess.modality import ct_window, guess_modality, own_image, preprocess_like, standardise, to_unit
from voxelry.data.preprocess.speckle import despeckle
from voxelry.data.sample import Sample
from voxelry.io import write_image


def test_ct_is_windowed_in_hounsfield_units():
    image = torch.tensor([-2000.0, -1000.0, 500.0, 2000.0, 3000.0]).reshape(1, 1, 1, 5)
    scaled, standard = standardise(image, "ct")
    assert scaled.flatten().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert standard.restore(scaled).flatten().tolist() == [-1000.0, -1000.0, 500.0, 2000.0, 2000.0]
    liver, _ = standardise(image, "ct", window="liver")
    assert liver.flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert ct_window((-100, 100)) == (-100.0, 100.0)
    for wrong in ("spleen", (1.0, 0.0), (1.0,)):
        with pytest.raises(SettingError, match="window"):
            ct_window(wrong)


def test_mri_becomes_a_z_score(rng):
    image = torch.from_numpy(rng.normal(300, 40, (1, 8, 9, 10)).astype(np.float32))
    scaled, standard = standardise(image, "mr")
    assert scaled.mean().item() == pytest.approx(0, abs=1e-5)
    assert scaled.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(standard.restore(scaled), image, atol=1e-2, rtol=0)
    assert not standardise(torch.full((1, 3, 3, 3), 7.0), "mr")[0].any()


@pytest.mark.parametrize(("modality", "low", "high"), [("ct", -1100, 400), ("mr", 0, 900), ("us", 0, 255)])
def test_a_raw_volume_is_preprocessed_to_the_same_values(modality, low, high, rng):
    image = torch.from_numpy(rng.uniform(low, high, (1, 6, 7, 8)).astype(np.float32))
    clean = torch.from_numpy(despeckle(image.numpy())) if modality == "us" else image
    prepared = to_unit(standardise(clean, modality)[0], modality)
    raw = preprocess_like(modality, None)(Sample(image, Space.from_spacing((6, 7, 8)), "a"))
    torch.testing.assert_close(raw.image, prepared, atol=1e-5, rtol=0)


def test_the_modality_is_told_or_guessed():
    air = torch.tensor([[-1000.0, 40.0]])
    assert [guess_modality(air), guess_modality(air + 1000), guess_modality(air, "MR")] == ["ct", "mr", "mr"]
    with pytest.raises(SettingError, match="modality"):
        standardise(air, "pet")


def test_speckle_goes_and_edges_stay(rng):
    clean = np.full((40, 40), 50.0)
    clean[:, 20:] = 150.0
    noisy = clean * rng.gamma(16.0, 1 / 16.0, clean.shape)
    smooth = despeckle(noisy[None])[0]
    assert smooth[5:35, 4:16].std() < 0.5 * noisy[5:35, 4:16].std()
    assert abs(smooth - clean).mean() < 0.6 * abs(noisy - clean).mean()
    assert smooth[:, 17].mean() < 80
    assert smooth[:, 22].mean() > 120
    np.testing.assert_allclose(despeckle(np.full((1, 6, 6, 6), 3.0)), 3.0)


def test_a_prepared_ultrasound_volume_is_not_despeckled_again(tmp_path, rng):
    space = Space.from_spacing((12, 14, 16), (1.0, 1.0, 1.0))
    image = torch.from_numpy(rng.gamma(4.0, 30.0, (1, *space.shape)).astype(np.float32))
    scaled, standard = standardise(torch.from_numpy(despeckle(image.numpy())), "us")
    path = write_image(tmp_path / "a.nii.gz", scaled.numpy(), space, description=standard.note)
    raw = write_image(tmp_path / "raw.nii.gz", image.numpy(), space)
    preprocess = preprocess_like("us", None)
    assert own_image(path).despeckled
    assert not own_image(raw).despeckled
    once = [VolumeDataset([Case("a", file)], preprocess=preprocess, need=())[0].image for file in (path, raw)]
    for found in once:
        torch.testing.assert_close(found, scaled, atol=2e-3, rtol=0)
    assert preprocess(preprocess(Sample(image, space, "a"))).despeckled
