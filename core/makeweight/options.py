"""The options of the trainer: each field is a command-line option, a recipe key and a keyword argument of `Trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import UsageError

FORMATS = ("safetensors", "onnx", "pt2")


def require(condition: bool, option: str, given: object, expected: str) -> None:
    """Raise UsageError `option given: expected …` unless `condition` holds."""
    if not condition:
        raise UsageError(f"{option} {given}: expected {expected}")


def check_choices(options: object, prefix: str = "") -> None:
    """Raise UsageError if a field of type Literal has a value outside its choices. `prefix` precedes the field name."""
    if not is_dataclass(options):
        return
    for name, kind in get_type_hints(type(options)).items():
        if get_origin(kind) is Literal:
            value = getattr(options, name)
            require(value in get_args(kind), prefix + name, value, f"one of {', '.join(map(str, get_args(kind)))}")


@dataclass
class StageOptions:
    """Options that may differ between stages."""

    epochs: int = 10
    """number of passes over the training data"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """optimizer; sgd uses Nesterov momentum"""
    lr: float | None = None
    """peak learning rate; by default 0.03 for sgd and 0.001 for adamw"""
    momentum: float = 0.9
    """momentum of sgd"""
    weight_decay: float = 1e-4
    """weight decay of all parameters"""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """decay of the learning rate over the stage"""
    milestones: list[float] | None = None
    """for --schedule step: epochs after which the learning rate is multiplied by gamma; by default 1/2 and 3/4 of the
    epochs"""
    gamma: float = 0.1
    """for --schedule step: factor of the learning rate at each milestone"""
    warmup: float = 0.0
    """number of epochs in which the learning rate rises linearly from 0"""
    clip_norm: float | None = None
    """maximum norm of the gradient over all parameters; not clipped by default"""

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
    """One stage of a run: its options, and its plugin instances by name."""

    options: LoopOptions
    plugins: dict[str, Any]


@dataclass
class LoopOptions(StageOptions):
    """Options of the training loop. Those that `StageOptions` lacks are the same in all stages of a run."""

    batch_size: int = 128
    """examples per optimizer step, over all processes and micro-batches; an incomplete last batch is dropped"""
    accumulate: int = 1
    """micro-batches per optimizer step (gradient accumulation)"""
    workers: int = 0
    """data loading processes per training process, for data sets that are not held in memory"""
    seed: int = 0
    """seed of initial weights, data order, dropout and augmentation"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed-precision training"""
    channels_last: bool = False
    """use the channels-last memory format for images; most convolutions are faster with it"""
    checkpoint_every: int | None = None
    """optimizer steps between checkpoints; by default one checkpoint per epoch"""
    keep_checkpoints: int = 2
    """number of checkpoints to keep; older ones are deleted"""
    tracker: str | None = None
    """log to this tracker of accelerate in addition to metrics.jsonl: tensorboard, wandb, …"""

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
    """All options of the command line and of recipes, except the options of plugins."""

    plugins: list[str] = field(default_factory=list)
    """plugin names in the order in which their hooks run: prune,kd"""
    model: str = "lenet300"
    """lenet300, lenet5, resnet20 to resnet110, cifar-resnet18, a torchvision name, timm:NAME, or
    package.module:function"""
    data: str = "digits"
    """digits, mnist, fashion-mnist, cifar10, cifar100, imagefolder:DIR, or package.module:function"""
    data_dir: str | None = None
    """directory of the data; by default $MAKEWEIGHT_DATA, or if that is unset a cache that is filled by download"""
    image_size: int | None = None
    """height and width in pixels to which images are resized; for torchvision models at least 32 by default"""
    augment: Literal["none", "shift", "crop-flip", "auto"] = "none"
    """augmentation of training images: shift by up to 5%, random crop and flip, or AutoAugment after crop and flip"""
    validation: float = 0.1
    """validation split held out of the training data: a fraction (below 1) or a number of examples"""
    threads: int | None = None
    """CPU threads; results depend on the number through the order of summation. By default 1 for small networks,
    otherwise torch's default; config.yaml records the number"""
    weights: str | None = None
    """file of initial weights: an export or any safetensors file"""
    criterion: str | None = None
    """loss: package.module:function of (output, target), or a torch.nn loss class; by default cross entropy"""
    forward: str | None = None
    """call of the model: package.module:function of (model, batch); by default model(x) or model(**batch)"""
    metric: str | None = None
    """metric: package.module:function of (output, target), one value per example; by default accuracy for classes"""
    out: str | None = None
    """run directory; by default runs/<recipe or model>-<time>"""
    export: str = "safetensors"
    """export formats: safetensors (always written), onnx, pt2 (torch.export); several as in safetensors,onnx"""
    resume: bool = False
    """continue from the newest valid checkpoint in --out; start a new run if there is none"""
    dry_run: bool = False
    """check all options, show what each plugin would change, and exit without training"""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """list of stages that run in order, each a table of epochs, optimizer, … and plugin options"""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = 0 <= self.validation < 1 or (self.validation >= 1 and self.validation == int(self.validation))
        require(share, "validation", self.validation, "a fraction below 1, or a whole number of examples")
        require(self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "at least 1")
        require(self.threads is None or 0 <= self.threads <= 4096, "threads", self.threads, "0 (on a GPU) to 4096")
        require(set(self.formats) <= set(FORMATS), "export", self.export, f"one or more of {', '.join(FORMATS)}")

    @property
    def formats(self) -> list[str]:
        """The formats in `export`, without repetitions."""
        return list(dict.fromkeys(name.strip() for name in self.export.split(",") if name.strip()))


# Options of one invocation. They are not written to config.yaml, so that repeating a run creates a new run directory.
CONTROL = {"out", "resume", "dry_run"}
