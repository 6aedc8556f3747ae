"""The motion model as people use it: against the published code, lengths, errors."""

import pytest
import torch

from motion import RVQVAE
from tests.motion import golden


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(name: str) -> tuple[RVQVAE, golden.Reference]:
        reference = golden.read(name)
        path = golden.save_published(reference, folder / f"{name}.tar")
        return RVQVAE.from_pretrained(path, **golden.untold(reference)), reference

    return load


@pytest.mark.parametrize(("name", "shape"), list(golden.all_cases()))
def test_it_equals_the_published_code(load, name, shape):
    model, reference = load(name)
    case = reference.cases[shape]
    latents = model.encoder(case["motion"].mT)
    torch.testing.assert_close(latents, case["encoded"], atol=1e-4, rtol=0)
    indices = model.encode(case["motion"])
    expected = case["indices"]
    assert torch.equal(indices, expected if expected.dim() == 3 else expected[:, :, None])
    torch.testing.assert_close(model.decode(indices), case["decoded"], atol=1e-4, rtol=0)
    output = model(case["motion"])
    torch.testing.assert_close(output.output, case["decoded"], atol=1e-4, rtol=0)
    if "quantized" in case:
        quantized = model.quantizer(latents).latents
        torch.testing.assert_close(quantized, case["quantized"], atol=1e-4, rtol=0)
        some = model.decode(indices, layers=2)
        torch.testing.assert_close(some, case["decoded_first_2_layers"], atol=1e-4, rtol=0)
        assert torch.equal(model.decode(indices[:, :, :2]), some)
