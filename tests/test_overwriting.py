"""An output that is an input is refused before work begins: by all commands of both programs, by
functions that read one file and write another, and by the tools."""

from __future__ import annotations

import os
from argparse import Action, _StoreAction
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import motion.cli
import wanvae.cli
from motion.commands.convert import convert_motion
from motion.commands.detokenize import detokenize_file
from motion.commands.reconstruct import reconstruct_file as reconstruct_motion
from motion.commands.render import render_file
from motion.commands.tokenize import tokenize_file
from tools import benchmark, compare_backbones, compare_blocks
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.engine.command_line.arguments import ConfigFile, Parser
from wanvae.engine.command_line.program import parser_of
from wanvae.engine.files import FileError, refuse_overwriting

PROGRAMS = {"wanvae": wanvae.cli.PROGRAM, "motion": motion.cli.PROGRAM}
COMMANDS = [(program, name) for program in PROGRAMS for name in PROGRAMS[program].commands]
# Options of text that name no file. The destination of merge-index may be one of its folders.
NO_FILES = {
    "architecture",
    "area",
    "background",
    "buckets",
    "destination",
    "device",
    "entry",
    "fps",
    "frames",
    "hwaccel",
    "key",
    "max_memory",
    "part",
    "resize",
    "root",
    "shard_size",
    "speaker",
    "variant",
}
# What else a command needs.
REQUIRED = {"convert": ["--to", "native"], "export": ["--part", "encoder"]}
CONTENT = b"precious"
# A model that is never used.
NONE: Any = None

# Other names of the file ``a`` in the folder ``folder``, which is the current one.
NAMES: dict[str, Callable[[Path], str]] = {
    "same": lambda path: str(path),
    "relative": lambda path: f"./{path.name}",
    "around": lambda path: f"../{path.parent.name}/{path.name}",
    "symbolic link": lambda path: linked(path, os.symlink),
    "hard link": lambda path: linked(path, os.link),
    # As on a disk where case does not matter: two names of one file.
    "case": lambda path: linked(path, os.link, path.name.upper()),
}


def linked(path: Path, link: Callable[[Path, Path], None], name: str = "other.mp4") -> str:
    link(path, path.with_name(name))
    return name


def parser(program: str, name: str) -> Parser:
    return parser_of(PROGRAMS[program].commands[name].load())


def options_of(parser: Parser) -> Iterator[Action]:
    yield from (action for action in parser._actions if action.dest != "help")


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_option_that_names_a_file_is_declared(program: str, name: str) -> None:
    options = parser(program, name)
    declared = {*options.inputs, *options.outputs}
    text = {
        action.dest
        for action in options_of(options)
        if type(action) in (_StoreAction, ConfigFile) and not action.choices
    }
    assert declared <= text and text - declared <= NO_FILES


