"""The prompt → text embeddings (spec section 1: T5, padded to a fixed length, no attention mask).

What stands in for a dropped prompt is zeros of the same shape, not the embedding of an empty one.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ..errors import UserError
from .placement import execution_device

MAX_CHARACTERS = 5_000


@torch.no_grad()
def encode_prompt(
    prompt: str, tokenizer: PreTrainedTokenizerBase, text_encoder: T5EncoderModel, length: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Text embeddings of a prompt.

    Args:
        prompt: Who is seen, what they do, and where; may be empty.
        length: Tokens (226 published); shorter prompts are padded, longer ones are cut.

    Returns:
        embeddings: `(1, length, c)` on the encoder's device, in its number format.
        notices: One line if the prompt was cut, naming the words that were lost.

    Raises:
        UserError: The prompt has more than 5,000 characters, or half a character (an unpaired surrogate).
    """
    _check(prompt)
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    # No attention mask: the published system lets T5 see the padding.
    embeddings = text_encoder(tokens.to(execution_device(text_encoder))).last_hidden_state
    return embeddings.to(text_encoder.dtype), _truncation_notice(prompt, tokenizer, length)


def _check(prompt: str) -> None:
    if len(prompt) > MAX_CHARACTERS:
        raise UserError(
            f"--prompt: {len(prompt):,} characters, more than {MAX_CHARACTERS:,}; "
            "describe person, action and place in a few sentences"
        )
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("--prompt: holds characters that are not valid text; type it again") from None


def _truncation_notice(prompt: str, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[str, ...]:
    tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    room = length - tokenizer.num_special_tokens_to_add()
    if len(tokens) <= room:
        return ()
    lost = " ".join(str(tokenizer.decode(tokens[room:], skip_special_tokens=True)).split())
    if len(lost) > 60:
        lost = lost[:57] + "…"
    return (f"the prompt is {len(tokens)} tokens long, the model reads {room}: “{lost}” is not seen",)
