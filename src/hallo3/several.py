"""One clip on several processes that `torchrun` started: the first does everything, the others evaluate with it.

The first one parses, reads, encodes, samples, decodes, writes and speaks, as if it were alone. Of the denoiser's
forwards the others do their share: they have the denoiser only, are given what the guidance branches of a clip take,
and then, step by step, the sample. So all work on the same latents, a run can be resumed, and the first can end between
any two steps, for whatever reason: the others wait for its word.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Ended, in_one_line, show_bug, users_to_mend

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .networks.denoiser import Hallo3Transformer3DModel
    from .runtime.estimates import Estimate
    from .runtime.layout import Layout
    from .runtime.parallel import Group, SplitTokens
    from .runtime.strategies import Strategy
    from .sampling.evaluation import BranchInputs, Evaluate

_led: "Group | None" = None
_MOST_BRANCHES = 4  # that guidance has


def run(work: Callable[[], int]) -> int:
    """Runs a command: in this process; or, of those that `torchrun` started, in the first, for which the others work.

    work: gives an exit code, and reports its errors itself. Returns this process's exit code.
    """
    global _led
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    # Ctrl-C is told to all, perhaps twice: the first process says, once, what comes of it.
    signal.signal(signal.SIGINT, _stop_once if os.environ.get("RANK") == "0" else signal.SIG_IGN)
    from .runtime.parallel import Group

    group = Group()
    signal.signal(signal.SIGTERM, partial(_end_once, group))  # torchrun sends it when another process has ended
    if not group.leads:
        return follow(group)
    _led = group
    try:
        code = work()
    finally:
        _led = None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end has begun, and is told
    if code:
        group.end(code)
    try:
        group.send({"do": "end"})
    except RuntimeError:  # the others have gone already
        return code or 1
    if not code:  # else they may still wait within a step
        group.leave()
    return code


def _stop_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_once(group: "Group", number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _ended(group)


def led() -> "Group | None":
    """The group that this process leads; None where it is alone."""
    return _led


# ------------------------------------------------------------------------------------------------------- for the first


def room(group: "Group", device: str) -> "tuple[torch.device, tuple[int, int]]":
    """The first process's device, and bytes of device and host memory that every process may take.

    Raises UserError for a device that they can't share.
    """
    found = group.use_device(device)
    with _heeding(group):
        group.send({"do": "room", "device": found.type})
        return found, group.room()


def lead(group: "Group", folder: Path, dtype: "torch.dtype", chosen: "Estimate", attention: str = "native") -> "Leader":
    """Lets the others load a bundle's denoiser; returns what evaluates with them (see `Hallo3Pipeline.evaluator`).

    Raises UserError when they are more than can share the work.
    """
    from .bundles.parts import read_json
    from .runtime.layout import choose_layout, divisible

    config = read_json(folder / "transformer" / "config.json")
    choose_layout(group.size, _MOST_BRANCHES, *divisible(config))
    how = {"weights": chosen.weights, "strategy": chosen.strategy, "dtype": str(dtype).removeprefix("torch.")}
    how["attention"] = attention
    with _heeding(group):
        group.send({"do": "load", "bundle": {"folder": str(folder.absolute()), **how}})
    return Leader(group)


class Leader:
    """Evaluates guidance branches with the other processes of a group."""

    def __init__(self, group: "Group") -> None:
        self._group, self._part = group, Part(group)

    def __call__(self, denoiser: "Hallo3Transformer3DModel", inputs: "list[BranchInputs]") -> "Evaluate":
        """Hands a clip's inputs over; what it returns runs a step.

        Raises UserError, before the others are told, when they are more than can share so many branches.
        """
        self._part.layout(denoiser, inputs)
        tensors: dict[int, Tensor] = {}
        words = [_taken_apart(vars(one), tensors) for one in inputs]
        with _heeding(self._group):
            self._group.send({"do": "forget"})
            self._group.send({"do": "clip", "inputs": words}, list(tensors.values()))
            evaluate = self._part.evaluator(denoiser, inputs)

        def evaluate_together(sample: "Tensor", timestep: "Tensor") -> "list[Tensor]":
            with _heeding(self._group):
                self._group.send({"do": "step"}, [sample, timestep])
                return evaluate(sample, timestep)

        return evaluate_together


@contextmanager
def _heeding(group: "Group") -> Iterator[None]:
    """Where another process is waited for: its end is no fault of what is being made."""
    try:
        yield
    except RuntimeError as error:
        if not _is_broken(error):
            raise
        raise _ended(group) from error


def _ended(group: "Group") -> Ended:
    """With what a process ends when another is gone: the exit code of who went first; a line if that one said none."""
    first, code = group.end(1)
    return Ended(_BROKEN if first else None, code)


def _is_broken(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "Connection closed" in str(error) or "Connection reset" in str(error)


_BROKEN = (
    "another process of this run ended without a word (memory may have run out), or torchrun was stopped; animate goes "
    "on with --resume, other commands when given again"
)


# ------------------------------------------------------------------------------------------------------ for the others


def follow(group: "Group") -> int:
    """Does what the first process says until it says end. Returns an exit code; an error is reported before."""
    try:
        with _heeding(group):
            _follow(group)
        group.leave()
        return group.end(0)[1]
    except Ended as ended:
        line, code = ended.line, ended.code
    except Exception as error:
        show_bug(error)
        first, code = group.end(2 if users_to_mend(error) else 1)
        line = in_one_line(error) if first else None
    if line is not None:
        print(f"hallo3: error: process {group.rank}: {line}", file=sys.stderr, flush=True)
    return code


def _follow(group: "Group") -> None:
    import torch

    helper = Helper(group)
    with torch.no_grad(), helper:
        while True:
            message, tensors = group.receive()
            match message["do"]:
                case "room":
                    group.use_device(message["device"])
                    group.room()
                case "load":
                    helper.load(**message["bundle"])
                case "forget":  # the clip before, so that never two are held
                    helper.evaluate = None
                case "clip":
                    helper.take(message["inputs"], tensors)
                case "step":
                    helper.evaluate(*tensors)
                case _:
                    return


class Helper:
    """What a process other than the first holds: a denoiser, on its device as far as its strategy puts it there.

    transformer: the denoiser, under the name that strategies look for. evaluate: what it does of a step.
    """

    def __init__(self, group: "Group") -> None:
        self._group, self._part = group, Part(group)
        self.transformer: Any = None
        self.evaluate: Any = None
        self._strategy: Strategy | None = None
        self._held = ExitStack()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def load(self, folder: str, dtype: str, weights: str, strategy: str, attention: str) -> None:
        """Loads the denoiser of a bundle's folder, in place of the one before."""
        import torch

        from .bundles.layout import load_components
        from .runtime.attention import use_attention
        from .runtime.quantized import quantize
        from .runtime.strategies import Resident, Staged, Streamed

        def read(part: str) -> Any:
            return quantize(part, load_components(folder, [part], torch_dtype=getattr(torch, dtype))[part], weights)

        device = self._group.device
        self._held.close()
        self.transformer = read("transformer")
        use_attention(self.transformer, attention)
        if strategy == "resident":
            self.transformer.to(device)
            self._strategy = Resident()
        else:
            self._strategy = (Streamed if strategy == "streamed" else Staged)(device, read)
        self._held.enter_context(self._strategy.using(self, "transformer"))

    def take(self, words: list[dict[str, Any]], tensors: "list[Tensor]") -> None:
        """Takes what a clip's branches need; the speech projection, too, where its speech comes as it is."""
        inputs = _put_together(words, tensors)
        if self._strategy is not None and any("speech" in one.given for one in inputs):
            self._held.enter_context(self._strategy.using(self, "speech_projection"))
        self.evaluate = self._part.evaluator(self.transformer, inputs)


