"""LPIPS, with random weights in the backbones of its networks."""

import itertools

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips

from tests.helpers import random_video
from wanvae import Posterior, Reconstruction
from wanvae.engine.checkpoint import CheckpointError
from wanvae.metrics.lpips import BACKBONES, Lpips
from wanvae.train.losses import LossConfig, VideoLosses

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def features(backbone: str) -> nn.Sequential:
    """Layers as in torchvision's network; a 1x1 convolution for each fire module of SqueezeNet."""
    if backbone == "vgg16":
        layers: list[nn.Module] = []
        width = 3
        for out in VGG:
            layers += (
                [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                if out
                else [nn.MaxPool2d(2, 2)]
            )
            width = out or width
        return nn.Sequential(*layers)
    if backbone == "alexnet":
        sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
        sizes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        blocks = [[nn.Conv2d(*size), nn.ReLU(inplace=True)] for size in sizes]
        for place in (0, 1, 4):
            blocks[place].append(nn.MaxPool2d(3, 2))
        return nn.Sequential(*itertools.chain(*blocks))
    widths = [64, 128, 128, 0, 256, 256, 0, 384, 384, 512, 512]
    layers = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
    width = 64
    for out in widths[1:]:
        layers.append(nn.Conv2d(width, out, 1) if out else nn.MaxPool2d(3, 2, ceil_mode=True))
        width = out or width
    return nn.Sequential(*layers)


@pytest.fixture(autouse=True)
def backbones(monkeypatch) -> None:
    """Random weights instead of torchvision's, which has to be neither installed nor online."""

    def random_features(net: str, pretrained: bool = False) -> nn.Sequential:
        return features(net)

    torch.manual_seed(0)
    monkeypatch.setattr(lpips, "_get_tv_model_features", random_features)


def videos(frames: int, side: int = 32, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    video = random_video(frames, side, side, batch).float()
    return video.flip(3), video


@pytest.mark.parametrize("network", BACKBONES)
def test_each_frame_has_a_distance_with_a_gradient(network):
    model = Lpips(network)
    output, video = videos(2)
    distances = model(output.requires_grad_(), video)
    assert distances.shape == (2, 2)
    assert (distances > 0).all()
    distances[1, 0].backward()
    seen = output.grad.abs().sum((1, 3, 4)) > 0
    assert seen.tolist() == [[False, False], [True, False]]
    assert torch.equal(model(video, video), torch.zeros(2, 2))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_term_is_the_mean_over_frames_and_clips():
    losses = VideoLosses(LossConfig(lpips=3.0, lpips_network="alex"), "cpu")
    output, video = videos(5)
    posterior = Posterior(*torch.zeros(2, 2, 1, 1, 1, 1))
    terms = losses.generator(
        Reconstruction(output, posterior), video, discriminator=None, last_layer=video, step=0
    )
    images = [x.movedim(1, 2).reshape(-1, 3, 32, 32) for x in (output, video)]
    each = [losses.lpips.network(*(x[i : i + 1] for x in images)).item() for i in range(10)]
    assert terms["lpips"].item() == pytest.approx(3 * sum(each) / 10, rel=1e-5)


def test_without_a_weight_there_is_no_network():
    assert VideoLosses(LossConfig(), "cpu").lpips is None


def test_pieces_give_the_same_distances_and_gradients(monkeypatch):
    model = Lpips("alex")
    output, video = videos(5)
    results = []
    for pixels in (10 * 32 * 32, 3 * 32 * 32, 1):
        monkeypatch.setattr("wanvae.metrics.lpips.PIXELS_AT_ONCE", pixels)
        leaf = output.clone().requires_grad_()
        distances = model(leaf, video)
        distances.sum().backward()
        results.append((distances.detach(), leaf.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-7)


def test_low_precision_is_compared_in_float32():
    model = Lpips("alex")
    output, video = (x.bfloat16() for x in videos(1))
    with torch.autocast("cpu", torch.bfloat16):
        distances = model(output, video)
    assert distances.dtype == torch.float32
    assert torch.equal(distances, model(output.float(), video.float()))


@pytest.mark.parametrize("network", BACKBONES)
def test_weights_come_from_a_file(network, tmp_path):
    path = tmp_path / "backbone.pth"
    backbone = features(BACKBONES[network][0])
    tensors = {f"features.{name}": x for name, x in backbone.state_dict().items()}
    torch.save({**tensors, "classifier.1.weight": torch.zeros(1)}, path)
    model = Lpips(network, path)
    images = videos(1)[0][:, :, 0]
    (*_, last) = model.network.net(images)
    relu = {"vgg": -1, "alex": -1, "squeeze": None}[network]  # all but the last pooling
    torch.testing.assert_close(last, backbone[:relu](images))


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"missing: slice1.0.bias.*of another shape"):
        Lpips("alex", path)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("Torchvision is not installed. Please install torchvision."),
        OSError("<urlopen error [Errno -2] Name or service not known>"),
        RuntimeError('invalid hash value (expected "397923af", got "e3b0c442")'),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(monkeypatch, error):
    def unavailable(net: str, pretrained: bool = False) -> nn.Sequential:
        raise error

    monkeypatch.setattr(lpips, "_get_tv_model_features", unavailable)
    with pytest.raises(ValueError, match="cannot get the weights of vgg16") as told:
        VideoLosses(LossConfig(lpips=1.0), "cpu")
    message = str(told.value)
    assert "\n" not in message
    assert "loss.lpips_weights" in message
    assert "loss.lpips 0" in message


@pytest.mark.parametrize("network", BACKBONES)
def test_frames_too_small_for_the_network_are_told(network):
    model = Lpips(network)
    smallest = BACKBONES[network][1]
    assert model(*videos(1, smallest)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {smallest} pixels a side, not 3 and"):
        model(*videos(1, smallest - 1))
    with pytest.raises(ValueError, match="not 5 and 32x32"):
        model(*torch.zeros(2, 1, 5, 1, 32, 32))


def test_transparent_videos_are_compared_over_gray():
    compare = Lpips("alex")
    output, video = videos(2)
    alpha = torch.linspace(-1, 1, 32).expand(2, 1, 2, 32, 32)
    transparent = [torch.cat([x, alpha], dim=1) for x in (output, video)]
    shown = [x * (alpha + 1) / 2 for x in (output, video)]
    assert torch.equal(compare(*transparent), compare(*shown))
    invisible = [torch.cat([x, -torch.ones_like(alpha)], dim=1) for x in (output, video)]
    assert compare(*invisible).abs().max() == 0
