"""LPIPS of the evaluation is the network of the loss, or what is there; nothing is downloaded."""

from types import SimpleNamespace

import pytest
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from tests.metrics.test_lpips import features
from wanvae.errors import UserError
from wanvae.metrics.lpips import Lpips
from wanvae.train.judging import find_lpips
from wanvae.train.losses import LossConfig


def losses(network: Lpips | None = None, **options: object) -> SimpleNamespace:
    return SimpleNamespace(lpips=network, config=LossConfig(**options))


@pytest.fixture
def downloads(monkeypatch):
    """Asks for networks with weights of the internet."""
    asked = []

    def get(net: str, pretrained: bool = False):
        asked.append(pretrained)
        return features(net)

    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", get)
    monkeypatch.setattr("wanvae.metrics.lpips.find_spec", lambda name: name)
    return asked


def test_without_weights_it_is_left_out_and_not_downloaded(downloads, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    reason = find_lpips(losses(), 64)
    assert "alexnet were not downloaded" in reason
    assert "loss.lpips_weights, with loss.lpips_network alex" in reason
    assert downloads == []


def test_the_network_of_the_loss_is_taken_if_clips_are_large_enough(downloads):
    network = Lpips("vgg")
    assert find_lpips(losses(network, lpips=1.0), 16) is network
    assert find_lpips(losses(network, lpips=1.0), 15) == (
        "it needs clips of 16 pixels or more (evaluation.size)"
    )


def test_named_weights_need_torchvision(monkeypatch):
    monkeypatch.setattr("wanvae.metrics.lpips.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"loss.lpips_weights, .*: torchvision is not installed"):
        find_lpips(losses(lpips_weights="vgg16.pth"), 64)
