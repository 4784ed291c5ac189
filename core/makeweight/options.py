"""The options of the trainer: each field is a command-line option, a recipe key and a keyword argument of `Trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import UsageError, did_you_mean

FORMATS = ("safetensors", "onnx", "pt2")
PICKLES = (".pth", ".pt", ".bin", ".pth.tar")
"""file name extensions of files written by torch.save"""


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
    """for --schedule step: epochs after which the learning rate is multiplied by gamma; by default after 1/2 and 3/4
    of the epochs"""
    gamma: float = 0.1
    """for --schedule step: factor of the learning rate at each milestone"""
    warmup: float = 0.0
    """number of epochs in which the learning rate rises linearly from 0"""
    clip_norm: float | None = None
    """maximum norm of the gradient over all parameters; not clipped by default"""
    freeze: str | list[str] | None = None
    """modules that are not trained: globs of their names, separated by commas, conv1,layer*; they also keep their batch
    norm statistics. Plugins still compress them"""

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
    def frozen(self) -> list[str]:
        """The globs in `freeze`."""
        globs = self.freeze.split(",") if isinstance(self.freeze, str) else self.freeze or []
        return [glob.strip() for glob in globs if glob.strip()]

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
    """Options of the training loop. Those not inherited from `StageOptions` are the same in all stages of a run."""

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


def loop_options(options: LoopOptions | None, settings: dict[str, Any], train_data: Any = None) -> LoopOptions:
    """The options of a trainer: `options`, or made from keyword arguments. Raises UsageError for an unknown keyword.

    Without `batch_size`, that of `train_data` is used if it is a DataLoader.
    """
    known = LoopOptions.__dataclass_fields__
    if unknown := [name for name in settings if name not in known]:
        raise UsageError(f"unknown keyword {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    if options is not None:
        require(not settings, next(iter(settings), ""), next(iter(settings.values()), ""), "options, or keywords")
        return options
    found = getattr(train_data, "batch_size", None) if hasattr(train_data, "batch_sampler") else None
    return LoopOptions(**({} if found is None else {"batch_size": found}) | settings)


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
    """directory of the data; by default $MAKEWEIGHT_DATA, otherwise data is downloaded once to ~/.cache/makeweight"""
    image_size: int | None = None
    """height and width in pixels to which images are resized; for torchvision models at least 32 by default"""
    augment: Literal["none", "shift", "crop-flip", "auto"] = "none"
    """augmentation of training images: shift by up to 5%, random crop and flip, or AutoAugment after crop and flip"""
    validation: float = 0.1
    """validation split held out of the training data: a fraction (below 1) or a number of examples"""
    threads: int | None = None
    """CPU threads; results depend slightly on the number, which changes the order of summation. By default 1 for small
    networks, otherwise torch's default; config.yaml records the number"""
    weights: str | None = None
    """initial weights: pretrained (torchvision's or timm's for the model), torchvision:ResNet18_Weights.IMAGENET1K_V1,
    hf:REPO, or a file: an export, a run directory, any safetensors file, or a .pth, .pt or .bin of torch.save; a
    classifier for another number of classes is left out"""
    criterion: str | None = None
    """loss: package.module:function of (output, target), or torch.nn.MSELoss and others; by default by the targets:
    cross entropy for classes, binary cross entropy for multi-hot rows, mean squared error for numbers"""
    forward: str | None = None
    """call of the model: package.module:function of (model, batch); by default model(x) or model(**batch)"""
    metric: str | list[str] | None = None
    """metric, or several as in accuracy,mine:auc (tables show the first): accuracy, perplexity, mse, mae, or
    package.module:name of a function of (output, target) with one value per example, or of a class with update and
    compute; by default accuracy for classes"""
    collate: str | None = None
    """package.module:function that makes a batch of a list of examples, for data that torch's default cannot collate"""
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
