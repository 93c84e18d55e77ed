"""The embedded bundle's text encoder: a small T5 encoder with a sentencepiece model of its own.

The published system takes T5 v1.1 XXL. Here a two-layer T5 encoder learns captions by two objectives: hidden word
pieces are guessed from the others (as in BERT, arXiv 1810.04805), and the mean of the embeddings tells which pieces the
caption has, so that every attribute named in it is there for the denoiser to read. As in the published system, captions
are padded to a fixed length and no attention mask is given.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from hallo3.training.encoders_run import train_encoder, write_metrics
from hallo3.training.encoders_words import ordinary_sentences
from hallo3.training.loop import Log, LoopSettings, StepRandom
from hallo3.training.starting import TEXT_LENGTH

HIDDEN_SHARE = 0.2  # of the word pieces are guessed
PAD, EOS, UNKNOWN = 0, 1, 2


def text_config(vocabulary: int, width: int = 64, layers: int = 2) -> T5Config:
    """T5 v1.1's form (gated GELU, RMS norms, relative positions), small and without dropout."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        is_encoder_decoder=False,
        use_cache=False,
    )


def draw_captions(count: int, seed: int = 0) -> list[str]:
    """`count` captions of drawn people (`studio.captions`); the same seed gives the same ones."""
    from hallo3.studio.captions import caption
    from hallo3.studio.identity import Identity
    from hallo3.studio.performance import CAMERAS, performance
    from hallo3.studio.scene import LIGHTS, Scene

    captions = []
    for index in range(count):
        random, further = (np.random.default_rng([seed, index, *more]) for more in ((), (1,)))
        # Two seconds: what a camera does is seen over time.
        light, camera = (
            str(further.choice(kinds)) if further.random() < 0.3 else kinds[0] for kinds in (LIGHTS, CAMERAS)
        )
        moment = performance(random, np.zeros(50), np.full(50, 0.5), None, camera)
        captions.append(caption(random, Identity.sample(random), Scene.sample(random, lighting=light), moment))
    return captions


def train_tokenizer(
    captions: list[str], out: Path, *, pieces: int = 1500, length: int = TEXT_LENGTH, english: int = 4000
) -> T5Tokenizer:
    """Trains a unigram sentencepiece model and writes it as a T5 tokenizer.

    Args:
        captions: What the model is mostly asked about; ordinary English is added for coverage. Case is folded.
        out: Folder for `spiece.model` and the files of transformers' `T5Tokenizer`.
        pieces: Size of the vocabulary, pad = 0, end = 1 and unknown = 2 included; fewer if the text holds fewer.
        length: Word pieces of a padded caption, kept as the tokenizer's `model_max_length`.
        english: Ordinary sentences added.
    """
    model = io.BytesIO()
    sentences = captions + ordinary_sentences(english)
    # A piece is only thought of if it occurs in several different words: so every word gets relatives.
    words = sorted({word.strip(".,;:!?()'") for sentence in sentences for word in sentence.lower().split()})
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [*sentences, *(f"{word} {word}s {word}, {word}. {word}ing {word}ed {word}ly" for word in words)]
        ),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNKNOWN,
        bos_id=-1,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()&",
        num_threads=1,
        minloglevel=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").unlink(missing_ok=True)  # an older one would be read instead of the new model
    (out / "spiece.model").write_bytes(model.getvalue())
    tokenizer = T5Tokenizer.from_pretrained(out, extra_ids=0, model_max_length=length)
    tokenizer.save_pretrained(out)
    return T5Tokenizer.from_pretrained(out)


def tokenize(tokenizer: T5Tokenizer, captions: list[str], length: int = TEXT_LENGTH) -> Tensor:
    """`(n, length)` word pieces, each caption cut or padded to the length."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return encoded.input_ids


class CaptionHeads(nn.Module):
    """What the embeddings are asked for: the hidden pieces, and which pieces a caption has."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.piece = nn.Linear(width, vocabulary)
        self.bag = nn.Linear(width, vocabulary)
        nn.init.constant_(self.bag.bias, -4.0)  # a caption has few of the pieces


