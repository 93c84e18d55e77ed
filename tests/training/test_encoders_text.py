"""The tokenizer is sentencepiece's own in T5's clothes, and the text encoder learns captions."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, T5EncoderModel, T5Tokenizer

from hallo3.training.encoders_text import (
    EOS,
    PAD,
    UNKNOWN,
    draw_captions,
    hide_pieces,
    tokenize,
    train_text,
    train_tokenizer,
)
from hallo3.training.encoders_words import ACTIONS, PEOPLE, PLACES, ordinary_sentences
from hallo3.training.loop import LoopSettings

CAPTIONS = [
    f"A {age} {person} with {hair} hair is talking {place}."
    for age in ("young", "old")
    for person in ("man", "woman", "child")
    for hair in ("red", "grey", "black", "blond")
    for place in ("by the sea", "in the snow", "at a campfire")
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    train_tokenizer(CAPTIONS, folder, pieces=400, english=1500)
    return folder


@pytest.mark.parametrize("loader", [T5Tokenizer, AutoTokenizer])
def test_tokenizer_loads_from_its_folder_and_agrees_with_sentencepiece(tokenizer_folder, loader):
    tokenizer = loader.from_pretrained(tokenizer_folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "spiece.model"))
    assert len(tokenizer) == model.vocab_size() <= 400
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (PAD, EOS, UNKNOWN)
    for text in ("A young woman talking by the sea!", "An OLD man  with\ngrey hair", "Zoë's café – 42%", "日本", ""):
        assert tokenizer(text).input_ids == [*model.encode(text), EOS]


def test_an_older_tokenizer_in_the_folder_is_replaced(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    new = train_tokenizer(["quux " * 5, "quuxes quuxing"], folder, pieces=150, english=50)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert len(new) == model.vocab_size() <= 150


def test_captions_are_cut_and_padded_to_the_length(tokenizer_folder):
    ids = tokenize(T5Tokenizer.from_pretrained(tokenizer_folder), ["a man", " ".join(CAPTIONS)], 16)
    assert ids.shape == (2, 16)
    assert ids[0, -1] == PAD
    assert ids[1, -1] == EOS


def test_captions_are_drawn_with_all_that_the_studio_can_say():
    drawn = draw_captions(60)
    assert drawn == draw_captions(60) and len(set(drawn)) > 55
    for words in (("light", "lamp"), ("The camera", "hand-held")):
        told = [any(f". {word}" in line or word in line.split(". ", 1)[-1] for word in words) for line in drawn]
        assert 5 < sum(told) < 45


def test_common_words_are_known(tokenizer_folder):
    tokenizer = T5Tokenizer.from_pretrained(tokenizer_folder)
    for text in ordinary_sentences(50, seed=3):
        assert UNKNOWN not in tokenizer(text).input_ids


def test_ordinary_sentences_say_every_word_and_repeat_with_their_seed():
    text = " ".join(ordinary_sentences(4000))
    assert all(word in text for word in PEOPLE + PLACES + ACTIONS)
    assert ordinary_sentences(20, seed=4) == ordinary_sentences(20, seed=4) != ordinary_sentences(20, seed=5)


def test_only_word_pieces_are_hidden():
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, EOS, PAD, PAD]]).repeat(50, 1)
    masked, hidden = hide_pieces(ids, np.random.default_rng(0))
    assert not hidden[:, 6:].any()
    assert (masked[hidden] == UNKNOWN).all()
    assert torch.equal(masked[~hidden], ids[~hidden])
    assert 0.1 < hidden[:, :6].float().mean() < 0.3


def test_training_learns_captions_and_saves_the_parts(tmp_path):
    settings = LoopSettings(steps=30, learning_rate=2e-2, warmup=3, log_every=10)
    arguments = {"pieces": 200, "width": 16, "layers": 1, "length": 16, "english": 100, "batch": 16}
    trained = train_text(CAPTIONS, tmp_path / "trained", settings, **arguments, log=lambda line: None)
    rows = (tmp_path / "trained" / "checkpoints" / "text" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert losses[-1] < 0.6 * losses[0]
    assert trained["unknown_share_captions"] == 0
    encoder = T5EncoderModel.from_pretrained(tmp_path / "trained" / "text_encoder")
    ids = tokenize(T5Tokenizer.from_pretrained(tmp_path / "trained" / "tokenizer"), ["a man"], 16)
    assert encoder(ids).last_hidden_state.shape == (1, 16, 16)
