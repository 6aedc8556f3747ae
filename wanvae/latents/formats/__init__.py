"""How other programs store latents: a file for each program, and the tables of all."""

from wanvae.latents.formats.ai_toolkit import AI_TOOLKIT
from wanvae.latents.formats.comfyui import COMFYUI
from wanvae.latents.formats.diffusion_pipe import DIFFUSION_PIPE
from wanvae.latents.formats.fastvideo import FASTVIDEO
from wanvae.latents.formats.musubi import MUSUBI
from wanvae.latents.formats.plain import PLAIN_PICKLE, PLAIN_SAFETENSORS
from wanvae.latents.formats.simpletuner import SIMPLETUNER

# Formats by what holds the latents. The first that finds latents counts.
SAFETENSORS_FORMATS = (MUSUBI, AI_TOOLKIT, COMFYUI, PLAIN_SAFETENSORS)
PICKLE_FORMATS = (SIMPLETUNER, PLAIN_PICKLE)
FORMATS = {
    found.name: found
    for found in (*SAFETENSORS_FORMATS, *PICKLE_FORMATS, DIFFUSION_PIPE, FASTVIDEO)
}
