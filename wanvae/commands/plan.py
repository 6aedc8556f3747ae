"""The command ``wanvae plan``: the steps, tiles and memory that a video would take."""

from __future__ import annotations

from dataclasses import replace

import torch
from jsonargparse import Namespace

from wanvae.commands.convert import load_complete
from wanvae.commands.options import DTYPES, add_memory_option
from wanvae.config import WanVAEConfig, check_length, check_size
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_device_option
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import default_device
from wanvae.errors import UserError
from wanvae.execution.budget import Planner, TooLittleMemory, show_memory
from wanvae.execution.cost import Workload
from wanvae.execution.limits import Limits
from wanvae.execution.network import Network
from wanvae.execution.plan import Plan
from wanvae.execution.sharding import estimate_speedup, share_out
from wanvae.model import make_model
from wanvae.nn.kernels.dispatch import find_rehearsal


def plan(arguments: Namespace) -> None:
    """Prints how a video would be encoded and decoded."""
    config = load_complete(arguments.checkpoint).config if arguments.checkpoint else WanVAEConfig()
    check_size(config, arguments.height, arguments.width)
    check_length(config, arguments.frames)
    latents = 1 + (arguments.frames - 1) // config.temporal_factor
    limits = Limits(arguments.tile_size, arguments.max_memory)
    rehearsal = find_rehearsal(torch.device(arguments.device or default_device()))
    offloads = rehearsal != "cpu"
    with torch.device("meta"):
        vae = make_model(config).to(DTYPES[arguments.dtype])
    networks: dict[str, Network] = {}
    if vae.encoding_modules():
        networks["encode"] = vae.encoder_network()
    if vae.decoding_modules():
        networks["decode"] = vae.decoder_network()
    for task, network in networks.items():
        decoding = network.core_first
        channels = config.z_dim if decoding else config.in_channels
        scale = config.upscale_factor if decoding else 1
        sides = scale * arguments.height, scale * arguments.width
        dtype = DTYPES[arguments.dtype]
        workload = Workload(1, channels, latents, *sides, dtype, offloads, rehearsal)
        planner = Planner(network)
        chosen = planner.choose(workload, limits)
        print(f"{task}: {describe(planner, workload, chosen)}")
        if offloads and limits.max_memory is not None:
            print(f"{task} as a stream: {describe_stream(planner, workload, limits)}")
        if arguments.processes is not None:
            print(f"{task} by {describe_shares(planner, workload, chosen, arguments.processes)}")


def describe(planner: Planner, workload: Workload, chosen: Plan) -> str:
    """Returns a plan and its costs, in one line."""
    stream = replace(workload, latents=None)
    endless = f"as a stream without end: {show_memory(planner.memory(stream, chosen))}"
    if len(planner.tiles(workload, chosen)) > 1:
        offloaded = planner.memory(stream, replace(chosen, offload=True))
        endless += f", on a GPU with states offloaded: {show_memory(offloaded)}"
    work = planner.costs.multiply_adds(workload, chosen)
    overhead = work / planner.costs.multiply_adds(workload, Plan(None, chosen.frames))
    return (
        f"{describe_steps(planner, workload, chosen)}, "
        f"{show_memory(planner.memory(workload, chosen))} ({endless}), "
        f"{work / 1e12:.2f} T multiply-adds, {overhead:.2f} times the work of whole frames"
    )


def describe_steps(planner: Planner, workload: Workload, chosen: Plan) -> str:
    """Returns the tiles and steps of a plan, in words."""
    size = "whole frames"
    if chosen.tile_size is not None:
        tiles = planner.tiles(workload, chosen)
        size = f"{len(tiles)} tiles of at most {chosen.tile_size[0]}x{chosen.tile_size[1]} pixels"
        if chosen.split_core:
            size += ", all but attention"
    return f"{size}, {chosen.frames or 'all'} frames at once"


def describe_stream(planner: Planner, workload: Workload, limits: Limits) -> str:
    """Returns the plan that a GPU chooses for a stream without end, in one line."""
    stream = replace(workload, latents=None)
    try:
        chosen = planner.choose(stream, limits)
    except TooLittleMemory as error:
        return str(error)
    offloaded = ", states offloaded" if chosen.offload else ""
    return (
        f"{describe_steps(planner, stream, chosen)}{offloaded}, "
        f"{show_memory(planner.memory(stream, chosen))}"
    )


def describe_shares(planner: Planner, workload: Workload, chosen: Plan, processes: int) -> str:
    """Returns how processes would share the work of a plan, in one line."""
    if processes < 1:
        raise UserError(f"--processes must be positive, not {processes}")
    shares = share_out(planner.network, chosen, workload.height, workload.width, processes)
    busy = sum(work > 0 for work in shares.work)
    return (
        f"{processes} processes: {len(shares.tiles)} tiles for {busy} of them, "
        f"{estimate_speedup(planner.network, workload, shares):.2f} times as fast at most"
    )


def add_plan_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("--frames", type=int, default=81, help="frames of the video, 1 + 4n")
    parser.add_argument(
        "--height", type=int, default=480, help="pixels, a multiple of 8 (Wan2.2: 16)"
    )
    parser.add_argument(
        "--width", type=int, default=832, help="pixels, a multiple of 8 (Wan2.2: 16)"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="dtype to compute in"
    )
    parser.add_argument("--tile-size", type=int, help="longest side of a tile, in pixels")
    add_memory_option(parser)
    add_device_option(parser)
    parser.add_argument(
        "--processes", type=int, help="number of processes that share each frame, with --shard"
    )
    parser.add_argument(
        "--checkpoint",
        help="checkpoint with the architecture to plan for (default: official Wan2.1)",
    )
    parser.reads("checkpoint")


PLAN = Command(
    plan,
    add_plan_options,
    "Print in which steps and tiles a video would be encoded and decoded, how much memory this "
    "takes, and how much more work the tiles are. No video is computed.",
)
