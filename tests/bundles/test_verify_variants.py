"""A recording of the published model says nothing about a bundle that is conditioned otherwise."""

import shutil

from bundle_parts import GOLDEN

from hallo3.bundles.layout import load_components, save_components
from hallo3.bundles.verify import verify


def test_other_conditioning_is_left_unchecked(golden_bundle, tmp_path):
    bundle = shutil.copytree(golden_bundle, tmp_path / "b")
    denoiser = load_components(bundle, ["transformer"])["transformer"]
    save_components(bundle, {"transformer": denoiser.in_variant("joint", "reference")})
    found = verify(bundle, GOLDEN / "dit")
    assert found.passed
    reasons = {one.tensor: one.reason for one in found.unchecked}
    assert {"output", "audio_tokens", "face_tokens", "final_latents"} <= set(reasons)
    assert reasons["output"].startswith("the transformer is conditioned by joint and reference")
