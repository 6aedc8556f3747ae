"""How other programs store latents: a file for each program, and the tables of all."""

from wanvae.latents.formats.ai_toolkit import AI_TOOLKIT, AI_TOOLKIT_LAYOUT
from wanvae.latents.formats.comfyui import COMFYUI, COMFYUI_LAYOUT
from wanvae.latents.formats.diffusion_pipe import DIFFUSION_PIPE, DIFFUSION_PIPE_LAYOUT
from wanvae.latents.formats.fastvideo import FASTVIDEO
from wanvae.latents.formats.musubi import MUSUBI, MUSUBI_LAYOUT
from wanvae.latents.formats.plain import PLAIN_PICKLE, PLAIN_SAFETENSORS
from wanvae.latents.formats.simpletuner import SIMPLETUNER, SIMPLETUNER_LAYOUT

# Formats by what holds the latents. The first that finds latents counts.
SAFETENSORS_FORMATS = (MUSUBI, AI_TOOLKIT, COMFYUI, PLAIN_SAFETENSORS)
PICKLE_FORMATS = (SIMPLETUNER, PLAIN_PICKLE)
FORMATS = {
    found.name: found
    for found in (*SAFETENSORS_FORMATS, *PICKLE_FORMATS, DIFFUSION_PIPE, FASTVIDEO)
}
# What ``wanvae encode-dataset`` can write, besides its own files.
LAYOUTS = {
    layout.name: layout
    for layout in (
        MUSUBI_LAYOUT,
        AI_TOOLKIT_LAYOUT,
        SIMPLETUNER_LAYOUT,
        DIFFUSION_PIPE_LAYOUT,
        COMFYUI_LAYOUT,
    )
}
