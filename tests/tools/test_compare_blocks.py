"""The comparison of residual blocks, at its smallest size."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools import compare_blocks
from tools.compare_blocks import FULL, PARTS, REFERENCE, VARIANTS
from tools.comparing import BenchmarkError, Results, count_parameters
from wanvae.nn.residual import BlockSpec, make_block
from wanvae.video import write_video


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    generator = torch.Generator().manual_seed(0)
    for name in ("seen", "judged"):
        video = torch.rand(3, 6, 64, 64, generator=generator) * 2 - 1
        write_video(folder / f"{name}.mp4", video, Fraction(10))
    return ["--quick", "--steps", "2", "--videos", str(folder), "--held-out", "judged"]


@pytest.mark.slow
def test_a_whole_comparison(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "blocks.json"
    assert compare_blocks.main([*options, "--json", str(path), "--plot", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {variant} ") == 2 for variant in VARIANTS)
    assert f"| {REFERENCE}, 4 " in printed
    for name in ("block_training.png", "block_gradients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    content = json.loads(path.read_text())
    assert content["headers"].keys() == set(PARTS)
    for kind, figure in (("video", "psnr"), ("motion", "mpjpe")):
        for variant in VARIANTS:
            run = content["results"][f"{kind}/{variant}/0.001/0"]
            assert len(run["loss"]) == run["steps"][-1] == 2
            assert len(run["figures"][figure]) == len(run["steps"])
    # Nothing is left to do, and the file says all of what was printed.
    assert compare_blocks.main(["--report", "--json", str(path)]) == 0
    assert capsys.readouterr().out == printed
    assert compare_blocks.main([*options, "--json", str(path), "--only", "gradients"]) == 0
    again = json.loads(path.read_text())
    assert again["results"] == content["results"]
    capsys.readouterr()
    assert compare_blocks.main([*options, "--steps", "3", "--json", str(path)]) == 1
    assert "was measured with steps 2, not 3" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_agree(variant: str) -> None:
    video, motion = (
        compare_blocks.find_video_config(FULL, variant),
        compare_blocks.find_motion_config(FULL, variant),
    )
    with torch.device("meta"):
        pairs = (
            (compare_blocks.make_video(video, variant), FULL.video),
            (compare_blocks.make_motion(motion, variant), FULL.motion),
        )
        for model, reference in pairs:
            wanted = count_parameters(type(model)(reference))
            assert count_parameters(model) == pytest.approx(wanted, rel=0.0205)


def test_none_is_the_standard_block_without_its_shortcut() -> None:
    standard, none = (
        compare_blocks.make_video(compare_blocks.QUICK.video, variant)
        for variant in (REFERENCE, "none")
    )
    tensors = standard.state_dict()
    projections = {name for name in tensors if ".shortcut." in name}
    assert projections and none.state_dict().keys() == tensors.keys() - projections
    assert all(tensor.shape == tensors[name].shape for name, tensor in none.state_dict().items())

    block = make_block(2, 4, 4, BlockSpec(kind="standard"))
    x = torch.randn(1, 4, 5, 5)
    expected = block(x), block.post_activation(block.body(x))
    compare_blocks.without_shortcuts(block)
    assert torch.equal(block(x), expected[1])
    assert not torch.allclose(*expected)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_gradients_are_those_at_the_inputs_of_blocks() -> None:
    stack = nn.Sequential(Scaled(2), Scaled(3), Scaled(0.5))
    norms = compare_blocks.gradient_norms(stack, torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(norms, torch.tensor([3.0, 1.5, 0.5]))


def test_without_norm_the_shortcut_carries_the_gradient() -> None:
    reached = {
        variant: compare_blocks.measure_stack_gradients(FULL, variant, "none", "silu", depth=10)[0]
        for variant in ("preactivation", "none")
    }
    assert reached["none"] < 1e-6 < 0.5 < reached["preactivation"]


def test_the_videos_that_are_held_out_are_not_learnt(options: list[str]) -> None:
    folder = Path(options[options.index("--videos") + 1])
    videos = compare_blocks.read_videos(folder, ["judged"], compare_blocks.QUICK, samples=8)
    assert len(videos.samples) == 8 and [clip.name for clip in videos.held_out] == ["judged.mp4"]
    with pytest.raises(BenchmarkError, match="only videos that are held out"):
        compare_blocks.read_videos(folder, ["judged", "seen"], compare_blocks.QUICK, samples=1)
    with pytest.raises(BenchmarkError, match="no usable video other"):
        compare_blocks.read_videos(folder, ["other"], compare_blocks.QUICK, samples=1)


def test_an_interrupt_keeps_what_is_done(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_blocks, "measure_motion_costs", interrupted)
    path = tmp_path / "blocks.json"
    assert compare_blocks.main([*options, "--json", str(path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "compare_blocks: interrupted"
    assert Results(path, {}).values.keys() == {"gradients"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be positive, not 0"),
        (["--rates", "nan"], "--rates must be positive, not nan"),
        (["--videos", "some"], "--videos and --held-out go together"),
        (["--report"], "name one with --json"),
        (["--plot", "no/such"], "--plot no/such is not a folder"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        compare_blocks.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_files_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("[]")
    assert compare_blocks.main(["--quick", "--json", str(path)]) == 1
    assert "holds no results of this comparison" in capsys.readouterr().err
    assert path.read_text() == "[]"
