"""What README.md and the guides say is there: commands, options, files, names, links.

That their examples work is tested in test_readme_examples.py.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from inspect import isfunction, ismethod, signature
from itertools import chain
from pathlib import Path

import pytest
import torch

import motion
import motion.cli
import motion.export
import motion.train.run
import wanvae
import wanvae.cli
import wanvae.train.run
import wanvae.video
from motion.evaluate.evaluators import figures, loading
from tests.motion.small_tokenizers import tiny_tokenizer
from tests.readme import BLOCKS, GUIDES, LEFT_OUT, README, ROOT, TEXT, Block, Call, Guide
from tests.stand_ins import small_model
from tools.benchmark import OTHERS
from wanvae import Posterior
from wanvae.engine.command_line.arguments import config_parser
from wanvae.engine.command_line.program import TRAIN

PROGRAMS = {"wanvae": wanvae.cli.PROGRAM, "motion": motion.cli.PROGRAM}
CONFIGS = {"wanvae": wanvae.train.run.TrainConfig, "motion": motion.train.run.TrainConfig}
FOLDERS = {
    "wanvae": wanvae.train.run.CONFIG_FOLDERS,
    "motion": motion.train.run.CONFIG_FOLDERS,
}
# The headings of the tables in README.md that list the commands.
TABLES = {"wanvae": "| `wanvae ...` |", "motion": "| `python -m motion ...` |"}
TRAINING_GUIDES = {"wanvae": "wanvae/train/README.md", "motion": "motion/README.md"}
# Options that every command has.
COMMON = {"-h", "--help", "--config", "--print_config"}
LONGEST_README = 250

CALLS = tuple(dict.fromkeys(call for guide in GUIDES for call in guide.calls))
PYTHON = tuple(block for block in BLOCKS if block.language == "python")
# Paths from the root of the repository, in the text as well as in blocks.
PATH = re.compile(r"(?<![\w./-])(?:configs|motion|tests|tools|wanvae)/[\w/.-]*\w")
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.py"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

# Names with underscores that are not ours: folders of ComfyUI, a video, models, names of other
# libraries and programs.
FOREIGN = {
    *("auto_frame_count", "cache_dir_vae", "cache_directory", "do_audio", "do_i2v", "flip_x"),
    *("hash_filenames", "latent_tensor", "latents_TxHxW_DTYPE", "num_frames", "qwen_image"),
    *("vae_latent_bytes", "wan22_14b", "wan22_5b"),
    *("taew2_1", "taew2_2", "lighttaew2_1", "lighttaew2_2"),
    *("custom_nodes", "example_workflows", "carphone_pristine", "recompile_limit"),
    *("WANVAE_COMFYUI", "WANVAE_COMFYUI_PYTHON"),
    *("control_latents", "file_name", "first_frame_mean", "text_mot_match"),
    *("HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "TRITON_CACHE_DIR", "huggingface_hub"),
}
# Whose functions the guides name.
MODULES = (motion.export, figures, loading)
# Of files that a command reads or writes.
SUFFIXES = (".csv", ".html", ".json", ".jsonl", ".jpg", ".npz", ".safetensors", ".yaml")
# Phrases that make a reader go back in the sentence.
HARD_TO_READ = ("that of", "those of", "but for", "of which", "whereof", "shards", "adversary")

by_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.path)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def name_of(call: Call) -> str:
    return shlex.join([call.module, *call.arguments])


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= LONGEST_README


@pytest.mark.parametrize("end", ["wanvae reconstruct", "pytest"])
def test_the_two_commands_are_one_line_each(end: str) -> None:
    """As .ci/run looks for them."""
    lines = re.findall(rf"^pip install -e .* && {end}$", README.text, re.MULTILINE)
    assert len(lines) == 1


def test_the_readme_links_to_every_guide() -> None:
    assert {guide.path for guide in GUIDES[1:]} <= {*README.links}


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_commands_can_be_parsed(call: Call) -> None:
    package, _, training = call.module.partition(".")
    arguments = [*call.arguments]
    if call.module.endswith(".py"):
        script = call.module.removesuffix(".py")
        if arguments and arguments[0] in (*OTHERS, "--count"):  # for these, benchmark.py has others
            name = arguments[0].strip("-").replace("-", "_")
            script, arguments = f"{script}_{name}", arguments[1:]
        module = importlib.import_module(script.replace("/", "."))
        if call.complete or arguments:
            module.parse(arguments)
    elif training or arguments[:1] == [TRAIN]:
        options = arguments if training else arguments[1:]
        assert_parses(training_parser(package), options, complete=call.complete)
    elif call.complete:
        assert_parses(PROGRAMS[package].make_parser(), arguments, complete=True)
    elif arguments:
        command, *options = arguments
        assert any(knows(parser, options) for parser in parsers_of(package, command))


def assert_parses(parser: ArgumentParser, arguments: Sequence[str], *, complete: bool) -> None:
    if complete:
        parser.parse_args(arguments)
    else:
        assert knows(parser, arguments)


def knows(parser: ArgumentParser, arguments: Sequence[str]) -> bool:
    """Whether a parser has all options of an incomplete list of arguments."""
    named = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    return named <= options_of(parser).keys()


@cache
def training_parser(package: str) -> ArgumentParser:
    return config_parser(CONFIGS[package], "test", "", FOLDERS[package])


@cache
def parsers_by_command(package: str) -> dict[str, ArgumentParser]:
    actions = PROGRAMS[package].make_parser()._actions
    (commands,) = (action for action in actions if action.dest == "command")
    return {name: parser for name, parser in commands.choices.items() if name != TRAIN}


def parsers_of(package: str, command: str) -> list[ArgumentParser]:
    """The parser of a subcommand, or all parsers where a guide does not say which."""
    parsers = parsers_by_command(package)
    return [*parsers.values()] if command in ("COMMAND", LEFT_OUT) else [parsers[command]]


def options_of(parser: ArgumentParser) -> dict[str, Action]:
    return {name: action for action in parser._actions for name in action.option_strings}


def all_parsers() -> list[ArgumentParser]:
    """The parsers of training, then those of the commands."""
    training = [training_parser(package) for package in PROGRAMS]
    return training + [p for package in PROGRAMS for p in parsers_by_command(package).values()]


@by_guide
def test_options_in_the_text_are_there(guide: Guide) -> None:
    options = [span for span in guide.spans if span.startswith("--")]
    assert [option for option in options if not is_option(option, guide)] == []


def is_option(span: str, guide: Guide) -> bool:
    """Whether an option is there, and takes the value that follows it if one does."""
    option, *value = span.split()
    if guide.folder.name == "tools":
        return f'"{option}"' in SCRIPTS or any(knows(parser, [option]) for parser in all_parsers())
    for parser in all_parsers():
        if knows(parser, [option]):
            choices = options_of(parser)[option].choices
            if value and option.count("."):
                parser.parse_args([option, *value])
            return not value or not choices or value[0] in choices
    return False


@pytest.mark.parametrize("package", PROGRAMS)
def test_every_option_of_every_command_is_told(package: str) -> None:
    options = {
        option
        for parser in parsers_by_command(package).values()
        for action in parser._actions
        for option in action.option_strings[:1]
    }
    text = "".join(guide.text for guide in GUIDES if guide.path.startswith(f"{package}/"))
    assert [name for name in sorted(options - COMMON) if not is_told(name, text)] == []


@pytest.mark.parametrize("package", PROGRAMS)
def test_every_family_of_options_of_training_is_told(package: str) -> None:
    (guide,) = (guide for guide in GUIDES if guide.path == TRAINING_GUIDES[package])
    names = [f"--{field.name}" for field in fields(CONFIGS[package])]
    assert [name for name in names if not is_told(name, guide.text)] == []


def is_told(option: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){option}(?![\w-])", text) is not None


@pytest.mark.parametrize("package", PROGRAMS)
def test_every_command_is_called(package: str) -> None:
    named = {call.arguments[0] for call in CALLS if call.module == package and call.arguments}
    assert PROGRAMS[package].commands.keys() | {TRAIN} <= named


@pytest.mark.parametrize("package", PROGRAMS)
def test_the_tables_of_commands(package: str) -> None:
    rows = [row.split() for row in first_column(TABLES[package])]
    assert {command for command, *_ in rows} == PROGRAMS[package].commands.keys() | {TRAIN}
    for command, *arguments in rows:
        if command != TRAIN:
            (parser,) = parsers_of(package, command)
            positionals = [action for action in parser._actions if not action.option_strings]
            assert len(arguments) == len(positionals)


def first_column(heading: str) -> list[str]:
    """The code in the first column of the table in README.md with this heading."""
    _, _, *rows = README.text[README.text.index(heading) :].partition("\n\n")[0].splitlines()
    return [span for row in rows for span in re.findall(r"`(.+?)`", row.split("|")[1])]


@by_guide
def test_files_of_the_repository_are_there(guide: Guide) -> None:
    text = re.sub(r"\]\(.+?\)", "]", guide.text)
    assert [path for path in PATH.findall(text) if not Path(path).exists()] == []


@by_guide
def test_links_lead_somewhere(guide: Guide) -> None:
    assert [link for link in guide.links if not leads_somewhere(guide, link)] == []


def leads_somewhere(guide: Guide, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (guide.folder / path).resolve() if path else ROOT / guide.path
    if not target.is_file() or not target.is_relative_to(ROOT):
        return False
    anchors = [other.anchors for other in GUIDES if ROOT / other.path == target]
    return not anchor or (anchors != [] and anchor in anchors[0])


def test_the_configs_are_those_of_the_tree() -> None:
    named = {Path(name).name for name in re.findall(r"[\w/]+\.yaml", TEXT)}
    # The folder of a run has a config.yaml too.
    assert named == {"config.yaml", *(path.name for path in Path("configs").rglob("*.yaml"))}


def test_the_tree_under_how_it_is_built() -> None:
    (tree,) = (block.text for block in README.blocks if block.language == "")
    named = re.findall(r"^(\S+)/ ", tree, re.MULTILINE)
    packages = {str(path.parent) for root in PROGRAMS for path in Path(root).rglob("__init__.py")}
    assert packages <= {*named}
    assert len({*named}) == len(named) == len(tree.splitlines())
    assert all(Path(folder).is_dir() for folder in named)


def test_what_is_to_be_installed_has_a_name_in_the_project() -> None:
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", PROJECT, re.DOTALL)[1]
    named = set(re.findall(r"pip install -e \"\.\[(\w+)\]\"", TEXT))
    assert named <= set(re.findall(r"^(\w+) = ", extras, re.MULTILINE))


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.example)
def test_names_that_python_imports_are_there(block: Block) -> None:
    for statement in ast.walk(ast.parse(block.text)):
        if isinstance(statement, ast.ImportFrom) and statement.module.split(".")[0] in PROGRAMS:
            module = importlib.import_module(statement.module)
            assert all(hasattr(module, alias.name) for alias in statement.names)


@by_guide
def test_names_in_the_text_are_there(guide: Guide) -> None:
    assert [span for span in guide.spans if not is_known(span)] == []


def is_known(span: str) -> bool:
    """Whether a span is no name of ours, or one that is there."""
    if Path(span).suffix in SUFFIXES:
        return True
    if match := re.fullmatch(r"(\w+)\.(\w+)(\(.*\))?", span):
        return is_known_after_a_dot(match[1], match[2])
    if match := re.fullmatch(r"(\w+): .+", span):  # of a YAML file
        return match[1] in names_of_options()
    if match := re.fullmatch(r"(\w*_\w*|\w+(?=\())(\(.*\))?", span):
        return match[1] in names_of_options() | names_of_the_api() | FOREIGN
    return True


def is_known_after_a_dot(before: str, name: str) -> bool:
    if before in things():
        return any(hasattr(thing, name) for thing in things()[before])
    if before in PROGRAMS:
        module = importlib.import_module(before)
        return hasattr(module, name)
    groups = {field.name for config in CONFIGS.values() for field in fields(config)}
    if before in groups:
        return any(knows(training_parser(package), [f"--{before}.{name}"]) for package in CONFIGS)
    return True


@cache
def things() -> dict[str, tuple[object, ...]]:
    """What names before a dot stand for in the text."""
    vae, tokenizer = small_model(), tiny_tokenizer(None, channels=263)
    return {
        "vae": (vae, vae.as_diffusers()),
        "WanVAE": (vae,),
        "model": (tokenizer,),
        "RVQVAE": (tokenizer,),
        "encoder": (vae.stream_encode(),),
        "decoder": (vae.stream_decode(),),
        "end": (vae.stream_encode().finish(),),
        "batches": (wanvae.BucketBatches([(1,)], 1),),
        "posterior": (Posterior(torch.zeros(1), torch.zeros(1)),),
    }


@cache
def names_of_options() -> frozenset[str]:
    """The last parts of the options of training."""
    options = chain.from_iterable(options_of(training_parser(package)) for package in CONFIGS)
    return frozenset(option.rpartition(".")[2].removeprefix("--") for option in options)


@cache
def names_of_the_api() -> frozenset[str]:
    """What can be called, passed or read on the objects that people use."""
    known = chain.from_iterable(names_on(thing) for owners in things().values() for thing in owners)
    named = {*wanvae.__all__, *wanvae.video.__all__, *motion.__all__}
    return frozenset(known) | {"step", "forward", "vae"} | named.union(*map(dir, MODULES))


def names_on(thing: object) -> set[str]:
    """The public attributes of an object, and the parameters of its methods."""
    names = {name for name in dir(thing) if not name.startswith("_")}
    methods = (getattr(type(thing), name, None) for name in names)
    return names.union(
        *(
            signature(method).parameters
            for method in methods
            if ismethod(method) or isfunction(method)
        )
    )


@pytest.mark.parametrize("package", [wanvae, motion], ids=lambda package: package.__name__)
def test_all_public_names_are_told(package: object) -> None:
    names = [name for name in package.__all__ if not name.startswith("__")]
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []


@by_guide
def test_sentences_are_plain(guide: Guide) -> None:
    text = " ".join(guide.text.split())
    assert [phrase for phrase in HARD_TO_READ if re.search(rf"\b{phrase}\b", text)] == []


@by_guide
def test_lines_are_no_longer_than_others(guide: Guide) -> None:
    prose = (line for line in guide.text.splitlines() if not line.startswith(("|", "![")))
    assert [line for line in prose if len(line) > 105] == []


@pytest.mark.slow
def test_the_tiles_of_a_4k_frame(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--frames", "1", "--height", "2160", "--width", "3840"]
    assert wanvae.cli.main(["plan", *size, "--max-memory", "2GB"]) == 0
    (tiles,) = re.findall(r"\d+ tiles of at most \d+x\d+ pixels", " ".join(TEXT.split()))
    assert capsys.readouterr().out.count(f": {tiles}, ") == 2
