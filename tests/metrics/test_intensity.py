"""Pearson, R2, PSNR and NRMSE by their definitions, in 2-D and 3-D."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import PSNRMetric
from scipy.stats import pearsonr
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional import pearson_corrcoef, r2_score

from cyto_dl.metrics import NRMSE, PSNR, R2, AffinePSNR, Pearson


def row(*values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


TARGET = row(0, 1, 2, 3)


def test_values_computed_by_hand():
    prediction = row(0, 1, 2, 5)  # one error of 2: SSE 4, MSE 1; target: SST 5, range 3
    assert R2().per_image(prediction, TARGET).item() == pytest.approx(1 - 4 / 5)
    assert PSNR().per_image(prediction, TARGET).item() == pytest.approx(10 * math.log10(9))
    percentiles = 3 * 0.998  # from the 0.1st to the 99.9th, between equally spaced values
    assert NRMSE().per_image(prediction, TARGET).item() == pytest.approx(1 / percentiles)
    # the best line has r^2 = 64 / 70: what is left of the variance of 5 / 4 is 6 / 70
    assert AffinePSNR().per_image(prediction, TARGET).item() == pytest.approx(10 * math.log10(9 / (5 / 4 * 6 / 70)))
    # deviations (-2, -1, 0, 3) and (-1.5, -0.5, 0.5, 1.5)
    assert Pearson().per_image(prediction, TARGET).item() == pytest.approx(8 / math.sqrt(14 * 5))


def test_pearson_does_not_see_gain_and_offset_but_r2_does():
    prediction = 10 * TARGET + 7
    assert Pearson().per_image(prediction, TARGET).item() == pytest.approx(1)
    assert Pearson().per_image(-prediction, TARGET).item() == pytest.approx(-1)
    assert R2().per_image(prediction, TARGET).item() < 0
    assert AffinePSNR().per_image(-prediction, TARGET).item() > 100  # exact but for rounding
    assert PSNR().per_image(prediction, TARGET).item() < 0


def test_a_perfect_prediction():
    assert R2().per_image(TARGET, TARGET).item() == 1
    assert Pearson().per_image(TARGET, TARGET).item() == pytest.approx(1)
    assert PSNR().per_image(TARGET, TARGET).item() == math.inf
    assert NRMSE().per_image(TARGET, TARGET).item() == 0


@pytest.mark.parametrize("metric", [Pearson(), R2(), PSNR(), AffinePSNR(), NRMSE()])
def test_a_constant_target_is_undefined(metric):
    values = metric.per_image(torch.cat([TARGET, TARGET]), torch.cat([torch.full_like(TARGET, 0.1), TARGET + 0.1]))
    assert torch.isnan(values).tolist() == [True, False]


def test_a_constant_prediction_has_no_correlation():
    constant = torch.full((1, 1, 1, 4), 0.1)
    assert torch.isnan(Pearson().per_image(constant, TARGET)).all()
    assert torch.isfinite(R2().per_image(constant, TARGET)).all()
    mean = torch.full_like(TARGET, 1.5)
    fitted = AffinePSNR().per_image(constant, TARGET)
    assert fitted.item() == pytest.approx(PSNR().per_image(mean, TARGET).item())


@given(seed=st.integers(0, 10_000), spatial_dims=st.sampled_from([2, 3]), channels=st.integers(1, 2))
def test_values_are_those_of_the_libraries(seed, spatial_dims, channels):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand((2, 1, channels, *[6] * spatial_dims), generator=generator)
    x, y = prediction.flatten(), target.flatten()
    data_range = (y.max() - y.min()).item()
    tolerance = {"abs": 1e-5}  # the libraries compute in single precision
    pearson = Pearson().per_image(prediction, target).item()
    assert pearson == pytest.approx(pearson_corrcoef(x, y).item(), **tolerance)
    assert pearson == pytest.approx(pearsonr(x.numpy(), y.numpy()).statistic, **tolerance)
    assert R2().per_image(prediction, target).item() == pytest.approx(r2_score(x, y).item(), **tolerance)
    psnr = PSNR().per_image(prediction, target).item()
    assert psnr == pytest.approx(peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=data_range), abs=1e-4)
    assert psnr == pytest.approx(PSNRMetric(max_val=data_range, reduction="none")(prediction, target).item(), abs=1e-4)


@given(seed=st.integers(0, 10_000), spatial_dims=st.sampled_from([2, 3]))
def test_the_fitted_psnr_is_that_of_the_least_squares_line(seed, spatial_dims):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand((2, 2, 1, *[6] * spatial_dims), generator=generator, dtype=torch.float64)
    values = AffinePSNR().per_image(prediction, target)
    for index in range(2):  # every image has a line of its own
        gain, offset = np.polyfit(prediction[index].flatten(), target[index].flatten(), 1)
        fitted = (gain * prediction + offset)[index : index + 1]
        expected = PSNR().per_image(fitted, target[index : index + 1]).item()
        assert values[index].item() == pytest.approx(expected)
        assert expected >= PSNR().per_image(prediction, target)[index].item()


def test_a_hot_pixel_does_not_make_predictions_look_good():
    target = torch.rand((1, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    prediction = target + 0.1
    expected = NRMSE().per_image(prediction, target).item()
    for image in (prediction, target):
        image[0, 0, 0, 0] = 1000
    assert NRMSE().per_image(prediction, target).item() == pytest.approx(expected, rel=0.01)  # one pixel of 4096


@pytest.mark.parametrize("scale", [1e-4, 1.0, 6e4])
def test_the_units_of_an_image_do_not_matter(scale):
    # 16-bit cameras give values around an offset; small ranges are what torchmetrics' R2 takes for constant
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=(1, 1, 64, 64)))
    prediction = target + torch.from_numpy(rng.normal(size=(1, 1, 64, 64))) * 0.5
    for metric in (Pearson(), R2(), PSNR(), AffinePSNR(), NRMSE()):
        expected = metric.per_image(prediction, target).item()
        assert metric.per_image(prediction * scale + 100, target * scale + 100).item() == pytest.approx(expected)
