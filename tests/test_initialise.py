"""A model trained from nothing starts as an image model."""

import torch

from tests.helpers import random_video, tiny
from wanvae.initialise import FIRST_LOGVAR, start_as_image_model


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
