"""The files in configs/ are valid, belong together, and are installed."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from wanvae.engine.arguments import parse_config
from wanvae.train import TrainConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def load(name: str) -> TrainConfig:
    return parse_config(TrainConfig, "test", "", [f"--config={CONFIGS / 'video' / name}"])


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("video/*.yaml")])
def test_a_training_config_is_valid_and_has_a_run_of_its_own(name):
    assert load(name).trainer.run == f"runs/{Path(name).stem}"


def test_each_stage_starts_from_the_one_before():
    first, second = load("stage1_image.yaml"), load("stage2_video.yaml")
    assert (first.model.ndim, first.weights, first.data.frames) == (2, None, 1)
    assert second.model.ndim == 3
    assert second.weights == f"{first.trainer.run}/model.safetensors"
    assert (second.data.size, second.data.frames) == (128, 5)
    assert (second.loss.l1, second.loss.kl, second.loss.lpips) == (3, 3e-6, 3)
    third = load("stage3_gan.yaml")
    assert third.weights == f"{second.trainer.run}/model.safetensors"
    assert third.loss.gan.weight > 0 and second.loss.gan.weight == 0
    assert len({shape.frames for shape in third.data.shapes}) > 1


def test_fine_tuning_leaves_the_encoder_alone():
    config = load("finetune_decoder.yaml")
    assert config.freeze_encoder and config.weights == "Wan2.1_VAE.pth"


@pytest.mark.parametrize(
    ("name", "kind", "machines"),
    [
        ("single", DistributedType.NO, 1),
        ("ddp", DistributedType.MULTI_GPU, 1),
        ("multinode", DistributedType.MULTI_GPU, 2),
    ],
)
def test_accelerate_reads_its_configs(name, kind, machines):
    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    assert config.num_processes % machines == 0


def test_all_configs_are_installed():
    project = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}:
        name = ".".join(["wanvae.configs", *folder.parts])
        if folder == Path("motion"):
            name = "motion.configs"
        assert f'"{name}" = ["*.yaml"]' in project
        assert f'"{name}" = "configs/{folder.as_posix()}"' in project
        assert f'    "{name}",\n' in project
