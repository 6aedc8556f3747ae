"""Frozen networks of transformers, small and with random weights, and runs that align to one."""

import json
import os
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import launched, random_video
from wanvae import WanVAE, cli
from wanvae.errors import UserError
from wanvae.train.frozen_features import MEAN, STD, FrozenFeatures, pixel_statistics
from wanvae.video import write_video

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "image_size": 16,
}
KINDS = {
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "dinov3_vit": "DINOv3ViT",
    "vit": "ViT",
    "clip_vision_model": "CLIPVision",
    "siglip_vision_model": "SiglipVision",
}


def write_network(folder: Path, kind: str = "dinov2") -> Path:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{KINDS[kind]}Config", None)
    if config is None:
        pytest.skip("this version of transformers has no such network")
    torch.manual_seed(0)
    options = {"num_register_tokens": 2} if kind in ("dinov2_with_registers", "dinov3_vit") else {}
    getattr(transformers, f"{KINDS[kind]}Model")(config(**SMALL, **options)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_patch_of_a_frame_has_its_feature(kind, tmp_path):
    network = FrozenFeatures(str(write_network(tmp_path, kind)))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    video = random_video(2, 24, 32, batch=2).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        features = network(video, 3, 4)
    assert features.shape == (2, network.channels, 2, 3, 4)
    assert features.dtype == torch.float32 and not features.requires_grad
    # A frame does not depend on others, and a patch sees itself most.
    torch.testing.assert_close(network(video[1:, :, 1:], 3, 4)[0, :, 0], features[1, :, 1])
    changed = video.detach().clone()
    changed[0, :, 0, 16:, 24:] *= -1  # the patch in the last row and column
    change = (network(changed, 3, 4) - features)[0, :, 0].square().sum(0)
    assert change.argmax() == 11


@pytest.mark.slow
def test_frames_are_prepared_as_the_folder_says(tmp_path):
    folder = write_network(tmp_path)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    network = FrozenFeatures(str(folder))
    video = random_video(1, 8, 8, channels=4).float()
    gray = video[:, :3] * (video[:, 3:] + 1) / 2
    pixels = F.interpolate((gray[:, :, 0] + 1) / 2, (16, 24), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics.values())
    tokens = network.network(pixel_values=(pixels - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(network(video, 4, 6)[0, :, 0].flatten(1).T, tokens[0])


def test_pixel_statistics_are_usual_or_three_numbers(tmp_path):
    assert [value.tolist() for value in pixel_statistics(tmp_path).values()] == [
        pytest.approx(MEAN),
        pytest.approx(STD),
    ]
    path = tmp_path / "preprocessor_config.json"
    for content in ('{"image_mean": [1, 2]}', '{"image_std": [1, 2, "3"]}', "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match="has no three numbers as image_"):
            pixel_statistics(tmp_path)


@pytest.mark.slow
def test_a_folder_without_a_network_is_refused_and_runs_no_code_of_it(tmp_path):
    for name in ("", "nowhere"):
        with pytest.raises(UserError, match=r"which is no folder|needs config\.json"):
            FrozenFeatures(str(tmp_path / name))
    config = {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of the kind 'bert', whose output has another form"):
        FrozenFeatures(str(tmp_path))
    config = {"model_type": "new", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="no network that transformers can load"):
        FrozenFeatures(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    network = write_network(tmp_path / "pickled")
    weights = network / "model.safetensors"
    weights.unlink()
    torch.save({}, network / "pytorch_model.bin")
    with pytest.raises(UserError, match="no network that transformers can load"):
        FrozenFeatures(str(network))


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path):
    """With all regularizers. An adaptive weight would follow from the batches of one part alone."""
    network, folder = write_network(tmp_path / "network"), tmp_path / "videos"
    folder.mkdir()
    t, y, x = torch.meshgrid(torch.arange(12), torch.arange(32), torch.arange(48), indexing="ij")
    video = 0.7 * torch.stack([torch.sin(x / 9 + t / 5), torch.sin(y / 7 - t / 6), x / 48])
    write_video(folder / "waves.mp4", video, Fraction(25))

    def options(run: str, accumulate: int) -> list[str]:
        return [
            *("train", f"--config={CONFIGS / 'video' / 'tiny.yaml'}", f"--data.folder={folder}"),
            *("--data.size=16", "--model.dim=4", "--model.dim_mult=[1,2]"),
            *("--model.temporal_downsample=[true]", f"--trainer.run={tmp_path / run}"),
            *("--trainer.steps=3", "--trainer.batch_size=2", "--trainer.workers=0"),
            *("--trainer.warmup_steps=0", f"--trainer.accumulate={accumulate}"),
            *("--trainer.optimizer=sgd", "--trainer.learning_rate=0.1", "--trainer.tracker=none"),
            *("--loss.equivariance.weight=1", "--loss.channel_dropout.weight=1"),
            *("--loss.alignment.weight=0.5", f"--loss.alignment.network={network}"),
            "--loss.alignment.adaptive=false",
        ]

    assert cli.main(options("one", 2)) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        launched(*options("two", 1)), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        WanVAE.from_pretrained(tmp_path / run / "model.safetensors").state_dict()
        for run in ("one", "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
