"""Every bundle comes with a model card that says what is in it, in a form that the hub reads."""

from huggingface_hub import ModelCard

from hallo3.bundles.card import CARD, MARK
from hallo3.bundles.layout import save_components


def test_the_card_says_what_is_there(components, tmp_path):
    save_components(
        tmp_path / "b", {"vae": components["vae"]}, {"num_frames": 9}, notes={"_hallo3_source": "a/b@c0ffee"}
    )
    card = ModelCard.load(tmp_path / "b" / CARD)
    assert card.data.library_name == "hallo3" and card.data.pipeline_tag == "image-to-video"
    count = sum(tensor.numel() for tensor in components["vae"].state_dict().values())
    assert f"| vae | `AutoencoderKLCogVideoX` | {count:,} |" in card.text
    assert "| transformer | not here yet" in card.text and "Clips of 9 frames that share 2" in card.text
    assert "- source: `a/b@c0ffee`" in card.text and "the CogVideoX\nlicence" in card.text
    save_components(tmp_path / "b", {"text_encoder": components["text_encoder"]})
    card = ModelCard.load(tmp_path / "b" / CARD)
    assert f"{count:,}" in card.text and "| text_encoder | `T5EncoderModel`" in card.text and "c0ffee" in card.text


def test_a_card_of_ones_own_is_kept(components, tmp_path):
    save_components(tmp_path / "b", {"vae": components["vae"]})
    own = (tmp_path / "b" / CARD).read_text().replace(MARK, "My own words.")
    (tmp_path / "b" / CARD).write_text(own)
    save_components(tmp_path / "b", {"text_encoder": components["text_encoder"]})
    assert (tmp_path / "b" / CARD).read_text() == own