def arguments_of(options: Parser, values: dict[str, str]) -> list[str]:
    """The arguments that give options their values."""
    words = []
    for action in options_of(options):
        if action.dest in values:
            words += [*action.option_strings[:1], values[action.dest]]
    return words


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_no_command_overwrites_what_it_reads(
    program: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options, path = parser(program, name), tmp_path / "a.mp4"
    needed = [
        a.dest
        for a in options_of(options)
        if not a.choices and (not a.option_strings or a.required)
    ]
    for source, output in product(options.inputs, options.outputs):
        content = b"{}" if source == "config" else CONTENT
        path.write_bytes(content)
        values = dict.fromkeys(needed, "other") | {source: str(path), output: "./a.mp4"}
        words = arguments_of(options, values) + REQUIRED.get(name, [])
        assert PROGRAMS[program].run([name, *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"./a.mp4 would be overwritten, but {path} is to be read: name another" in line
        assert path.read_bytes() == content and os.listdir(tmp_path) == ["a.mp4"]


def test_the_default_output_is_no_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reconstruction.mp4").write_bytes(CONTENT)
    assert wanvae.cli.main(["reconstruct", "reconstruction.mp4"]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("reconstruction.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", NAMES)
def test_other_names_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    name = NAMES[kind](path)
    for output, source in ((name, "a.mp4"), ("a.mp4", name)):
        with pytest.raises(FileError, match="would be overwritten"):
            refuse_overwriting(output, ["missing", source])


def test_a_file_in_a_folder_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(folder)
    for output in (folder, folder / "weights", tmp_path / "link", tmp_path / "link" / "weights"):
        with pytest.raises(FileError, match="would be overwritten"):
            refuse_overwriting(output, [str(folder)])
    for output in (folder / "new", folder / "new" / "b", tmp_path / "model2"):
        refuse_overwriting(output, [str(folder)])


def test_a_sequence_of_images(tmp_path: Path) -> None:
    for source in (tmp_path / "frame[1]-%04d.png", tmp_path / "frame[1]-%d.png"):
        with pytest.raises(FileError, match="would be overwritten"):
            refuse_overwriting(tmp_path / "frame[1]-0007.png", [str(source)])
        refuse_overwriting(tmp_path / "frame[1]-.png", [str(source)])
        refuse_overwriting(tmp_path / "frame1-0007.png", [str(source)])


def test_other_names_of_an_image_of_a_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "0003.png").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(folder)
    os.link(folder / "0003.png", tmp_path / "other.png")
    monkeypatch.chdir(tmp_path)
    outputs = ["./frames/0003.png", "frames/../frames/0004.png", "link/0003.png", "other.png"]
    for output, source in product(outputs, ["frames/%04d.png", folder / "%04d.png"]):
        with pytest.raises(FileError, match="would be overwritten"):
            refuse_overwriting(output, [source])
    monkeypatch.chdir(folder)
    with pytest.raises(FileError, match="would be overwritten"):
        refuse_overwriting(tmp_path / "link" / "0003.png", ["%04d.png"])
    refuse_overwriting("new.png", ["%04d.png"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_does_not_replace_its_weights(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    words = ["train", "--config=tiny", f"--trainer.run={tmp_path}", f"--weights={path}"]
    assert PROGRAMS[program].run([*words, f"--data.folder={tmp_path / 'data'}"]) == 1
    assert f"{path} would be overwritten" in capsys.readouterr().err
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("run", ["", "runs/new"])
@pytest.mark.parametrize("option", ["data.folder", "evaluation.folder"])
def test_pictures_of_a_run_do_not_become_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, run: str
) -> None:
    words = ["train", "--config=tiny", f"--{option}={tmp_path}", f"--trainer.run={tmp_path / run}"]
    assert wanvae.cli.main(words) == 1
    line = f"wanvae train: the folder of the run, {tmp_path / run}, must not be in {tmp_path}"
    assert capsys.readouterr().err.startswith(line) and os.listdir(tmp_path) == []


def test_files_that_a_layout_writes_besides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    statistics = [tmp_path / f"net_{name}.npy" for name in ("mean", "std")]
    for path in (weights, *statistics):
        path.write_bytes(CONTENT)
    convert = ["convert", str(weights), str(weights.parent), "--to", "diffusers"]
    assert wanvae.cli.main(convert) == 1
    convert = ["convert", "other.tar", str(tmp_path / "net.tar"), "--to", "momask"]
    for path in statistics:
        assert motion.cli.main([*convert, "--mean", str(path), "--std", str(path)]) == 1
    assert capsys.readouterr().err.count("would be overwritten") == 3
    assert all(path.read_bytes() == CONTENT for path in (weights, *statistics))


# Functions that read one file and write another. The model is not needed before the refusal.
FUNCTIONS: dict[str, Callable[[Path, str], object]] = {
    "reconstruct": lambda source, output: reconstruct_file(NONE, source, output),
    "encode": lambda source, output: encode_file(NONE, source, output),
    "encode, checkpoint": lambda source, output: encode_file(
        NONE, "other.mp4", output, checkpoint=source
    ),
    "decode": lambda source, output: decode_file(NONE, source, output),
    "decode, checkpoint": lambda source, output: decode_file(
        NONE, "other.safetensors", output, checkpoint=source
    ),
    "convert_motion": lambda source, output: convert_motion(source, output),
    "tokenize": lambda source, output: tokenize_file(NONE, source, output),
    "detokenize": lambda source, output: detokenize_file(NONE, source, output),
    "detokenize, skeleton": lambda source, output: detokenize_file(
        NONE, "other.npz", output, skeleton=source
    ),
    "reconstruct motion": lambda source, output: reconstruct_motion(NONE, source, output),
    "render": lambda source, output: render_file(source, output),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_overwrites_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.bvh"
    path.write_bytes(CONTENT)
    with pytest.raises(FileError, match=r"\./a\.bvh would be overwritten"):
        FUNCTIONS[name](path, "./a.bvh")
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["a.bvh"]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (compare_blocks, ["--json", "./walk.npz", "--motion", "walk.npz"]),
        (compare_blocks, ["--json", "videos/a.mp4", "--videos", "videos", "--held-out", "a"]),
        (compare_blocks, ["--plot", "videos", "--videos", "videos", "--held-out", "a"]),
        (compare_blocks, ["--json", "new/block_gradients.png", "--plot", "new"]),
        (compare_backbones, ["--plot", "plots", "--motion", "plots/backbones.png"]),
        (benchmark, ["--sweep", "--json", "new.png", "--plot", "./new.png"]),
    ],
)
def test_no_tool_overwrites_what_it_reads_or_wrote(
    tool: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["walk.npz", "videos/a.mp4", "videos/block_training.png", "plots/backbones.png"]
    for folder in ("videos", "plots", "new"):
        Path(folder).mkdir()
    for file in files:
        Path(file).write_bytes(CONTENT)
    with pytest.raises(SystemExit) as end:
        tool.main(arguments)
    assert end.value.code == 2
    assert "name another output" in capsys.readouterr().err
    assert all(Path(file).read_bytes() == CONTENT for file in files)
