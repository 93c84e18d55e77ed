"""What an animation will take, in memory and time, by each strategy (`plan.py` chooses).

Estimates are formulas over a bundle's sizes. With `b` bytes a number, `w` the network's width, `S` the tokens of text,
video and reference together, and `H × W` pixels:

- weights: numbers in the files × b.
- kept for a clip: keys and values, of every layer, of the reference (each one that the guidance branches see; its
  features wait on the host), of the face, and of the speech with and without sound.
- a forward of the denoiser: `FORWARD` · S·w·b. In its attention live the video, its input, the fused queries, keys and
  values (3), two of them rotated (2), the three sequences joined (3) and the output; the MLP takes a little less. The
  reference network has the tokens of text and portrait alone.
- 8-bit weights: a byte a number, of what is quantised (`quantized.py`); a forward takes what it takes without.
- decoding: `DECODE` · f·H·W·c·b, for the f frames of the first piece (9 of 49); c is half the VAE's second width, which
  enters its last block at full size. Encoding the same way, of portrait and motion frames.
- several GPUs for one clip (`parallel.py`): a forward's sequences are cut into parts, weights and what is kept are not.
  Of a layer each GPU sends queries, keys, values and results of its video and text tokens, and keys and values of its
  part of the reference: (4·n + 2·m)·w·b, but for what stays. The others have the denoiser alone.
- time: operations (`operations.py`) at `EFFICIENCY` of the speed of a large product of matrices, and what goes over the
  link to the GPU meanwhile or in between.

Tests compare them with what lives at once in real runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bundles.sizes import LAYERS, PINNED, PROJECTION, TEXT_LAYERS, BundleSizes
from ..sampling.guidance import GuidanceScales, branches
from ..sampling.shortcuts import EXACT, Shortcuts, count_evaluations
from .layout import Layout, choose_layout, divisible

FORWARD = {2: 11.2, 4: 10.4}  # sequences that live at once, by bytes a number; rotation is in float32 always
REFERENCE = 12.1
DECODE, ENCODE = 11.1, 9.8  # maps that live at once
ENCODE_ON_CPU = 11.0  # the same with convolutions by oneDNN (`networks/lean_vae.py`)
EFFICIENCY = 0.6  # share of the speed of a large product of matrices that a whole network reaches
LIBRARIES = {"cpu": 0.7e9, "cuda": 2.5e9}  # bytes of host memory that the program itself takes
CONTEXT = {"cpu": 0.0, "cuda": 0.8e9}  # bytes of device memory of libraries, and gaps between allocations
LINK = 20e9  # bytes a second between host and GPU, and between GPUs: PCIe 4.0 × 16, less what is lost
STRATEGIES = ("resident", "staged", "streamed")  # fastest first
DECODINGS = ("whole", "tiled")


@dataclass(frozen=True)
class Workload:
    """What to animate: seconds of speech; sampling steps; bytes a number; `cpu` or `cuda`; what may be left out; GPUs
    for one clip."""

    seconds: float
    steps: int
    guidance: GuidanceScales
    itemsize: int
    device: str
    shortcuts: Shortcuts = EXACT
    gpus: int = 1

    @property
    def branches(self) -> int:
        """Guidance branches in a step."""
        return len(branches(self.guidance))

    @property
    def evaluations(self) -> int:
        """Forwards of the denoiser in a clip, each of one branch."""
        return count_evaluations(self.steps, self.branches, self.shortcuts)


@dataclass(frozen=True)
class Estimate:
    """One way to animate: bytes of device memory in each stage, bytes of host memory, seconds (None where unknown).

    weights: `full`, or in one byte (`quantized.py`). decoding: `whole`, or `tiled`. others: bytes on each GPU but the
    first, where there are several. On a CPU device and host memory are one, and both figures are the whole.
    """

    strategy: str
    stages: Mapping[str, float]
    host: float
    seconds: float | None
    weights: str = "full"
    decoding: str = "whole"
    others: float = 0.0

    @property
    def exact(self) -> bool:
        """Results are those of `resident`."""
        return (self.weights, self.decoding) == ("full", "whole")

    @property
    def name(self) -> str:
        """In words."""
        extra = [f"{self.weights} weights"] * (self.weights != "full") + ["tiled decoding"] * (self.decoding != "whole")
        return ", ".join([self.strategy, *extra])

    @property
    def device(self) -> float:
        """Bytes of device memory at the worst moment."""
        return max(self.stages.values())


class Sizes:
    """A bundle's sizes in bytes, for one workload. The formulas are those of this module's description.

    weights, decoding: see `Estimate`.
    """

    def __init__(self, bundle: BundleSizes, work: Workload, weights: str = "full", decoding: str = "whole") -> None:
        self.bundle, self.work, self.b = bundle, work, work.itemsize
        self.quantised, self.tiled = weights, decoding == "tiled"
        k, settings = bundle.denoiser, bundle.settings
        self.layers = k.get("num_layers", 42)
        self.width = k.get("num_attention_heads", 48) * k.get("attention_head_dim", 64)
        self.pixels = settings["sample_height"] * settings["sample_width"]
        self.frames = (settings["num_frames"] - 1) // 4 + 1
        self.tokens = self.pixels // (8 * k.get("patch_size", 2)) ** 2
        self.words = settings["text_length"]
        heads, most = divisible(k)
        self.layout: Layout = choose_layout(work.gpus, work.branches, heads, min(most, self.tokens, self.words))
        self.share = self.layout.share(heads)
        self.seen = {branch.reference for branch in branches(work.guidance)}

    def weights(self, part: str) -> float:
        """Of a part of the bundle; 0 where it has none."""
        count = self.bundle.parameters.get(part, 0)
        return count * self.b - (self.b - 1) * (0 if self.quantised == "full" else self._in_a_byte(part))

    def pinned(self) -> float:
        """The denoiser's layers in pinned memory, where each tensor takes a power of two."""
        count = self.bundle.parameters
        return self.weights(LAYERS) * count.get(PINNED, 0) / max(count[LAYERS], 1)

    def _in_a_byte(self, part: str) -> float:
        """Numbers of a part that quantisation stores in one byte."""
        count, found = self.bundle.parameters, 0.0
        if part in ("transformer", LAYERS):
            modulations = 12 * self.width * (self.bundle.denoiser.get("time_embed_dim", 512) + 1)
            found = count.get(LAYERS, 0) - self.layers * modulations
        elif part == "reference_network":  # the last of its layers is only a norm
            found = 12 * self.width**2 * (self.layers - 1)
        elif part in ("text_encoder", TEXT_LAYERS):
            found = count.get(TEXT_LAYERS, 0)
        return max(0.0, min(found, count.get(part, 0)))

    def always(self) -> float:
        """What every strategy keeps on the device: the speech encoder, and what libraries take."""
        return self.weights("speech_encoder") + CONTEXT[self.work.device]

    def features(self) -> float:
        """Of the reference network, kept for the whole video."""
        if "reference_network" not in self.bundle.parameters:
            return 0.0
        return len(self.seen) * self.layers * self.tokens * self.width * self.b

    def kept(self) -> float:
        """The keys and values of reference, face and speech of a clip; on a CPU the reference's features too."""
        k = self.bundle.denoiser
        heard = 2 * self.frames * k.get("speech_tokens", 32) * (k.get("speech_conditioning", "cross") != "norm")
        known = k.get("face_tokens", 4) * (k.get("identity_conditioning", "both") in ("face", "both"))
        return (2 + self.on_cpu) * self.features() + self.layers * 2 * self.width * (heard + known) * self.b

    @property
    def on_cpu(self) -> bool:
        """Device and host are one."""
        return self.work.device == "cpu"

    def denoising(self) -> float:
        """A forward of the denoiser, or of one GPU's part of it."""
        whole = FORWARD[self.b] * (self.words + (self.frames + 1) * self.tokens) * self.width * self.b
        return whole * self.share

    def exchanged(self) -> float:
        """Bytes that each GPU sends to the others in a forward of which each computes a part."""
        parts = self.layout.parts
        kinds = 4 * (self.words + self.frames * self.tokens)
        if self.bundle.denoiser.get("identity_conditioning", "both") in ("reference", "both"):
            kinds += 2 * self.tokens
        return self.layers * kinds * self.width * self.b * (parts - 1) / parts**2

    def referring(self) -> float:
        """A forward of the reference network."""
        return REFERENCE * (self.words + self.tokens) * self.width * self.b

    def _maps(self, frames: int) -> float:
        return frames * self.pixels * self.bundle.vae["block_out_channels"][1] / 2 * self.b

    def decoding(self) -> float:
        """The first piece of a clip through the VAE's decoder."""
        whole = DECODE * self._maps(4 * (min(self.frames, 2 + self.frames % 2) - 1) + 1)
        if not self.tiled:
            return whole
        tile = (self.bundle.vae.get("sample_height", 480) // 2) * (self.bundle.vae.get("sample_width", 720) // 2)
        clip = 3 * self.bundle.settings["num_frames"] * self.pixels
        # The last tile beside the frames of all others, which overlap; or these, put together, and that in float32.
        return max(min(whole, whole * tile / self.pixels) + 1.7 * clip * self.b, clip * (3 * self.b + 8))

    def encoding(self) -> float:
        """Portrait and motion frames through the VAE's encoder."""
        held = ENCODE_ON_CPU if self.on_cpu else ENCODE
        return held * self._maps(1 + self.bundle.settings["motion_frames"])


def resident(sizes: Sizes) -> dict[str, float]:
    """Everything stays on the device."""
    parts = ("transformer", "reference_network", "text_encoder", "vae")
    held = sizes.always() + sum(map(sizes.weights, parts))
    return {
        "reference": held + sizes.features() + max(sizes.referring(), sizes.encoding()),
        "denoising": held + sizes.kept() + sizes.denoising(),
        "decoding": held + sizes.kept() + max(sizes.decoding(), sizes.encoding()),
    }


def staged(sizes: Sizes) -> dict[str, float]:
    """Text encoder and reference network come, work and are freed; projection, denoiser and VAE make room.

    On a CPU these stay where they are.
    """
    held, projection = sizes.always(), sizes.weights(PROJECTION)
    loop, vae = sizes.weights("transformer") - projection, sizes.weights("vae")
    if sizes.on_cpu:
        held, projection, loop, vae = held + projection + loop + vae, 0.0, 0.0, 0.0
    return {
        "text": held + sizes.weights("text_encoder"),
        "portrait": held + vae + sizes.encoding(),
        "reference": held + sizes.weights("reference_network") + sizes.features() + sizes.referring(),
        "speech": held + sizes.kept() + projection,
        "denoising": held + sizes.kept() + loop + sizes.denoising(),
        "decoding": held + sizes.kept() + vae + max(sizes.decoding(), sizes.encoding()),
    }


def streamed(sizes: Sizes) -> dict[str, float]:
    """As staged, with two layers of a network on the device: one that computes, one that comes.

    On a CPU every layer stays where it is.
    """
    stages = staged(sizes)
    if sizes.on_cpu:
        return stages
    text, layer = sizes.weights(TEXT_LAYERS), sizes.weights(LAYERS) / sizes.layers
    stages["text"] -= text - min(text, 2 * text / max(sizes.bundle.text_layers, 1))
    # The reference network's layers are the denoiser's without face and speech attention.
    reference = sizes.weights("reference_network")
    stages["reference"] -= reference * max(0.0, 1 - 2 / sizes.layers)
    stages["denoising"] -= sizes.weights(LAYERS) - min(sizes.weights(LAYERS), 2 * layer)
    return stages


def helping(sizes: Sizes, strategy: str) -> float:
    """Bytes on a GPU that only helps the first with its evaluations."""
    loop = sizes.weights("transformer")
    if strategy != "resident":
        loop -= sizes.weights(PROJECTION)
    if strategy == "streamed":
        layers = sizes.weights(LAYERS)
        loop -= layers - min(layers, 2 * layers / sizes.layers)
    return CONTEXT[sizes.work.device] + sizes.kept() + loop + sizes.denoising()


def host_memory(sizes: Sizes, strategy: str) -> float:
    """Bytes of host memory beside a GPU: weights are read there first, and those that come and go stay there.

    Files are mapped: what another stage has read can be given back. What is pinned can't.
    """
    denoiser = sizes.weights("transformer")
    once = sizes.weights("reference_network"), sizes.weights("text_encoder")
    beside = sizes.weights("vae") + sizes.weights("speech_encoder") + LIBRARIES["cuda"]
    if strategy == "resident":
        return beside + denoiser + sum(once)
    if strategy == "streamed":
        denoiser += sizes.pinned() - sizes.weights(LAYERS)
    return beside + max(denoiser, *once)


@dataclass(frozen=True)
class Speed:
    """Operations of a guidance branch's step, of a clip's decoding; and how many of them a second.

    source: where the speed comes from, in words.
    """

    step: float
    decoding: float
    per_second: float
    source: str


def ways(weights: str = "auto", decoding: str = "auto") -> list[tuple[str, str, str]]:
    """Strategy, weights and decoding of what is considered: exact ones, fastest first; then approximate ones.

    weights, decoding: `auto`, or what is asked for.
    """
    first = "full" if weights == "auto" else weights, "whole" if decoding == "auto" else decoding
    found = [(strategy, *first) for strategy in STRATEGIES]
    if weights == "auto":
        found += [("staged", "int8", first[1]), ("streamed", "int8", first[1])]
    if decoding == "auto":
        found += [("streamed", kind, "tiled") for kind in dict.fromkeys((first[0], found[-1][1]))]
    return found


def seconds_of(sizes: Sizes, strategy: str, speed: Speed) -> float:
    """Time of the whole video, without loading."""
    work, each = sizes.work, EFFICIENCY * speed.per_second
    clips = clips_of(sizes.bundle, work.seconds)
    # Several GPUs evaluate every branch in every step: that takes no longer than one.
    forwards = work.evaluations if work.gpus == 1 else work.steps * sizes.layout.rounds(work.branches)
    step, a_clip = speed.step * sizes.share / each, speed.decoding / each
    if strategy != "resident" and not sizes.on_cpu:
        streams = strategy == "streamed"
        if streams:
            step = max(step, sizes.weights(LAYERS) / LINK)  # every GPU has a link of its own
        a_clip += (sizes.weights("transformer") - streams * sizes.weights(LAYERS)) / LINK
    return clips * (forwards * (step + sizes.exchanged() / LINK) + a_clip)


def clips_of(bundle: BundleSizes, seconds: float) -> int:
    """Clips that so many seconds of speech take."""
    from ..conditions.speech import SAMPLE_RATE, num_clips, num_video_frames

    settings = bundle.settings
    frames = num_video_frames(round(seconds * SAMPLE_RATE), settings["fps"])
    return num_clips(frames, settings["num_frames"], settings["motion_frames"])


def estimates(
    bundle: BundleSizes, work: Workload, speed: Speed | None = None, considered: Sequence[tuple[str, str, str]] = ()
) -> list[Estimate]:
    """What each way (`ways`; all by default) takes, in the order of preference."""
    found = []
    for strategy, weights, decoding in considered or ways():
        sizes = Sizes(bundle, work, weights, decoding)
        stages = {"resident": resident, "staged": staged, "streamed": streamed}[strategy](sizes)
        if sizes.on_cpu:
            stages = {stage: count + LIBRARIES["cpu"] for stage, count in stages.items()}
        found.append(
            Estimate(
                strategy=strategy,
                stages=stages,
                host=max(stages.values()) if sizes.on_cpu else host_memory(sizes, strategy),
                seconds=None if speed is None else seconds_of(sizes, strategy, speed),
                weights=weights,
                decoding=decoding,
                others=helping(sizes, strategy) if work.gpus > 1 else 0.0,
            )
        )
    return found
