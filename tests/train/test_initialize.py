"""Models start as image models: new ones, and those that an image model becomes."""

import pytest
import torch

from tests.helpers import QWEN21, random_video, tiny
from wanvae import WanVAEConfig
from wanvae.nn import use_channels_last
from wanvae.train.initialize import FIRST_LOGVAR, inflate, start_as_image_model


@torch.no_grad()
def test_every_frame_is_treated_alone():
    vae = tiny()
    start_as_image_model(vae)
    video = random_video(9)
    latents = vae.encode(video).mode()
    for index, frame in enumerate([0, 4, 8]):  # the last of each group
        image = video[:, :, frame : frame + 1]
        torch.testing.assert_close(latents[:, :, index : index + 1], vae.encode(image).mode())
    decoded = vae.decode(latents)
    for frame in range(9):
        index = -(-frame // 4)
        expected = vae.decode(latents[:, :, index : index + 1])
        torch.testing.assert_close(decoded[:, :, frame : frame + 1], expected)


@torch.no_grad()
def test_latents_start_nearly_certain():
    vae = tiny()
    start_as_image_model(vae)
    spread = vae.encode(random_video(5)).logvar - FIRST_LOGVAR
    assert spread.abs().max() < 4


CONFIGS = [{}, {"attn_scales": (0.5,)}, {"block": "dense", "norm": "batch"}, {"norm": "group"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changes", CONFIGS)
@torch.no_grad()
def test_an_inflated_model_does_what_its_image_model_does(changes, dtype):
    image_vae = tiny(ndim=2, **changes).to(dtype)
    vae = inflate(image_vae)
    for model in (image_vae, vae):
        use_channels_last(model)
    assert vae.config == WanVAEConfig(dim=4, z_dim=2, num_res_blocks=1, **changes)
    assert vae.encode_dtype == vae.decode_dtype == dtype and not vae.training
    image = random_video(1, batch=2).to(dtype)
    of_image, of_video = image_vae(image), vae(image)
    assert torch.equal(of_video.video, of_image.video)
    assert torch.equal(of_video.posterior.mean, of_image.posterior.mean)
    assert torch.equal(of_video.posterior.logvar, of_image.posterior.logvar)
    still = vae.double()(image.double().expand(-1, -1, 9, -1, -1)).video
    expected = image_vae.double()(image.double()).video.expand_as(still)
    torch.testing.assert_close(still, expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_an_inflated_model_with_stage_shortcuts_does_the_same_with_one_frame():
    image_vae = tiny(**QWEN21)
    image = random_video(1, channels=4)
    of_image, of_video = image_vae(image), inflate(image_vae)(image)
    torch.testing.assert_close(of_video.video, of_image.video, rtol=0, atol=1e-11)
    torch.testing.assert_close(of_video.posterior.mean, of_image.posterior.mean)


def test_an_inflated_model_shares_nothing_with_its_image_model():
    image_vae = tiny(ndim=2)
    before = {name: tensor.clone() for name, tensor in image_vae.state_dict().items()}
    for parameter in inflate(image_vae).parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in image_vae.state_dict().items())


def test_a_video_model_cannot_be_inflated():
    with pytest.raises(ValueError, match="this is a video model already"):
        inflate(tiny())
