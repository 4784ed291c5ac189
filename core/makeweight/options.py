"""The options of the trainer: command line, recipe keys and keyword arguments of `Trainer` at once."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import UsageError

FORMATS = ("safetensors", "onnx", "pt2")


def require(condition: bool, option: str, given: object, expected: str) -> None:
    """Raise UsageError in the one form that errors about options have: `option given: expected …`."""
    if not condition:
        raise UsageError(f"{option} {given}: expected {expected}")


def check_choices(options: object, prefix: str = "") -> None:
    """Raise UsageError where a field that is one of several words, a Literal, holds another."""
    if not is_dataclass(options):
        return
    for name, kind in get_type_hints(type(options)).items():
        if get_origin(kind) is Literal:
            value = getattr(options, name)
            require(value in get_args(kind), prefix + name, value, f"one of {', '.join(map(str, get_args(kind)))}")


@dataclass
class StageOptions:
    """What may change from stage to stage."""

    epochs: int = 10
    """passes over the training data"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """update rule; sgd is with Nesterov momentum"""
    lr: float | None = None
    """learning rate at its highest; 0.03 with sgd and 0.001 with adamw unless given"""
    momentum: float = 0.9
    """momentum of sgd"""
    weight_decay: float = 1e-4
    """weight decay, on all parameters"""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """how the learning rate falls over the stage"""
    milestones: list[float] | None = None
    """with --schedule step: the epochs after which the rate is multiplied by gamma; halfway and at 3/4 unless given"""
    gamma: float = 0.1
    """with --schedule step: the factor at each milestone"""
    warmup: float = 0.0
    """epochs over which the learning rate rises linearly from 0"""
    clip_norm: float | None = None
    """largest norm of the gradient over all parameters; off unless given"""

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 <= momentum < 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "0 < gamma <= 1")
        require(all(each > 0 for each in self.milestones or ()), "milestones", self.milestones, "epochs above 0")
        require(0 <= self.warmup <= self.epochs, "warmup", self.warmup, f"between 0 and the {self.epochs} epochs")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "a number above 0")

    @property
    def peak_lr(self) -> float:
        return self.lr if self.lr is not None else {"sgd": 0.03, "adamw": 0.001}[self.optimizer]


@dataclass
class Stage:
    """One stage of a run: what it trains with, and its plugin instances by name, made from the stage's options."""

    options: LoopOptions
    plugins: dict[str, Any]


@dataclass
class LoopOptions(StageOptions):
    """What the training loop needs to know, and keeps for the whole run."""

    batch_size: int = 128
    """examples in an optimizer step, over all processes and micro-batches; a last batch that is short is dropped"""
    accumulate: int = 1
    """micro-batches in an optimizer step"""
    workers: int = 0
    """processes that load data which does not fit in memory, for each training process"""
    seed: int = 0
    """seed of the initial weights, the order of the data, dropout and augmentation"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision"""
    channels_last: bool = False
    """lay images out with their channels last, which makes most convolutions faster"""
    checkpoint_every: int | None = None
    """optimizer steps between checkpoints; an epoch unless given"""
    keep_checkpoints: int = 2
    """checkpoints kept: the newest ones"""
    tracker: str | None = None
    """also log to this tracker of accelerate's: tensorboard, wandb, …"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        require(self.workers >= 0, "workers", self.workers, "0 or more")
        require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 <= seed < 2^63")
        require(self.checkpoint_every is None or self.checkpoint_every >= 1, "checkpoint_every",
                self.checkpoint_every, "at least 1")  # fmt: skip
        require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "at least 1")


@dataclass
class Options(LoopOptions):
    """Everything that the command line and a recipe can say, but for the plugins' own options."""

    plugins: list[str] = field(default_factory=list)
    """names of plugins, in the order of their hooks: prune,kd"""
    model: str = "lenet300"
    """lenet300, lenet5, resnet20 and its kin, a torchvision name, timm:NAME, or package.module:function"""
    data: str = "digits"
    """digits, mnist, fashion-mnist, cifar10, cifar100, imagefolder:DIR, or package.module:function"""
    data_dir: str | None = None
    """where the data lies; $MAKEWEIGHT_DATA unless given, else downloaded once"""
    image_size: int | None = None
    """height and width to which images are resized; torchvision models get at least 32"""
    augment: Literal["none", "shift", "crop-flip", "auto"] = "none"
    """what is done to training images: moved by up to a twentieth, cropped and mirrored, or AutoAugment's policy too"""
    validation: float = 0.1
    """fraction (below 1) or number of training examples held out for the metrics of each epoch"""
    threads: int | None = None
    """threads of the CPU: other numbers add up in another order. One for light networks unless given; config.yaml says
    how many a run had"""
    weights: str | None = None
    """starting weights: an export, or any safetensors file"""
    criterion: str | None = None
    """the loss, package.module:function of (output, target) or a torch.nn loss class; cross entropy unless given"""
    forward: str | None = None
    """how the model is called, package.module:function of (model, batch)"""
    metric: str | None = None
    """package.module:function of (output, target) giving a value for each example; accuracy for classes"""
    out: str | None = None
    """the run directory; runs/<recipe or model>-<time> unless given"""
    export: str = "safetensors"
    """what is written in the end: safetensors, always; onnx and pt2 (torch.export) too: safetensors,onnx"""
    resume: bool = False
    """go on from the newest valid checkpoint in --out; start if there is none"""
    dry_run: bool = False
    """say what each plugin would touch, and stop"""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """a list of tables, each with epochs, optimizer, … and plugin options of its own, run one after the other"""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = 0 <= self.validation < 1 or (self.validation >= 1 and self.validation == int(self.validation))
        require(share, "validation", self.validation, "a fraction below 1, or a whole number of examples")
        require(self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "at least 1")
        require(self.threads is None or 0 <= self.threads <= 4096, "threads", self.threads, "0 (a GPU's) to 4096")
        require(set(self.formats) <= set(FORMATS), "export", self.export, f"one or more of {', '.join(FORMATS)}")

    @property
    def formats(self) -> list[str]:
        """What `export` names, each once."""
        return list(dict.fromkeys(name.strip() for name in self.export.split(",") if name.strip()))


# What says how to run rather than what: no part of a resolved recipe, so that repeating one starts a run of its own.
CONTROL = {"out", "resume", "dry_run"}