# -------------------------------------------------------------------------------------------------------- for them all


class Part:
    """What one process does of the evaluations of its group's clips; all of them do theirs at the same time."""

    def __init__(self, group: "Group") -> None:
        self._group = group
        self._split: tuple[Any, SplitTokens | None] = (None, None)

    def layout(self, denoiser: "Hallo3Transformer3DModel", inputs: "list[BranchInputs]") -> "Layout":
        """How a clip's branches are shared out. Raises UserError when so many processes can't share them."""
        from .runtime.layout import choose_layout, divisible

        heads, most = divisible(denoiser.config)
        return choose_layout(self._group.size, len(inputs), heads, min(most, *_counts(denoiser, inputs[0])))

    def evaluator(self, denoiser: "Hallo3Transformer3DModel", inputs: "list[BranchInputs]") -> "Evaluate":
        """Gives what evaluates this process's part of a clip; it returns all estimates, in the first process."""
        import torch
        import torch.distributed as dist

        from .sampling.evaluation import evaluate as evaluate_branches

        layout, count = self.layout(denoiser, inputs), len(inputs)
        mesh, groups = self._group.mesh(layout), layout.branches
        self._arrange(denoiser, layout, _counts(denoiser, inputs[0]))
        inputs = inputs[mesh.get_local_rank("branch") :: groups]

        def evaluate(sample: "Tensor", timestep: "Tensor") -> "list[Tensor]":
            own = [v for one in inputs for v in evaluate_branches(denoiser, one, sample, timestep)]
            if groups == 1 or mesh.get_local_rank("ulysses"):
                return own
            filled = torch.stack(own + [torch.zeros_like(own[0])] * (layout.rounds(count) - len(own)))
            found = [torch.empty_like(filled) for _ in range(groups)]
            dist.all_gather(found, filled, group=mesh.get_group("branch"))
            return [found[branch % groups][branch // groups] for branch in range(count)]

        return evaluate

    def _arrange(self, denoiser: "Hallo3Transformer3DModel", layout: "Layout", counts: list[int]) -> None:
        """Splits the denoiser's tokens as a clip needs it, if they aren't already."""
        from .runtime.parallel import SplitTokens

        key, (before, split) = (denoiser, layout, *counts), self._split
        if key == before:
            return
        if split is not None:
            split.undo()
        self._split = key, None
        if layout.parts > 1:
            self._split = key, SplitTokens(denoiser, self._group.mesh(layout), counts[0], counts[1:])


def _counts(denoiser: "Hallo3Transformer3DModel", inputs: "BranchInputs") -> list[int]:
    """Tokens of a latent frame, of the text, and of the reference if there is one."""
    height, width = inputs.image_latents.shape[-2:]
    counts = [height * width // denoiser.config.patch_size**2, inputs.text_embeds.shape[1]]
    given = inputs.given
    reference = given["conditions"].reference if "conditions" in given else given.get("reference")
    return counts if reference is None else [*counts, reference[0].shape[1]]


def _taken_apart(value: Any, tensors: "dict[int, Tensor]") -> Any:
    """A value as JSON, with a number in place of each tensor: that of its place in `tensors`. None is kept."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors.setdefault(id(value), value)
        return {"tensor": list(tensors).index(id(value))}
    if isinstance(value, list):
        return [_taken_apart(one, tensors) for one in value]
    named = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    return value if named is None else {name: _taken_apart(one, tensors) for name, one in named.items()}


def _put_together(words: "list[dict[str, Any]]", tensors: "list[Tensor]") -> "list[BranchInputs]":
    from .networks.conditions import DenoiserConditions
    from .sampling.evaluation import BranchInputs

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(one) for one in value]
        if not isinstance(value, dict):
            return value
        if list(value) == ["tensor"]:
            return tensors[value["tensor"]]
        parts = {name: whole(one) for name, one in value.items()}
        if "conditions" in parts:
            parts["conditions"] = DenoiserConditions(**parts["conditions"])
        return parts

    return [BranchInputs(**whole(one)) for one in words]
