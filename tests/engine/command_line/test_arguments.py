"""Options are written out, errors are one line, and configs of the package have names."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import motion.cli
import motion.train.run
import wanvae.cli
import wanvae.train.run
from wanvae.engine.command_line.arguments import config_parser, parse_config
from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.training.command import training_command
from wanvae.engine.training.config import TrainerConfig

ROOT = Path(__file__).parents[3]
PROGRAMS = {"wanvae": wanvae.cli.PROGRAM, "wanvae-motion": motion.cli.PROGRAM}
TRAINERS = {"wanvae": wanvae.train.run, "wanvae-motion": motion.train.run}


@dataclass(frozen=True, kw_only=True)
class Options:
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


NAMES = [f"--trainer.{option.name}" for option in fields(TrainerConfig)]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, **options: object) -> str:
    """The one line that is said of wrong arguments."""
    with pytest.raises(SystemExit, match="2"):
        parse_config(Options, "toy train", None, arguments, **options)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@given(name=st.sampled_from(NAMES), length=st.integers(3, 40))
def test_no_part_of_an_option_is_taken_for_it(name: str, length: int) -> None:
    part = name[:length]
    parser = config_parser(Options, "toy", None)
    parser.exit_on_error = False
    # --trainer is an option: a config of the whole group.
    if part not in {*NAMES, "--trainer"}:
        with pytest.raises(Exception, match="unrecognized arguments"):
            parser.parse_args([f"{part}=1"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_command_takes_a_part_of_an_option(
    capsys: pytest.CaptureFixture[str], program: str
) -> None:
    parser = PROGRAMS[program].make_parser()
    for name in PROGRAMS[program].commands:
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        assert "--config CONFIG" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([name, *["x"] * 3, "--confi=x"])
        (line,) = capsys.readouterr().err.splitlines()
        assert "unrecognized" in line or "required" in line
        assert line.endswith(f"(see {program} {name} --help)")
    assert not any(action.allow_abbrev for action in parsers_in(parser))


def parsers_in(parser: object) -> list:
    """A parser and the parsers of its commands."""
    inner = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return [parser, *(each for choices in inner for each in choices.values())]


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_no_tool_takes_a_part_of_an_option(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_abbrev") == "False", node.lineno


def test_an_error_is_one_line_that_says_what_may_be_meant(capsys) -> None:
    line = error_of(capsys, "--trainer.learning_rat", "1")
    assert line == (
        "toy train: error: unrecognized arguments: --trainer.learning_rat 1; did you mean "
        "--trainer.learning_rate? (see toy train --help)"
    )
    assert "did you mean" not in error_of(capsys, "--xyz=1")
    assert "must be at least 1, not 0" in error_of(capsys, "--trainer.steps=0")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("data.folders=a", "data.folders must be a list in brackets, such as [a,b], not a"),
        ("data.strides=[1]", "data.strides must be a list of 2, such as [a,b], not [1]"),
        ("trainer.steps=1.5", "trainer.steps must be a whole number, not 1.5"),
        ("lora.rank=x", "lora.rank must be a whole number, not x"),
        ("lora.alpha=x", "lora.alpha must be a number, not x"),
        ("freeze_encoder=perhaps", "freeze_encoder must be true or false, not perhaps"),
        ("model.ndim=4", "model.ndim must be 2 or 3, not 4"),
        (
            "trainer.mixed_precision=bf",
            "trainer.mixed_precision must be no or fp16 or bf16, not bf",
        ),
    ],
)
def test_a_value_of_another_type_is_named_without_names_of_python(
    capsys, argument: str, said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_config(TRAINERS["wanvae"].TrainConfig, "toy train", None, [f"--{argument}"])
    expected = f"toy train: error: {said} (see toy train --help)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("program", TRAINERS)
def test_a_config_of_the_package_is_found_by_its_name_from_anywhere(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    module, kind = TRAINERS[program], {"wanvae": "video"}.get(program, "motion")
    monkeypatch.chdir(tmp_path)

    def load(value: str) -> object:
        arguments = [f"--config={value}"]
        return parse_config(module.TrainConfig, "toy", None, arguments, module.CONFIG_FOLDERS)

    path = ROOT / "configs" / kind / "tiny.yaml"
    expected = load(str(path))
    assert load("tiny") == load("tiny.yaml") == expected != module.TrainConfig()
    # A file of the user goes first.
    (tmp_path / "tiny.yaml").write_text("trainer: {steps: 7}\n")
    assert load("tiny.yaml").trainer.steps == 7 and load("tiny") == expected
    with pytest.raises(SystemExit, match="2"):
        load("tinny")
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no file tinny" in line and "tiny" in line
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert "the name of a config of the package" in " ".join(capsys.readouterr().out.split())


@pytest.mark.filterwarnings("always")
def test_a_warning_has_no_line_of_code(capsys) -> None:
    def warn(_: object = None) -> int:
        warnings.warn("2 files are left out:\n  a.mp4\n  b.mp4", stacklevel=1)
        return 0

    expected = "toy: warning: 2 files are left out:\n  a.mp4\n  b.mp4\n"
    assert exit_status(warn, "toy", []) == 0
    assert capsys.readouterr().err == expected
    assert training_command(TrainerConfig, lambda _: not warn(), "toy", "", []) == 0
    assert capsys.readouterr().err == expected
