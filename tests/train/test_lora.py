"""LoRAs of a video VAE: training, files, and merging into their base."""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import wanvae.train.run
from tests.helpers import LAUNCHER, WAN22, random_video, tiny
from wanvae import WanVAE, WanVAEConfig, cli
from wanvae.checkpoints.checkpoint import Layout
from wanvae.checkpoints.lora import Base, load_lora, save_lora
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError
from wanvae.nn import use_channels_last
from wanvae.train.lora import (
    LoraConfig,
    LowRankChange,
    add_lora,
    changes_of,
    find_changes,
    load_changes,
    merged,
)
from wanvae.train.run import main
from wanvae.video import read_clip

PARTS = ("decoder", "encoder", "both")
VARIANTS = [{}, {"attn_scales": (0.5,)}, WAN22, {"block": "bottleneck"}]
ENCODER = ("encoder.", "conv1.")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small base, in float32."""
    path = tmp_path / "base.safetensors"
    tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float().save_pretrained(path)
    return path


def options(folder: Path, weights: Path, run: Path, steps: int) -> list[str]:
    return [
        f"--weights={weights}",
        f"--data.folder={folder}",
        "--data.size=16",
        "--loss.lpips=0",
        "--loss.l1_reduction=mean",
        "--lora.rank=2",
        f"--trainer.run={run}",
        f"--trainer.steps={steps}",
        "--trainer.batch_size=2",
        "--trainer.warmup_steps=2",
        "--trainer.learning_rate=1e-2",
        "--trainer.log_every=1",
        "--trainer.tracker=none",
        "--trainer.workers=0",
    ]


@torch.no_grad()
def with_lora(vae: WanVAE, part: str = "both", rank: int = 2, noise: float = 0.1) -> WanVAE:
    """A copy of ``vae`` with a LoRA that changes something."""
    changed = copy.deepcopy(vae)
    add_lora(changed, LoraConfig(rank=rank, alpha=3.0, part=part))
    generator = torch.Generator().manual_seed(1)
    for change in find_changes(changed).values():
        random = torch.randn(change.up.shape, generator=generator, dtype=change.up.dtype)
        change.up.copy_(noise * random)
    return changed


def tensors_of(path: Path) -> dict[str, Tensor]:
    return WanVAE.from_pretrained(path).state_dict()


def contents(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def trained_models(monkeypatch: pytest.MonkeyPatch) -> list[WanVAE]:
    """The models that runs train, as they are afterwards."""
    models = []
    first_model = wanvae.train.run.first_model

    def keep(config: wanvae.train.run.TrainConfig) -> WanVAE:
        models.append(first_model(config))
        return models[-1]

    monkeypatch.setattr(wanvae.train.run, "first_model", keep)
    return models


# The layer


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_a_new_lora_changes_no_bit(variant: dict, part: str) -> None:
    vae = tiny(**variant).float()
    use_channels_last(vae)
    changed = copy.deepcopy(vae)
    add_lora(changed, LoraConfig(rank=2, part=part))
    layers = [vae.get_submodule(name) for name in find_changes(changed)]
    for layer, like in zip(find_changes(changed), layers, strict=True):
        assert changed.get_submodule(layer).weight.stride() == like.weight.stride()
    video = random_video(5, 32).float()
    assert torch.equal(changed(video).video, vae(video).video)
    assert torch.equal(changed.encode(video).mode(), vae.encode(video).mode())


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_clips_streams_and_tiles_with_a_lora_are_the_ones_of_the_merged_model(
    variant: dict,
) -> None:
    base = tiny(**variant)
    vae = with_lora(base)
    plain = merged(vae)
    assert not find_changes(plain)
    assert plain.state_dict().keys() == base.state_dict().keys()
    video = random_video(9, 48, 48)
    latents = plain.encode(video).mode()
    assert torch.equal(vae.encode(video).mode(), latents)
    expected = plain.decode(latents)
    assert (expected - base.decode(latents)).abs().max() > 1e-3
    assert torch.equal(vae.decode(latents), expected)
    tiles = {} if variant.get("attn_scales") else {"tile_size": 32}
    torch.testing.assert_close(vae.decode(latents, **tiles), expected, rtol=0, atol=1e-9)
    state, parts = None, []
    for piece in latents.split(1, dim=2):
        part, state = vae.decode_step(piece, state)
        parts.append(part)
    whole = vae.decode_step(latents, None)[0]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_go_to_the_lora_alone_and_are_the_same_with_checkpointing(part: str) -> None:
    vae = with_lora(tiny(), part).train()
    trained = {name for name, p in vae.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".0.up", ".0.down")) for name in trained)
    halves = {name.startswith(ENCODER) for name in trained}
    assert halves == {"decoder": {False}, "encoder": {True}, "both": {True, False}}[part]
    video, gradients = random_video(5, 16), []
    for recompute in (False, True):
        torch.manual_seed(0)
        vae(video, recompute=recompute).video.square().mean().backward()
        gradients.append({n: p.grad for n, p in vae.named_parameters() if p.grad is not None})
        assert gradients[-1].keys() == trained
        vae.zero_grad()
    assert all(torch.equal(gradients[1][name], g) for name, g in gradients[0].items())
    assert vae.encoder_is_frozen == (part == "decoder")
    assert vae.encoder.training == (part != "decoder")


def test_autocast_does_not_round_the_weight() -> None:
    weight = torch.randn(6, 4, 3, 3, 3)
    change = LowRankChange(weight, 2, 0.5)
    torch.nn.init.normal_(change.up)
    expected = change(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change(weight), expected)


@pytest.mark.parametrize(("config", "most"), [(WanVAEConfig(), 4e6), (WanVAEConfig(ndim=2), 4e6)])
def test_a_lora_of_the_full_size_decoder_takes_a_few_mb(config: WanVAEConfig, most: float) -> None:
    with torch.device("meta"):
        vae = WanVAE(config)
    # The rank of lora.yaml.
    add_lora(vae, LoraConfig(rank=4))
    size = sum(4 * p.numel() for p in vae.parameters() if p.requires_grad)
    assert most / 4 < size < most
    assert size < sum(4 * p.numel() for p in vae.parameters()) / 60


# The file


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_holds_the_lora_exactly(variant: dict, tmp_path: Path) -> None:
    vae, path = with_lora(tiny(**variant).float()), tmp_path / "lora.safetensors"
    save_lora(path, changes_of(vae), Base("base.pth", "1" * 64), {"more": "this"})
    other = copy.deepcopy(vae)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    load_changes(other, path)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), other.parameters(), strict=True))
    with safe_open(path, "pt") as file:
        expected = {"format": "wanvae-lora", "base": "base.pth", "base_digest": "1" * 64}
        assert file.metadata() == {**expected, "more": "this"}


def test_a_file_of_another_lora_is_refused(tmp_path: Path) -> None:
    vae, path = with_lora(tiny(), rank=2), tmp_path / "lora.safetensors"
    for other in (with_lora(tiny(), rank=3), with_lora(tiny(), "decoder")):
        save_lora(path, changes_of(other), Base("a", "b"), {})
        with pytest.raises(CheckpointError, match="LoRA of other layers, of another rank or alpha"):
            load_changes(vae, path)
    tiny().save_pretrained(path)
    with pytest.raises(CheckpointError, match="it is no LoRA"):
        load_changes(vae, path)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_convert_merges_it_to_the_same_model(variant: dict, part: str, tmp_path: Path) -> None:
    base, lora, target = (tmp_path / f"{name}.safetensors" for name in ("base", "lora", "merged"))
    vae = tiny(**variant).float()
    vae.save_pretrained(base)
    changed = with_lora(vae, part, rank=3)
    save_lora(lora, changes_of(changed), Base.of(str(base)), {})
    notes = convert(base, target, Layout.NATIVE, lora=lora).notes
    assert any(f"into {len(changes_of(changed))} layers" in note for note in notes)
    ranks = {len(change.down) for change in changes_of(changed).values()}
    told = "3" if ranks == {3} else f"{min(ranks)} to 3"
    assert any(f"a LoRA of rank {told} into" in note for note in notes)
    assert not any("other weights" in note for note in notes)
    expected, found = merged(changed).state_dict(), tensors_of(target)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        touched = part in ("both", "encoder" if name.startswith(ENCODER) else "decoder")
        if not (touched and name.endswith(".weight")):
            assert torch.equal(found[name], vae.state_dict()[name])


def test_merging_into_another_base_is_told_and_into_another_layout_of_the_same_is_not(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, official, other = (tmp_path / name for name in ("lora.safetensors", "a.pth", "b.pth"))
    vae = WanVAE.from_pretrained(weights)
    save_lora(lora, changes_of(with_lora(vae)), Base.of(str(weights)), {})

    def merge(base: Path) -> str:
        target = str(tmp_path / "merged.safetensors")
        assert cli.main(["convert", str(base), target, "--lora", str(lora)]) == 0
        return capsys.readouterr().out

    torch.save(vae.state_dict(), official)
    assert "other weights" not in merge(official)
    assert str(tmp_path) not in str(Base.of(str(weights)))
    vae.conv2.bias.data[0] += 1
    torch.save(vae.state_dict(), other)
    said = merge(other)
    assert "the LoRA was trained on base.safetensors (digest " in said
    assert "a model with other weights (digest " in said


def test_a_dtype_that_is_asked_for_keeps_all_of_a_lora_of_a_half_base(tmp_path: Path) -> None:
    base, lora, target = (tmp_path / f"{name}.safetensors" for name in ("base", "lora", "merged"))
    half = tiny().bfloat16()
    half.save_pretrained(base)
    changed = with_lora(half.float(), noise=1e-4)
    save_lora(lora, changes_of(changed), Base.of(str(base)), {})
    notes = convert(base, target, Layout.NATIVE, torch.float32, lora=lora).notes
    assert not any("other weights" in note for note in notes)
    for name, tensor in merged(changed).state_dict().items():
        torch.testing.assert_close(tensors_of(target)[name], tensor, rtol=0, atol=1e-7)
    convert(base, target, Layout.NATIVE, lora=lora)
    assert WanVAE.from_pretrained(target, "bfloat16").conv2.weight.dtype == torch.bfloat16


def test_a_lora_is_no_model_and_the_error_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, changes_of(with_lora(tiny())), Base("a", "b"), {})
    assert cli.main(["info", str(path)]) == 1
    assert "wanvae convert MODEL OUT --lora FILE" in capsys.readouterr().err


# Training


def test_a_lora_leaves_the_statistics_of_norms_alone(
    folder: Path, tmp_path: Path, trained_models: list[WanVAE]
) -> None:
    """The file of the LoRA has no place for others."""
    base = tmp_path / "base.safetensors"
    tiny(norm="batch", dim_mult=(1, 2), temporal_downsample=(True,)).float().save_pretrained(base)
    assert main(options(folder, base, tmp_path / "run", 2)) == 0
    (vae,) = trained_models
    before, after = tensors_of(base), vae.state_dict()
    names = [name for name in before if ".running_" in name]
    assert names and all(torch.equal(after[name], before[name]) for name in names)


@pytest.mark.parametrize("part", PARTS)
def test_training_improves_the_lora_and_leaves_the_base_alone(
    folder: Path,
    weights: Path,
    tmp_path: Path,
    part: str,
    trained_models: list[WanVAE],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    more = [f"--lora.part={part}", "--lora.alpha=4", "--trainer.weight_decay=0.1", "--loss.kl=1e-7"]
    more += ["--trainer.batch_size=1", "--trainer.learning_rate=3e-2"]
    assert main([*options(folder, weights, run, 15), *more]) == 0
    said = capsys.readouterr().out
    (vae,) = trained_models
    count = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    assert f"a LoRA of rank 2 in {len(changes_of(vae))} layers: {count} parameters" in said
    assert f"--lora {run / 'lora.safetensors'}\n" in said
    assert not (run / "model.safetensors").exists()
    before = tensors_of(weights)
    kept = {
        n.replace(".parametrizations.weight.original", ".weight"): t
        for n, t in vae.state_dict().items()
        if ".weight.0." not in n
    }
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
    target = tmp_path / "merged.safetensors"
    convert(weights, target, Layout.NATIVE, lora=run / "lora.safetensors")
    video = read_clip(folder / "waves.mp4", 0, 5)[None]
    plain, vae = WanVAE.from_pretrained(target), vae.eval()
    latents = vae.encode(video).mode()
    torch.testing.assert_close(plain.encode(video).mode(), latents, rtol=1e-5, atol=1e-5)
    decoded = vae.decode(latents)
    torch.testing.assert_close(plain.decode(latents), decoded, rtol=1e-4, atol=1e-4)
    base = WanVAE.from_pretrained(weights)
    assert torch.equal(plain.encode(video).mode(), base.encode(video).mode()) == (part == "decoder")
    assert torch.equal(plain.decode(latents), base.decode(latents)) == (part == "encoder")
    with torch.no_grad():
        errors = [(each(video).video - video).abs().mean() for each in (plain, base)]
    assert errors[0] < 0.97 * errors[1]


def test_a_file_of_a_run_says_what_it_is(folder: Path, weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options(folder, weights, run, 1), "--lora.alpha=3"]) == 0
    with safe_open(run / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["base"] == "base.safetensors"
    assert metadata["base_digest"] == Base.of(str(weights)).digest
    assert json.loads(metadata["lora"]) == {"rank": 2, "alpha": 3.0, "part": "decoder"}
    assert json.loads(metadata["config"])["dim_mult"] == [1, 2]
    assert str(tmp_path) not in str(metadata)
    assert all(change.scale == 1.5 for change in load_lora(run / "lora.safetensors").values())


def test_an_interrupted_lora_goes_on_as_if_it_had_not_been(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--trainer.ema_decay=0.9", "--trainer.accumulate=2", "--trainer.checkpoint_every=2"]
    more += ["--gradient_checkpointing=true", "--lora.alpha=0.3"]
    assert main([*options(folder, weights, whole, 4), *more]) == 0
    shutil.copytree(whole / "checkpoints", cut / "checkpoints")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    assert main([*options(folder, weights, cut, 4), *more]) == 0
    last = Path("checkpoints") / "step-00000004"
    names = "lora.safetensors", last / "model.safetensors", last / "ema.safetensors"
    for name in names:
        expected, found = contents(whole / name), contents(cut / name)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # The average is what the run ends with.
    (end, raw, average) = (contents(whole / name) for name in names)
    assert all(torch.equal(end[name], tensor) for name, tensor in average.items())
    assert not all(torch.equal(end[name], tensor) for name, tensor in raw.items())


@pytest.mark.parametrize("part", PARTS)
def test_a_lora_trains_against_a_discriminator_in_bfloat16(
    folder: Path, weights: Path, tmp_path: Path, part: str
) -> None:
    more = ["--loss.gan.weight=0.5", "--loss.gan.dim=8", "--loss.gan.layers=1"]
    more += ["--trainer.mixed_precision=bf16", f"--lora.part={part}"]
    run = tmp_path / "run"
    assert main([*options(folder, weights, run, 2), *more]) == 0
    content = contents(run / "lora.safetensors")
    assert {tensor.dtype for tensor in content.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in content.items() if "lora_up" in name)


def test_what_is_judged_is_the_merged_model(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, evaluate = [], wanvae.train.run.evaluate

    def watch(vae: WanVAE, *arguments: object, **options: object) -> object:
        judged.append(vae)
        return evaluate(vae, *arguments, **options)

    monkeypatch.setattr(wanvae.train.run, "evaluate", watch)
    run, target = tmp_path / "run", tmp_path / "merged.safetensors"
    more = [f"--evaluation.folder={folder}", "--evaluation.frames=5", "--evaluation.size=16"]
    assert main([*options(folder, weights, run, 3), *more]) == 0
    convert(weights, target, Layout.NATIVE, lora=run / "lora.safetensors")
    (vae,) = judged
    assert not vae.training
    for name, tensor in tensors_of(target).items():
        torch.testing.assert_close(vae.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
    assert (run / "previews" / "step-00000003.png").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora.rank=0"], "lora.rank must be at least 1, not 0"),
        (["--lora.rank=-3"], "lora.rank must be at least 1, not -3"),
        (["--lora.rank=null", "--lora.alpha=2"], "lora.alpha must be left out without lora.rank"),
        (["--lora.rank=null", "--lora.part=both"], "lora.part must be left out without lora.rank"),
        (["--lora.alpha=0"], "lora.alpha must be above 0 and finite, not 0.0"),
        (["--weights=null"], "lora.rank needs weights"),
        (["--freeze_encoder=true", "--lora.part=both"], "but lora.part is 'both'"),
        (
            ["--loss.alignment.weight=1", "--loss.alignment.network=dino"],
            "an alignment trains the whole encoder",
        ),
        (["--lora.part=middle"], "lora.part"),
    ],
)
def test_nonsense_is_refused_before_anything_is_read(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*options(tmp_path, tmp_path / "base.pth", tmp_path / "run", 1), *more])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("rank", [64, 10**12])
def test_a_rank_that_saves_nothing_is_refused(
    folder: Path, weights: Path, tmp_path: Path, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options(folder, weights, tmp_path / "run", 1), f"--lora.rank={rank}"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"lora.rank is {rank}: such a LoRA has " in error and "choose a smaller rank" in error


def test_a_base_that_is_missing_or_is_no_base_is_refused(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, lora = tmp_path / "image.safetensors", tmp_path / "lora.safetensors"
    vae = tiny(ndim=2).float()
    vae.save_pretrained(image)
    save_lora(lora, changes_of(with_lora(vae)), Base("a", "b"), {})
    for base, said in (
        (tmp_path / "nowhere.pth", "nowhere.pth"),
        (image, "a LoRA of a video model cannot be merged into it: set model.ndim to 2"),
        (lora, "it changes another model"),
    ):
        assert main(options(folder, base, tmp_path / "run", 1)) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    more = ["--model.ndim=2", "--data.frames=1", "--data.size=32"]
    assert main([*options(folder, image, tmp_path / "run", 1), *more]) == 0


def test_a_run_goes_on_only_with_the_same_lora_and_base(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(folder, weights, tmp_path / "run", 1)
    assert main(arguments) == 0
    capsys.readouterr()
    for change, said in (
        ("--lora.rank=3", "lora.rank is 2, not 3"),
        ("--lora.alpha=1", "lora.alpha is None, not 1.0"),
        ("--lora.part=both", "lora.part is 'decoder', not 'both'"),
        ("--lora.rank=null", "lora.rank is 2, not None"),
    ):
        assert main([*arguments, change]) == 1
        assert said in capsys.readouterr().err
    vae = WanVAE.from_pretrained(weights)
    vae.conv2.bias.data[0] += 1
    vae.save_pretrained(weights)
    assert main(arguments) == 1
    assert "(digest " in capsys.readouterr().err


def test_the_lora_does_not_replace_its_base(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "run" / "lora.safetensors"
    base.parent.mkdir()
    shutil.copy(weights, base)
    assert main(options(folder, base, tmp_path / "run", 1)) == 1
    assert "lora.safetensors" in capsys.readouterr().err
    assert base.read_bytes() == weights.read_bytes()


@pytest.mark.slow
def test_two_processes_train_the_lora_of_one_with_as_many_batches(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    more = ["--trainer.optimizer=sgd", "--trainer.ema_decay=0.5"]
    assert main([*options(folder, weights, alone, 3), *more, "--trainer.accumulate=2"]) == 0
    command = [*LAUNCHER, "-m", "wanvae.train", *options(folder, weights, shared, 3), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a LoRA of rank 2") == 1
    expected, found = (contents(run / "lora.safetensors") for run in (alone, shared))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert any(tensor.any() for name, tensor in found.items() if "lora_up" in name)
