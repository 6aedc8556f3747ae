"""A smaller half that is fitted to a larger one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from tests.helpers import QWEN21, WAN22, randomize, tiny
from tests.train.short_runs import lines, short_run
from wanvae import WanVAE
from wanvae.engine.training.config import TrainerConfig
from wanvae.errors import UserError
from wanvae.train.distillation import DistillConfig, make_student
from wanvae.train.fitting import fit, walk
from wanvae.train.pruning import choose_spanning, half_of
from wanvae.train.run import TrainConfig, main, start_fitted
from wanvae.train.trainee import require_whole

HALVES = ("decoder", "encoder")
VARIANTS: list[dict[str, object]] = [
    {},
    {"attn_scales": (0.5, 1.0)},
    {"num_res_blocks": 2},
    WAN22,
    QWEN21,
    {"ndim": 2},
    {"upscale_factor": 2},
    {"block": "standard", "norm": "layer", "activation": "gelu"},
    {"block": "bottleneck"},
    {"block": "preactivation", "norm": "none"},
]


def clips_of(vae: WanVAE, half: str, count: int = 3) -> list[Tensor]:
    """What a half takes, of smooth random clips, so that channels say much of each other."""
    generator = torch.Generator().manual_seed(5)
    clips = []
    for number in range(count):
        frames = 1 if vae.config.ndim == 2 or number == 0 else 5
        size = (frames, 32, 32)
        small = torch.randn(1, vae.config.in_channels, 2, 4, 4, generator=generator)
        clip = torch.nn.functional.interpolate(small, size, mode="trilinear").tanh()
        clips.append(clip if half == "encoder" else vae.encode(clip).mode())
    return clips


def outputs(vae: WanVAE, half: str, clips: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        if half == "encoder":
            return [vae.encode_step(x, None)[0] for x in clips]
        return [vae.decode_step(x, None)[0] for x in clips]


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The squared error, relative to the square of what should be."""
    pairs = [*zip(ours, theirs, strict=True)]
    errors = sum(float((x - y).square().sum()) for x, y in pairs)
    return errors / sum(float(y.square().sum()) for _, y in pairs)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("half", HALVES)
@torch.no_grad()
def test_layers_in_step_compute_what_the_model_does(half: str, variant: dict) -> None:
    vae = tiny(**variant).float()
    clips = clips_of(vae, half)

    def convolve(convs, seen, added):
        y = [conv_one(convs[0], x) for x in seen[0]]
        return [y if added is None else [a + b for a, b in zip(y, added[0], strict=True)]]

    def conv_one(conv, x):
        if conv.ndim == 3:
            return conv(x)
        frames = conv(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)

    (found,) = walk((half_of(vae, half).layers,), (clips,), convolve)
    for one, other in zip(found, outputs(vae, half, clips), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_a_fitted_student_is_nearer_to_its_teacher_than_a_pruned_one(
    half: str, variant: dict
) -> None:
    teacher = tiny(**{"dim": 8, **variant}).float()
    clips = clips_of(teacher, half)
    expected = outputs(teacher, half, clips)
    student = require_whole(make_student(teacher, DistillConfig(half=half, dim=4))).eval()
    pruned = error(outputs(student, half, clips), expected)
    fit(teacher, student, half, clips, torch.Generator().manual_seed(0))
    fitted = error(outputs(student, half, clips), expected)
    assert fitted < 0.7 * pruned


@pytest.mark.parametrize("half", HALVES)
def test_a_student_as_wide_as_its_teacher_computes_the_same(half: str) -> None:
    teacher = tiny().float()
    clips = clips_of(teacher, half, 8)
    student = require_whole(make_student(teacher, DistillConfig(half=half, dim=4))).eval()
    fit(teacher, student, half, clips, torch.Generator().manual_seed(0))
    assert error(outputs(student, half, clips), outputs(teacher, half, clips)) < 1e-3


def test_of_channels_that_say_the_same_one_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 100, generator=generator, dtype=torch.float64)
    constant = torch.full((1, 100), 0.1, dtype=torch.float64)
    # A value and its negative, a small constant, and another value twice.
    channels = torch.cat([2 * values[:1], -2 * values[:1], constant, values[1:2], values[1:2] / 2])
    products = channels @ channels.T / 100
    assert choose_spanning(products, 3).tolist() == [0, 2, 3]
    # What is left says nothing new, so the largest come first.
    assert choose_spanning(products, 4).tolist() == [0, 1, 2, 3]


