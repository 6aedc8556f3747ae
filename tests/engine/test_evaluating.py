"""Evaluation mode for a while."""

import torch
from torch import nn

from wanvae.engine.evaluating import evaluating


def test_every_layer_is_as_it_was_after_the_block():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    x = torch.ones(3, 2, requires_grad=True)
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not model(x).requires_grad
            raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == before
    assert model(x).requires_grad
