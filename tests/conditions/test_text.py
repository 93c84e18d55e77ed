"""Prompts through a small T5 of the real class."""

import pytest
import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from hallo3.conditions.text import MAX_CHARACTERS, encode_prompt
from hallo3.errors import UserError

WORDS = ("a", "man", "woman", "speaks", "in", "the", "rain", "slowly")


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -8.0), *((f"▁{word}", -3.0) for word in WORDS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(**sizes)).eval()


def test_prompts_are_padded_to_the_length_and_the_padding_is_seen(tokenizer, encoder):
    embeddings, notices = encode_prompt("a man speaks", tokenizer, encoder, 10)
    assert embeddings.shape == (1, 10, 16)
    assert notices == ()
    ids = [*tokenizer.convert_tokens_to_ids(["▁a", "▁man", "▁speaks", "</s>"]), *[0] * 6]
    with torch.no_grad():
        assert torch.equal(embeddings, encoder(torch.tensor([ids])).last_hidden_state)
        # T5 is not told which tokens are padding, as published: with a mask the result would be another.
        masked = encoder(torch.tensor([ids]), attention_mask=torch.tensor([[1] * 4 + [0] * 6])).last_hidden_state
    assert not torch.allclose(embeddings, masked, atol=1e-3)


def test_a_long_prompt_is_cut_and_says_what_was_lost(tokenizer, encoder):
    embeddings, notices = encode_prompt("a man speaks slowly in the rain", tokenizer, encoder, 6)
    assert embeddings.shape == (1, 6, 16)
    assert notices == ("the prompt is 7 tokens long, the model reads 5: “the rain” is not seen",)
    assert encode_prompt("a man speaks slowly in", tokenizer, encoder, 6)[1] == ()
    assert torch.equal(embeddings, encode_prompt("a man speaks slowly in", tokenizer, encoder, 6)[0])


def test_the_empty_prompt_has_an_embedding_too(tokenizer, encoder):
    embeddings, notices = encode_prompt("", tokenizer, encoder, 8)
    assert embeddings.shape == (1, 8, 16)
    assert notices == ()
    assert embeddings.abs().max() > 0


def test_the_encoders_number_format_is_kept(tokenizer, encoder):
    small = T5EncoderModel(encoder.config).eval().to(torch.bfloat16)
    assert encode_prompt("the rain", tokenizer, small, 8)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("prompt", "said"), [("rain " * 2000, "10,000 characters"), ("a \ud800 man", "not valid text")]
)
def test_impossible_prompts_are_refused_in_one_line(tokenizer, encoder, prompt, said):
    with pytest.raises(UserError, match=said) as error:
        encode_prompt(prompt, tokenizer, encoder, 8)
    assert "\n" not in str(error.value)
    assert len("rain " * 2000) > MAX_CHARACTERS
