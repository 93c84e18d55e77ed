"""Every bundle comes with a model card that says what is in it, in a form that the hub reads."""

from huggingface_hub import ModelCard

from hallo3.bundles.card import CARD, MARK, write_card
from hallo3.bundles.layout import read_index, save_components
from hallo3.bundles.places import embedded_bundle


def test_the_card_says_what_is_there(components, tmp_path):
    save_components(
        tmp_path / "b", {"vae": components["vae"]}, {"num_frames": 9}, notes={"_hallo3_source": "a/b@c0ffee"}
    )
    card = ModelCard.load(tmp_path / "b" / CARD)
    assert card.data.library_name == "hallo3" and card.data.pipeline_tag == "image-to-video"
    count = sum(tensor.numel() for tensor in components["vae"].state_dict().values())
    assert f"| vae | `AutoencoderKLCogVideoX` | {count:,} |" in card.text
    assert "| transformer | not here yet" in card.text and "Clips of 9 frames that share 2" in card.text
    assert card.data.license == "other"
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


def test_the_embedded_card_states_its_own_licence(tmp_path):
    """As `write_card` writes it today: nothing that holds for weights of others."""
    folder = embedded_bundle()
    index, card = read_index(folder), ModelCard.load(folder / CARD)
    assert card.data.license == "mit" and "MIT" in card.text
    assert "CogVideoX licence" not in card.text and "InsightFace" not in card.text
    (tmp_path / "embedded").mkdir()
    for part in index.parts:
        (tmp_path / "embedded" / part).symlink_to(folder / part)
    write_card(tmp_path / "embedded", tmp_path / "embedded", index.parts, index.config, index.notes)
    assert (tmp_path / "embedded" / CARD).read_text() == (folder / CARD).read_text()
