"""Speech windows and face embeddings to tokens, or to additions to the time embedding (adaptive layer norm)."""

from torch import Tensor, cat, nn
from torch.nn import functional as F

from .embeddings import start_at_zero


class SpeechProjection(nn.Module):
    """Windows of speech features, one a video frame, to tokens of each latent frame (paper 3.2, audio embedding).

    Three linear layers make the tokens of a video frame; then, twice, the first frame is kept and the same convolution
    halves the others, as the VAE's compression of time keeps the first frame and takes four others together.
    """

    def __init__(self, window: int, blocks: int, channels: int, intermediate_dim: int, tokens: int, token_dim: int):
        super().__init__()
        self.proj1 = nn.Linear(window * blocks * channels, intermediate_dim)
        self.proj2 = nn.Linear(intermediate_dim, intermediate_dim)
        self.proj3 = nn.Linear(intermediate_dim, tokens * token_dim)
        self.conv = nn.Conv1d(tokens * token_dim, tokens * token_dim, 2, 2)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """`(B, F, window, blocks, channels)`, F = 4k + 1 video frames → `(B, k + 1, tokens, token_dim)`."""
        if windows.shape[1] % 4 != 1:
            raise ValueError(f"speech windows of {windows.shape[1]} video frames: their number must be 4k + 1")
        x = F.relu(self.proj1(windows.flatten(2)))
        x = self.proj3(F.relu(self.proj2(x))).transpose(1, 2)
        for _ in range(2):
            if x.shape[-1] > 1:
                x = cat([x[..., :1], self.conv(x[..., 1:])], -1)
        return self.norm(x.transpose(1, 2).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class FaceProjection(nn.Module):
    """A face embedding to a few tokens, the same for every latent frame."""

    def __init__(self, embed_dim: int, tokens: int, token_dim: int):
        super().__init__()
        self.proj = nn.Linear(embed_dim, tokens * token_dim)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """`(B, embed_dim)` → `(B, tokens, token_dim)`."""
        return self.norm(self.proj(embedding).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class SpeechTimeProjection(SpeechProjection):
    """The mean of each latent frame's speech tokens as an addition to the time embedding (paper 3.2, adaptive norm)."""

    def __init__(
        self,
        window: int,
        blocks: int,
        channels: int,
        intermediate_dim: int,
        tokens: int,
        token_dim: int,
        time_embed_dim: int,
    ):
        super().__init__(window, blocks, channels, intermediate_dim, tokens, token_dim)
        self.to_time = nn.Linear(token_dim, time_embed_dim)
        start_at_zero(self.to_time)

    def forward(self, windows: Tensor) -> Tensor:
        """`(B, F, window, blocks, channels)`, F = 4k + 1 video frames → `(B, k + 1, time_embed_dim)`."""
        return self.to_time(super().forward(windows).mean(2))


class FaceTimeProjection(nn.Module):
    """A face embedding as an addition to the time embedding (paper 3.3, face adaptive norm)."""

    def __init__(self, embed_dim: int, time_embed_dim: int):
        super().__init__()
        self.proj = nn.Linear(embed_dim, time_embed_dim)
        start_at_zero(self.proj)

    def forward(self, embedding: Tensor) -> Tensor:
        """`(B, embed_dim)` → `(B, time_embed_dim)`."""
        return self.proj(embedding)
