"""The benchmark of motion models, on a tiny model; its peers give what ours do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from motion import RVQVAE, RVQVAEConfig
from motion.config import ResnetConfig
from motion.train.losses import MotionLosses
from tools import benchmark, benchmark_motion, benchmark_motion_step
from tools.benchmark_motion import JOBS, MODELS, MotionWorkload, Result

TINY = ["motion", "--model", "tiny", "--size-scale", "0.1", "--repeats", "2"]
CONFIG = MODELS["tiny"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_both_sides_give_the_same_indices(job: MotionWorkload) -> None:
    calls = benchmark_motion.make_calls(job.scaled(0.1), CONFIG)
    # Twice: of learners, after a step of each.
    for _ in range(2):
        ours, peer = (calls[side]() for side in ("ours", "peer"))
        assert torch.equal(ours, peer)
        assert ours.unique().numel() > CONFIG.quantizer.codebook_size / 2


def test_both_sides_learn_the_same_codes() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 40, CONFIG.code_dim)
    ours = benchmark_motion.make_quantizer(CONFIG, latents.flatten(0, 1)).train()
    peer = benchmark_motion.make_peer_quantizer(ours).train()
    before = ours.books.codes.clone()
    for quantizer, side in ((ours, "ours"), (peer, "peer")):
        for _ in range(3):
            benchmark_motion.learn(quantizer, side, latents, backward=False)
    codes = torch.stack([layer._codebook.embed[0] for layer in peer.layers])
    torch.testing.assert_close(ours.books.codes, codes, rtol=0, atol=1e-3)
    assert (codes - before).norm() > 0.01 * before.norm()


def test_the_report_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "motion.json"
    options = ["--jobs", "learn", "encode-clip", "--json", str(path)]
    assert benchmark.main([*TINY, *options]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("tiny motion model on cpu; ") and torch.__version__ in header
    assert "vector-quantize-pytorch" in header
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[1:4:2] for line in lines[2:]] == [
        ["learn", "8x60"],
        ["encode-clip", "1x20"],
    ]

    written = json.loads(path.read_text())
    assert written["header"] == header
    learn, encode = written["results"]
    assert learn["job"]["target"] == 1.5 and encode["agreement"] == 1
    assert [len(times) for times in learn["seconds"].values()] == [2, 2]
    ratio = median(learn["seconds"]["peer"]) / median(learn["seconds"]["ours"])
    assert learn["summary"]["times as fast"] == pytest.approx(ratio)


def test_the_numbers_of_the_summary() -> None:
    result = Result(JOBS[0], {"ours": [2.0, 9.0, 1.0], "peer": [3.0, 3.0, 9.0]}, 0.5)
    assert result.summary() == {
        "ours ms": 2000,
        "peer ms": 3000,
        "times as fast": 1.5,
        "target": 1.6,
        "same indices": 0.5,
    }
    untargeted = replace(result, job=replace(JOBS[0], target=None))
    assert "50.000%" in benchmark_motion.report([untargeted])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "nothing"], "invalid choice: 'nothing'"),
        (["--repeats", "0"], "--repeats must be positive, not 0"),
        (["--size-scale", "nan"], "--size-scale must be positive, not nan"),
        (["--json", "no/such/folder.json"], "no/such/folder.json cannot be written"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["motion", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    assert benchmark.main(TINY) == 1
    assert capsys.readouterr().err == (
        "benchmark: this needs vector-quantize-pytorch: pip install vector-quantize-pytorch\n"
    )


@pytest.mark.parametrize("config", ["beat2_330", "humanml3d"])
def test_both_sides_train_the_same_network(config: str) -> None:
    """Without codebooks and dropout, they have the same losses before any step."""
    whole = benchmark_motion_step.read_config(config)
    resnet = ResnetConfig(width=8, depth=2, dropout=0.0)
    small = replace(
        whole,
        model=replace(whole.model, code_dim=4, resnet=resnet),
        data=replace(whole.data, window=16),
    )
    torch.manual_seed(0)
    model = RVQVAE(small.model)
    peer = benchmark_motion_step.PeerTokenizer(small.model)
    motion = torch.randn(3, 16, small.model.channels)
    for name in ("encoder", "decoder"):
        getattr(peer, name).load_state_dict(getattr(model, name).state_dict())
    output = peer.decoder(peer.encoder(motion.mT)).mT
    torch.testing.assert_close(model.decoder(model.encoder(motion.mT)).mT, output)
    skeleton = benchmark_motion_step.SKELETONS[small.model.channels]
    plain = benchmark_motion_step.PlainLosses(small, model, skeleton)
    reconstruction = model(motion)
    commitment = reconstruction.quantized.commitment_loss
    ours = sum(MotionLosses(small.loss, model, skeleton)(reconstruction).values())
    pair = reconstruction.output, reconstruction.target
    torch.testing.assert_close(ours, plain(*pair, commitment))


def test_the_report_of_training_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = benchmark_motion_step.read_config("humanml3d")
    quantizer = replace(whole.model.quantizer, codebook_size=8, num_quantizers=2)
    model = RVQVAEConfig(code_dim=4, resnet=ResnetConfig(width=8, depth=1), quantizer=quantizer)
    monkeypatch.setattr(
        benchmark_motion_step, "read_config", lambda name: replace(whole, model=model)
    )
    path = tmp_path / "steps.json"
    options = ["--configs", "humanml3d", "--threads", "1", "--batch", "4", "--repeats", "3"]
    assert benchmark.main(["motion-step", *options, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("training steps of motion models on cpu; ")
    assert lines[-1].split()[1:4:2] == ["humanml3d", "1"]
    (written,) = json.loads(path.read_text())["results"]
    ours, peer = (written["seconds"][side] for side in ("ours", "peer"))
    assert len(ours) == len(peer) == 3
    assert written["summary"]["ours / peer"] == pytest.approx(median(ours) / median(peer))
