import pytest
import torch
from bundle_parts import GOLDEN, GRID, SETTINGS, make_encoders, make_networks


@pytest.fixture(scope="session")
def components():
    """A transformer, reference network, vae, text encoder, speech encoder and feature extractor with random weights."""
    torch.manual_seed(0)
    made = make_networks() | make_encoders()
    for part in made.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            part.eval()
    return made


@pytest.fixture
def bundle(components, tmp_path):
    """A partial bundle of those parts on disk, its weights in several shards."""
    from hallo3.bundles.layout import save_components

    folder = tmp_path / "bundle"
    save_components(folder, components, SETTINGS, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory):
    """The recorded checkpoint and VAE as a bundle, in float32."""
    out = tmp_path_factory.mktemp("golden") / "bundle"
    from hallo3.bundles.convert import Sources, convert

    sources = Sources(denoiser=GOLDEN / "dit" / "hallo3", vae=GOLDEN / "vae" / "vae" / "3d-vae.pt")
    report = convert(sources, out, dtype=None, max_shard_size="1MB", config=GRID)
    assert report.parts == ("transformer", "reference_network", "scheduler", "vae")
    assert report.notices == ()
    return out
