"""The models of configs/motion are valid and can do what the files say."""

from pathlib import Path

import pytest
import torch
import yaml

from motion import RVQVAE, MotionVAE, RVQVAEConfig
from motion.models import make_model
from motion.networks.receptive import receptive_field
from wanvae.engine.config import from_json_dict, to_json_dict

CONFIGS = Path(__file__).parents[2] / "configs" / "motion"


def load(name: str) -> RVQVAEConfig:
    content = yaml.safe_load((CONFIGS / name).read_text())
    return from_json_dict(RVQVAEConfig, content.get("model", {}))


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.yaml")])
def test_a_model_is_valid_and_goes_through_json(name):
    config = load(name)
    assert from_json_dict(RVQVAEConfig, to_json_dict(config)) == config
    with torch.device("meta"):
        motion = torch.empty(1, config.channels, config.frames_of(3))
        model = make_model(config)
        assert model.encoder(motion).shape == (1, config.moments, 3)


def test_the_vae_streams():
    with torch.device("meta"):
        model = make_model(load("beat2_vae.yaml")).eval()
        assert isinstance(model, MotionVAE)
        model.stream_encode()


def test_wan1d_streams():
    config = load("wan1d.yaml")
    assert config.network == "wan"
    assert receptive_field(config).lookahead == config.factor - 1
    with torch.device("meta"):
        RVQVAE(config).eval().stream_encode()
