"""Which versions are warned of."""

import warnings

import pytest
import torch

from wanvae.engine.cudnn import warn_of_convolutions

GPU = torch.device("cuda")


@pytest.mark.parametrize("release", ["2.9.0", "2.9.1+cu128", "2.10.0"])
@pytest.mark.parametrize("cudnn", [90800, 91002, 91400])
def test_bad_versions_are_named(monkeypatch, release, cudnn):
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    with pytest.warns(UserWarning, match=rf"cuDNN 9\.{cudnn // 100 % 100} with PyTorch 2\.(9|10) "):
        warn_of_convolutions(GPU, {torch.float32, torch.bfloat16})


@pytest.mark.parametrize(
    ("release", "cudnn", "device", "dtype"),
    [
        ("2.8.0", 91000, GPU, torch.bfloat16),
        ("2.11.0", 91000, GPU, torch.bfloat16),
        ("2.9.0", 91500, GPU, torch.bfloat16),
        ("2.9.0", 90700, GPU, torch.bfloat16),
        ("2.9.0", None, GPU, torch.bfloat16),
        ("2.9.0", 91000, torch.device("cpu"), torch.bfloat16),
        ("2.9.0", 91000, GPU, torch.float16),
    ],
)
def test_others_are_not(monkeypatch, release, cudnn, device, dtype):
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_convolutions(device, {dtype})