def test_channels_without_content_are_chosen_last() -> None:
    assert choose_spanning(torch.zeros(3, 3, dtype=torch.float64), 2).tolist() == [0, 1]


def test_the_encoder_stays_and_the_teacher_does_not_change() -> None:
    teacher = tiny(dim=8).float()
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    student = require_whole(make_student(teacher, DistillConfig(half="decoder", dim=4)))
    fit(teacher, student, "decoder", clips_of(teacher, "decoder"), torch.Generator())
    assert all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())
    for name, x in student.state_dict().items():
        if name.startswith(("encoder.", "conv1.")):
            assert torch.equal(x, before[name])


@pytest.mark.parametrize("half", HALVES)
def test_a_run_starts_fitted_and_goes_on_bit_for_bit(
    folder: Path, tmp_path: Path, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float()
    randomize(vae)
    vae.save_pretrained(tmp_path / "teacher.safetensors")
    starts = {}
    for start in ("pruned", "fitted"):
        run = tmp_path / start
        given = [f"--weights={tmp_path / 'teacher.safetensors'}", f"--distill.half={half}"]
        given += [f"--distill.start={start}", "--trainer.checkpoint_every=1"]
        assert main([*given, *short_run(folder, run, 2), "--data.frames=5"]) == 0
        starts[start] = lines(run)[0]
    told = "the student is fitted to 24 crops by least squares"
    assert capsys.readouterr().out.count(told) == 1
    whole = (tmp_path / "fitted" / "model.safetensors").read_bytes()
    (tmp_path / "fitted" / "model.safetensors").unlink()
    for path in (tmp_path / "fitted" / "checkpoints").glob("step-*2"):
        path.rename(tmp_path / "away")
    assert main([*given, *short_run(folder, run, 2), "--data.frames=5"]) == 0
    assert (tmp_path / "fitted" / "model.safetensors").read_bytes() == whole
    assert told not in capsys.readouterr().out


class Crops(Dataset[Tensor]):
    """Random crops, which nobody may read but one process."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __getitem__(self, number: int) -> Tensor:
        if self.error is not None:
            raise self.error
        return torch.rand(3, 5, 16, 16, generator=torch.Generator().manual_seed(number)) - 0.5


def fit_to_crops(folder: Path, run: str, crops: Crops, *, other: bool = False) -> dict[str, Tensor]:
    """The state of a student of the teacher in a folder, after the start of a run there.

    Args:
        other: the student begins with other weights.
    """
    config = TrainConfig(
        weights=str(folder / "teacher.safetensors"),
        distill=DistillConfig(half="decoder", start="fitted"),
        trainer=TrainerConfig(run=str(folder / run)),
    )
    teacher = WanVAE.from_pretrained(str(config.weights))
    assert isinstance(teacher, WanVAE)
    student = require_whole(make_student(teacher, config.distill))
    if other:
        randomize(student)
    start_fitted(config, student, crops, Accelerator(cpu=True))
    return student.state_dict()


def fit_as_one_of_two(rank: int, folder: Path) -> None:
    """What the student of process ``rank`` of 2 becomes, in a file; and how an error ends it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    idle = Crops(AssertionError("both processes fit the student"))
    state = fit_to_crops(folder, "two", Crops() if rank == 0 else idle, other=rank == 1)
    torch.save(state, folder / f"{rank}.pt")
    with pytest.raises(UserError if rank == 0 else SystemExit):
        fit_to_crops(folder, "none", Crops(UserError("no crops")))
    dist.destroy_process_group()


def test_one_process_fits_the_student_of_all(tmp_path: Path) -> None:
    vae = tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float()
    randomize(vae)
    vae.save_pretrained(tmp_path / "teacher.safetensors")
    expected = fit_to_crops(tmp_path, "one", Crops())
    torch.multiprocessing.spawn(fit_as_one_of_two, (tmp_path,), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_that_goes_on_fits_nothing(tmp_path: Path) -> None:
    vae = tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float()
    vae.save_pretrained(tmp_path / "teacher.safetensors")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    fit_to_crops(tmp_path, "run", Crops(AssertionError("the student is fitted again")))