def hide_pieces(ids: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Replaces some pieces by the unknown one; returns the ids to encode and where pieces were hidden."""
    chance = torch.from_numpy(random.random(tuple(ids.shape)))
    hidden = (chance < HIDDEN_SHARE) & (ids > UNKNOWN)
    return ids.masked_fill(hidden, UNKNOWN), hidden


def caption_loss(
    encoder: T5EncoderModel, heads: CaptionHeads, ids: Tensor, random: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of hidden pieces, plus that of the bag of pieces read from the mean of unhidden embeddings."""
    masked, hidden = hide_pieces(ids.cpu(), random)
    guesses = heads.piece(encoder(masked.to(ids.device)).last_hidden_state[hidden.to(ids.device)])
    pieces = F.cross_entropy(guesses, ids[hidden.to(ids.device)])
    bag = F.binary_cross_entropy_with_logits(bag_logits(encoder, heads, ids), bag_of(ids, heads), reduction="none")
    bag = bag.sum(-1).mean() / 4
    return pieces + bag, {"pieces": float(pieces.detach()), "bag": float(bag.detach())}


def bag_logits(encoder: T5EncoderModel, heads: CaptionHeads, ids: Tensor) -> Tensor:
    """`(n, vocabulary)` logits of a caption having each piece."""
    return heads.bag(encoder(ids).last_hidden_state.mean(1))


def bag_of(ids: Tensor, heads: CaptionHeads) -> Tensor:
    """`(n, vocabulary)` 1 for the pieces a caption has; padding, end and unknown don't count."""
    bag = torch.zeros(len(ids), heads.bag.out_features, device=ids.device).scatter_(1, ids, 1.0)
    bag[:, : UNKNOWN + 1] = 0
    return bag


def train_text(
    captions: list[str],
    out: Path,
    settings: LoopSettings,
    *,
    pieces: int = 1500,
    width: int = 64,
    layers: int = 2,
    length: int = TEXT_LENGTH,
    english: int = 8000,
    batch: int = 64,
    device: str = "cpu",
    log: Log = print,
) -> dict[str, Any]:
    """Trains tokenizer and text encoder and writes `tokenizer/`, `text_encoder/` and the metrics.

    Args:
        captions: Every twentieth different one is held out; a quarter of every batch is ordinary English.
        out: Folder of parts; the checkpoint lies in `out/checkpoints/text`.
        english: Ordinary sentences to draw.
    """
    different = sorted(set(captions))
    held_out = different[19::20] or different[-1:]
    training = sorted(set(different) - set(held_out)) or different
    tokenizer = train_tokenizer(training, out / "tokenizer", pieces=pieces, length=length, english=english // 2)
    torch.manual_seed(settings.seed)
    encoder = T5EncoderModel(text_config(len(tokenizer), width, layers))
    heads = CaptionHeads(width, len(tokenizer))
    both = nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device)
    groups = [tokenize(tokenizer, training, length), tokenize(tokenizer, ordinary_sentences(english, seed=1), length)]

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        shares = zip(groups, (batch - batch // 4, batch // 4), strict=True)
        ids = torch.cat(
            [group[torch.from_numpy(random.numpy.integers(0, len(group), share))] for group, share in shares]
        )
        return caption_loss(encoder, heads, ids.to(device), random.numpy)

    train_encoder(both, step_loss, out / "checkpoints" / "text", settings, log)
    encoder.eval().save_pretrained(out / "text_encoder")
    metrics = evaluate_text(encoder, heads, tokenizer, held_out[:512], length)
    write_metrics(out / "text_encoder", metrics, log)
    return metrics


@torch.no_grad()
def evaluate_text(
    encoder: T5EncoderModel, heads: CaptionHeads, tokenizer: T5Tokenizer, captions: list[str], length: int = TEXT_LENGTH
) -> dict[str, Any]:
    """Share of hidden pieces guessed, share of captions' pieces found in their mean embedding, and unknown pieces."""
    ids = tokenize(tokenizer, captions, length).to(encoder.device)
    masked, hidden = hide_pieces(ids.cpu(), np.random.default_rng(0))
    guesses = heads.piece(encoder(masked.to(ids.device)).last_hidden_state).argmax(-1)
    bag = bag_of(ids, heads) > 0
    found = bag_logits(encoder, heads, ids) > 0
    plain = tokenize(tokenizer, ordinary_sentences(500, seed=2), length)
    return {
        "captions": len(captions),
        "hidden_pieces_right": float((guesses == ids).cpu()[hidden].float().mean()),
        "bag_recall": float((found & bag).sum() / bag.sum()),
        "bag_precision": float((found & bag).sum() / found.sum().clamp(min=1)),
        "unknown_share_captions": float((ids == UNKNOWN).sum() / (ids > EOS).sum()),
        "unknown_share_english": float((plain == UNKNOWN).sum() / (plain > EOS).sum()),
        "pieces_per_caption": float((ids > EOS).float().sum(1).mean()),
        "embedding_rms": float(encoder(ids).last_hidden_state.square().mean().sqrt()),
    }
