"""The files in configs/ are valid, belong together, and are installed."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

import motion.train.run
import wanvae.train.run
from wanvae import WanVAE
from wanvae.demo import demo_weights
from wanvae.engine.command_line.arguments import parse_config
from wanvae.train.linear_start import check_linear

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
KINDS = {"motion": motion.train.run.TrainConfig, "video": wanvae.train.run.TrainConfig}
FILES = [f"{kind}/{path.name}" for kind in KINDS for path in (CONFIGS / kind).glob("*.yaml")]


def load(name: str) -> wanvae.train.run.TrainConfig | motion.train.run.TrainConfig:
    kind = KINDS[name.partition("/")[0]]
    return parse_config(kind, "test", "", [f"--config={CONFIGS / name}"])


@pytest.mark.parametrize("name", FILES)
def test_a_training_config_is_valid_and_has_a_run_of_its_name(name):
    run = Path(load(name).trainer.run)
    assert run.parent == Path("runs") and run.name.endswith(Path(name).stem)


def test_no_two_configs_have_the_same_run():
    assert len({load(name).trainer.run for name in FILES}) == len(FILES)


def test_each_stage_starts_from_the_one_before():
    first, second = load("video/stage1_image.yaml"), load("video/stage2_video.yaml")
    assert (first.model.ndim, first.weights, first.data.frames) == (2, None, 1)
    assert second.model.ndim == 3
    assert second.weights == f"{first.trainer.run}/model.safetensors"
    assert (second.data.size, second.data.frames) == (128, 5)
    assert (second.loss.l1, second.loss.kl, second.loss.lpips) == (3, 3e-6, 3)
    third = load("video/stage3_gan.yaml")
    assert third.weights == f"{second.trainer.run}/model.safetensors"
    assert third.loss.gan.weight > 0 and second.loss.gan.weight == 0
    assert len({shape.frames for shape in third.data.shapes}) > 1


def test_fine_tuning_leaves_the_encoder_alone():
    config = load("video/finetune_decoder.yaml")
    assert config.freeze_encoder and config.weights == "Wan2.1_VAE.pth"


def test_a_lora_leaves_the_encoder_and_the_rest_of_fine_tuning_alone():
    lora, whole = load("video/lora.yaml"), load("video/finetune_decoder.yaml")
    assert (lora.lora.rank, lora.lora.part, lora.weights) == (4, "decoder", whole.weights)
    assert (lora.data, lora.loss) == (whole.data, whole.loss)


def test_a_distillation_trains_one_half_and_judges_it_by_more_than_pixels():
    for half in ("decoder", "encoder"):
        config = load(f"video/distill_{half}.yaml")
        assert (config.distill.half, config.weights) == (half, "Wan2.1_VAE.pth")
        assert config.distill.features > 0 and config.loss.lpips > 0
        assert (config.distill.posterior > 0) == (half == "encoder")


def test_an_upscaling_decoder_leaves_the_encoder_alone():
    config = load("video/upscale2x.yaml")
    assert config.freeze_encoder and config.model.upscale_factor == 2
    assert {(shape.height % 16, shape.width % 16) for shape in config.data.shapes} == {(0, 0)}


def test_the_small_model_of_the_package_starts_from_a_linear_codec():
    config = load("video/demo.yaml")
    assert config.model == WanVAE.from_pretrained(demo_weights()).config
    check_linear(config.model)


def test_the_motion_of_the_seed_and_of_the_published_models():
    seed, published = load("motion/beat2_330.yaml"), load("motion/beat2_330_growth3.yaml")
    assert seed.model.resnet.dilation_growth_rate == (3, 9)
    assert (seed.model.channels, seed.data.window, seed.model.tokens_of(128)) == (330, 128, 32)
    assert published.model.resnet.dilation_growth_rate == (3, 3)
    for name in ("humanml3d", "kit"):
        config = load(f"motion/{name}.yaml")
        assert config.model.features is None and config.data.feature_bias == 5
        assert (config.loss.position, config.loss.commitment) == (0.5, 0.02)
        assert (config.trainer.batch_size, config.data.window) == (256, 64)
        assert (config.trainer.learning_rate, config.trainer.betas) == (2e-4, (0.9, 0.99))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("motion/")])
def test_windows_of_motion_are_whole_tokens_of_its_features(name):
    config = load(name)
    model, window = config.model, config.data.window
    assert model.frames_of(model.tokens_of(window)) == window
    if model.features is not None:
        joints = 22 if name == "motion/body.yaml" else 55
        assert model.channels == model.features.channels(joints)


@pytest.mark.parametrize(
    ("name", "kind", "machines"),
    [
        ("single", DistributedType.NO, 1),
        ("cpu", DistributedType.MULTI_GPU, 1),
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
