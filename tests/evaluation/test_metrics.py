"""Every metric of the registry keeps one contract, and agrees with scikit-image or plain arithmetic."""

import inspect
import math

import numpy
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio as skimage_psnr
from skimage.metrics import structural_similarity as skimage_ssim

from inversefed.errors import InputError
from inversefed.evaluation import metrics
from inversefed.evaluation.score import score
from inversefed.inputs import MEASURES
from inversefed.types import Batch

PIXELS = [name for name in metrics.__all__ if name != "label_accuracy"]


def features(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) * torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype)


def perceptual(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (images - target).abs().mean(dim=(1, 2, 3))


def call(name: str, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    function = getattr(metrics, name)
    extra = {"features": features, "perceptual": perceptual}
    wanted = inspect.signature(function).parameters
    return function(images, target, **{name: value for name, value in extra.items() if name in wanted})


def pair(count=4, channels=3, height=32, width=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    smooth = torch.rand(count, channels, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1)
    strength = torch.linspace(0.02, 0.5, count, dtype=torch.float64).view(-1, 1, 1, 1)
    found = target + strength * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return found.to(dtype), target.to(dtype)


def test_registry_is_sorted_and_every_metric_has_its_fact():
    assert metrics.__all__ == sorted(metrics.__all__)
    assert set(metrics.FACTS) == {*metrics.__all__, *MEASURES}
    for fact in metrics.FACTS.values():
        assert fact.title and fact.meaning and format(0.5, fact.format)


@pytest.mark.parametrize("name", metrics.__all__)
def test_parameters_are_among_those_that_score_can_give(name):
    known = {"images", "target", "pictures", "true_pictures", "labels", "target_labels", "features", "perceptual"}
    assert inspect.signature(getattr(metrics, name)).parameters.keys() <= known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PIXELS)
def test_one_number_an_image_independent_of_the_batch(name, dtype):
    found, target = pair(dtype=dtype)
    whole = call(name, found, target)
    alone = torch.cat([call(name, found[i : i + 1], target[i : i + 1]) for i in range(4)])
    assert whole.shape == (4,) and whole.dtype == dtype
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", PIXELS)
def test_best_at_identity_and_worse_with_more_noise(name):
    found, target = pair()
    sign = 1 if metrics.FACTS[name].higher_is_better else -1
    noisy, same = sign * call(name, found, target), sign * call(name, target, target)
    assert (same > noisy).all() and (noisy[:-1] > noisy[1:]).all()


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_clamped_and_inputs_untouched(name):
    found, target = pair()
    assert found.min() < 0 and found.max() > 1
    before = found.clone()
    torch.testing.assert_close(call(name, found, target), call(name, found.clamp(0, 1), target))
    assert torch.equal(found, before)


@pytest.mark.parametrize("name", PIXELS)
def test_a_nan_picture_spoils_its_own_score_only(name):
    found, target = pair()
    clean = call(name, found, target)
    found[1, 0, 5, 5] = float("nan")
    spoiled = call(name, found, target)
    assert spoiled.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(spoiled[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("name", PIXELS)
def test_half_precision_is_judged_in_single(name):
    found, target = pair()
    judged = call(name, found.half(), target)
    assert judged.dtype == torch.float32
    torch.testing.assert_close(judged, call(name, found.half().float(), target))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", PIXELS)
def test_shapes_that_differ_are_refused(name):
    for shape in [(2, 3, 8, 8), (1, 1, 8, 8), (3, 8, 8)]:
        with pytest.raises(InputError, match="reconstruction first"):
            call(name, torch.zeros(shape), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_psnr_agrees_with_scikit_image(dtype, tolerance):
    found, target = pair(dtype=dtype)
    pairs = zip(found.clamp(0, 1), target, strict=True)
    expected = [skimage_psnr(t.numpy(), f.numpy(), data_range=1.0) for f, t in pairs]
    numpy.testing.assert_allclose(metrics.peak_signal_noise_ratio(found, target).numpy(), expected, rtol=tolerance)


def test_psnr_is_capped_and_finite_at_identity():
    target = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    nearly = (target - 1e-13).clamp(0, 1)
    assert metrics.peak_signal_noise_ratio(target, target).tolist() == [200.0, 200.0]
    assert metrics.peak_signal_noise_ratio(nearly, target).tolist() == [200.0, 200.0]
    assert metrics.peak_signal_noise_ratio(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item() == 0.0


def scikit_image(found, target, radius):
    """Scikit-image's own window is of radius `int(truncate * sigma + 0.5)`."""
    sigma = 1.5 if radius == 5 else radius / 3.5
    return [
        skimage_ssim(
            t.numpy(), f.clamp(0, 1).numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=sigma,
            truncate=3.5, use_sample_covariance=False,
        )
        for f, t in zip(found, target, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "radius"),
    [(32, 32, 5), (48, 31, 5), (11, 11, 5), (12, 64, 5), (10, 32, 4), (8, 8, 3), (5, 6, 2), (3, 3, 1)],
)
def test_ssim_agrees_with_scikit_image(dtype, channels, height, width, radius):
    found, target = pair(channels=channels, height=height, width=width, dtype=dtype)
    expected = scikit_image(found, target, radius)
    tolerance = 5e-5 if dtype == torch.float32 else 1e-9
    numpy.testing.assert_allclose(metrics.structural_similarity(found, target).numpy(), expected, atol=tolerance)


def test_ssim_of_the_smallest_pictures_compares_brightness():
    found, target = torch.full((1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 2)
    expected = (2 * 0.5 + 1e-4) / (0.5**2 + 1 + 1e-4)
    assert metrics.structural_similarity(found, target).item() == pytest.approx(expected)


def test_mean_squared_error_and_features_by_hand():
    found = torch.tensor([0.25, 3.0]).view(1, 1, 1, 2)
    target = torch.tensor([0.75, 0.0]).view(1, 1, 1, 2)
    assert metrics.mean_squared_error(found, target).item() == pytest.approx((0.25 + 1) / 2)
    weighted = metrics.feature_mean_squared_error(found, target, lambda x: x.flatten(1) * torch.tensor([2.0, 1.0]))
    assert weighted.item() == pytest.approx((1 + 1) / 2)


def test_psnr_is_the_logarithm_of_the_mean_squared_error():
    found, target = pair()
    errors = metrics.mean_squared_error(found, target)
    torch.testing.assert_close(metrics.peak_signal_noise_ratio(found, target), -10 * errors.log10())


def test_features_are_taken_without_a_graph():
    layer = torch.nn.Linear(12, 3)
    found = torch.rand(2, 3, 2, 2, requires_grad=True)
    judged = metrics.feature_mean_squared_error(found, torch.rand(2, 3, 2, 2), lambda x: layer(x.flatten(1)))
    assert not judged.requires_grad and judged.shape == (2,)


@pytest.mark.usefixtures("unchecked")
def test_label_accuracy():
    assert metrics.label_accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 3])).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(InputError, match="2 and 3"):
        metrics.label_accuracy(torch.tensor([1, 2]), torch.tensor([1, 0, 3]))


def test_score_calls_the_whole_registry_in_its_order():
    found, target = pair()
    truth = Batch(target, torch.arange(4))
    judged = score(Batch(found, torch.tensor([0, 1, 0, 3])), truth, features, perceptual)
    assert list(judged) == metrics.__all__
    assert judged["label_accuracy"].tolist() == [1.0, 1.0, 0.0, 1.0]
    torch.testing.assert_close(judged["structural_similarity"], metrics.structural_similarity(found, target))
    torch.testing.assert_close(
        judged["feature_mean_squared_error"], metrics.feature_mean_squared_error(found, target, features)
    )


def test_score_leaves_out_what_nothing_is_known_of():
    found, target = pair()
    judged = score(found, Batch(target, torch.arange(4)))
    assert list(judged) == ["mean_squared_error", "peak_signal_noise_ratio", "structural_similarity"]


def test_a_new_metric_is_scored_by_its_name_alone(monkeypatch):
    monkeypatch.setattr(metrics, "brightness", lambda images: images.mean(dim=(1, 2, 3)), raising=False)
    monkeypatch.setattr(metrics, "__all__", [*metrics.__all__, "brightness"])
    found, target = pair()
    assert math.isclose(score(found, Batch(target, torch.arange(4)))["brightness"][0], found[0].mean(), rel_tol=1e-6)
