"""What cannot be is refused in one line that names what was given and what would be right, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from makeweight import Trainer, UsageError, hookimpl
from makeweight.discovery import check_hooks
from makeweight.plugin_manager import Plugins, check_order
from makeweight.training.step import Step

from .helpers import everything_below, here, trainer

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run the trainer with these words, with and without --out, and return the one line that it says."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)

    def refused(*words: object, out: bool = True) -> str:
        code = here(*words)
        shown = capsys.readouterr()
        assert code == 2, shown
        if out:
            assert here(*words, "--out", "run") == 2
            assert capsys.readouterr().err == shown.err
        assert shown.err.count("\n") == 1, shown.err
        assert shown.err.endswith("\n")
        assert "Traceback" not in shown.err
        assert shown.out == ""
        assert everything_below(cwd) == []
        return shown.err

    return refused


PRUNE = ["--plugins", "prune"]
COMMAND_LINES: dict[str, tuple[list[str], list[str]]] = {
    # what is typed, and what the line must name: what was given, and what would be right
    "plugin": (["--plugins", "prume"], ["'prume'", "'prune'"]),
    "plugin among others": (["--plugins", "kd,huffmann"], ["'huffmann'", "'huffman'"]),
    "plugin like none": (["--plugins", "xyzzy"], ["'xyzzy'", "huffman", "kd", "prune"]),
    "plugin twice": (["--plugins", "prune,kd,prune"], ["'prune'", "twice"]),
    "option": (["--epoch", "3"], ["--epoch", "'epochs'"]),
    "option with a dash": (["--batchsize", "3"], ["--batchsize", "batch"]),
    "option like none": (["--xyzzy", "3"], ["--xyzzy", "--help"]),
    "option of a plugin": ([*PRUNE, "--prune.sparsty", "0.5"], ["prune.sparsty", "'sparsity'"]),
    "option of a plugin that is off": (["--prune.sparsity", "0.5"], ["prune.sparsity", "not enabled", "--plugins"]),
    "option of another plugin that is off": ([*PRUNE, "--kd.alpha", "0.5"], ["kd.alpha", "not enabled", "--plugins"]),
    "option of a plugin that is nowhere": (["--prume.sparsity", "0.5"], ["prume.sparsity"]),
    "plugin's name as an option": ([*PRUNE, "--prune", "0.5"], ["--prune", "--prune."]),
    "model": (["--model", "lenet30"], ["'lenet30'", "'lenet300'"]),
    "model of torchvision": (["--model", "resnet19"], ["'resnet19'", "'resnet1"]),
    "model of timm": (["--model", "timm:resnet1x8"], ["timm:resnet1x8"]),
    "data set": (["--data", "mnits"], ["'mnits'", "'mnist'"]),
    "data set like none": (["--data", "xyzzy"], ["'xyzzy'", "digits"]),
    "sparsity 1.5": ([*PRUNE, "--prune.sparsity", "1.5"], ["prune.sparsity", "1.5", "0 <= sparsity < 1"]),
    "sparsity -1": ([*PRUNE, "--prune.sparsity", "-1"], ["prune.sparsity", "-1", "0 <= sparsity < 1"]),
    "sparsity many": ([*PRUNE, "--prune.sparsity", "many"], ["prune.sparsity", "many", "number"]),
    "sparsity 1": ([*PRUNE, "--prune.sparsity", "1"], ["prune.sparsity", "0 <= sparsity < 1"]),
    "sparsity nan": ([*PRUNE, "--prune.sparsity", "nan"], ["prune.sparsity", "nan"]),
    "sparsity of a layer 1.5": ([*PRUNE, "--prune.sparsity", '{"fc1": 1.5}'], ["prune.sparsity", "fc1", "1.5"]),
    "sparsity of a layer many": ([*PRUNE, "--prune.sparsity", '{"fc1": "many"}'], ["prune.sparsity", "many"]),
    "glob": ([*PRUNE, "--prune.layers", "conv*"], ["'conv*'", "fc1"]),
    "glob in a table": ([*PRUNE, "--prune.sparsity", '{"fc*": 0.5, "cv*": 0.4}'], ["'cv*'", "fc1"]),
    "glob of sections": (["--plugins", "kd", "--kd.sections", '["layer*"]'], ["'layer*'"]),
    "choice of a plugin": ([*PRUNE, "--prune.schedule", "square"], ["prune.schedule", "square", "cubic"]),
    "begin after the end": ([*PRUNE, "--prune.begin", "5", "--prune.end", "3"], ["prune.end", "3", "5"]),
    "begin after the run": ([*PRUNE, "--prune.begin", "30"], ["prune.begin", "30", "10"]),
    "end after the run": ([*PRUNE, "--prune.end", "30"], ["prune.end", "30", "10"]),
    "every 0": ([*PRUNE, "--prune.every", "0"], ["prune.every", "0", "at least 1"]),
    "global with a table": (
        [*PRUNE, "--prune.scope", "global", "--prune.sparsity", '{"fc1": 0.5}'], ["prune.scope global", "one number"],
    ),
    "temperature 0": (["--plugins", "kd", "--kd.temperature", "0"], ["kd.temperature", "0"]),
    "alpha 2": (["--plugins", "kd", "--kd.alpha", "2"], ["kd.alpha", "2"]),
    "teacher's model without a teacher": (["--plugins", "kd", "--kd.teacher-model", "lenet5"], ["kd.teacher_model"]),
    "epochs 0": (["--epochs", "0"], ["epochs 0", "at least 1"]),
    "epochs many": (["--epochs", "many"], ["epochs", "many", "whole number"]),
    "epochs 1.5": (["--epochs", "1.5"], ["epochs", "1.5", "whole number"]),
    "lr 0": (["--lr", "0"], ["lr 0", "above 0"]),
    "lr nan": (["--lr", "nan"], ["lr nan"]),
    "lr inf": (["--lr", "inf"], ["lr inf"]),
    "momentum 1": (["--momentum", "1"], ["momentum 1", "< 1"]),
    "weight decay -1": (["--weight-decay", "-1"], ["weight", "-1"]),
    "warmup longer than the run": (["--warmup", "20"], ["warmup 20", "10"]),
    "gamma -1": (["--schedule", "step", "--gamma", "-1"], ["gamma", "-1"]),
    "clip norm 0": (["--clip-norm", "0"], ["clip", "0"]),
    "optimizer": (["--optimizer", "adam"], ["optimizer", "adam", "adamw"]),
    "schedule": (["--schedule", "cos"], ["schedule", "cos", "cosine"]),
    "augment": (["--augment", "flip"], ["augment", "flip", "crop-flip"]),
    "precision": (["--precision", "fp8"], ["precision", "fp8", "bf16"]),
    "batch size 0": (["--batch-size", "0"], ["batch", "0", "at least 1"]),
    "batch size above the data": (["--batch-size", "5000"], ["batch", "5000", "1293"]),
    "batch size that cannot be cut": (["--accumulate", "3"], ["batch", "128", "multiple of 3"]),
    "validation above the data": (["--validation", "5000"], ["validation 5000", "1436"]),
    "validation -1": (["--validation", "-1"], ["validation -1"]),
    "validation 1.5": (["--validation", "1.5"], ["validation 1.5"]),
    "validation nan": (["--validation", "nan"], ["validation nan"]),
    "image size 0": (["--image-size", "0"], ["image", "0", "at least 1"]),
    "workers -1": (["--workers", "-1"], ["workers -1", "0 or more"]),
    "seed abc": (["--seed", "abc"], ["seed", "abc", "whole number"]),
    "seed beyond 64 bits": (["--seed", "99999999999999999999"], ["seed", "99999999999999999999"]),
    "checkpoint every 0": (["--checkpoint-every", "0"], ["checkpoint", "0", "at least 1"]),
    "tracker": (["--tracker", "xyzzy"], ["tracker", "xyzzy"]),
    "model that cannot be imported": (["--model", "my_models:build"], ["model", "'my_models:build'", "my_models"]),
    "model that is not in its module": (["--model", "math:build"], ["'math:build'", "build"]),
    "model that is no function": (["--model", "math:pi"], ["'math:pi'", "function"]),
    "model that is no model": (["--model", "os:getcwd"], ["os:getcwd", "Module"]),
    "model with an empty name": (["--model", "math:"], ["math:"]),
    "data that cannot be imported": (["--data", "my_data:load"], ["data", "'my_data:load'", "my_data"]),
    "data that is no data": (["--data", "os:getcwd"], ["os:getcwd", "(train, test)"]),
    "criterion that cannot be imported": (["--criterion", "my_loss:f"], ["criterion", "'my_loss:f'", "my_loss"]),
    "criterion without a function": (["--criterion", "CrossEntropyLoss"], ["criterion", "CrossEntropyLoss"]),
    "forward that cannot be imported": (["--forward", "my_call:f"], ["forward", "'my_call:f'", "my_call"]),
    "metric that cannot be imported": (["--metric", "my_metric:f"], ["metric", "'my_metric:f'", "my_metric"]),
    "recipe that is not there": (["--recipe", "nowhere.yaml"], ["nowhere.yaml"]),
    "recipe that is a folder": (["--recipe", "/"], ["/"]),
    "stray word": (["--epochs", "1", "prune"], ["'prune'", "--"]),
    "short option": (["-e", "1"], ["'-e'", "--help"]),
    "lone dashes": (["--", "1"], ["--"]),
    "several lines": (["--model", "le\nnet"], ["net"]),
    "several lines for a number": (["--epochs", "1\n2"], ["epochs"]),
    "stage that is not there": (["--stages.0.epochs", "3"], ["stages.0.epochs", "0 stages"]),
    "empty value": (["--epochs="], ["epochs", "whole number"]),
}  # fmt: skip


@pytest.mark.parametrize(("words", "named"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_command_line_that_cannot_be_is_refused_in_one_line(
    words: list[str], named: list[str], refusal: Refusal
) -> None:
    line = refusal(*words)
    assert [part for part in named if part not in line] == []


@pytest.mark.parametrize("option", ["--epochs", "--plugins", "--out", "--recipe", "--lr"])
def test_an_option_without_its_value_is_refused(option: str, refusal: Refusal) -> None:
    assert f"{option}: expected a value" in refusal(option, out=False)
    assert f"{option}: expected a value" in refusal(option, "--seed", "1", out=False)


RECIPES: dict[str, tuple[str | bytes, list[str]]] = {
    "is not YAML": ("epochs: [1, 2\nlr: 3", ["YAML"]),
    "is not YAML for its tabs": ("prune:\n\tsparsity: 0.5", ["YAML"]),
    "is binary": (bytes(range(256)), ["YAML"]),
    "is binary zeros": (bytes(64), ["YAML"]),
    "is empty": ("", ["table"]),
    "is a comment": ("# nothing\n", ["table"]),
    "is a list": ("- epochs\n- 3\n", ["list", "table"]),
    "is a word": ("epochs", ["table"]),
    "is two documents": ("epochs: 1\n---\nepochs: 2\n", ["YAML"]),
    "has a key twice": ("epochs: 1\nepochs: 2\n", ["epochs"]),
    "has a Python tag": ("epochs: !!python/object/apply:os.mkdir ['made']\n", ["recipe"]),
    "is nested without an end": ("[" * 5000, ["recipe"]),
    "has an unknown key": ("epoch: 3\n", ["epoch", "'epochs'"]),
    "has an unknown key with a dash": ("batch-sise: 3\n", ["batch", "'batch_size'"]),
    "has a key that is no text": ("3: 4\n", ["3"]),
    "has an unknown key of a plugin": ("plugins: [prune]\nprune: {sparsty: 0.5}\n", ["prune.sparsty", "'sparsity'"]),
    "has a table of a plugin that is off": ("prune: {sparsity: 0.5}\n", ["prune", "not enabled", "--plugins"]),
    "has a number for a plugin": ("plugins: [prune]\nprune: 0.5\n", ["prune", "table"]),
    "has a sparsity of 1.5": ("plugins: [prune]\nprune: {sparsity: 1.5}\n", ["sparsity", "1.5", "< 1"]),
    "has a sparsity of many": ("plugins: [prune]\nprune: {sparsity: many}\n", ["sparsity", "many", "number"]),
    "has a table for a number": ("epochs: {a: 1}\n", ["epochs", "whole number"]),
    "has a list for a number": ("epochs: [1]\n", ["epochs", "whole number"]),
    "has a word for a number": ("lr: fast\n", ["lr", "fast", "number"]),
    "has nothing for a number": ("epochs:\n", ["epochs", "whole number"]),
    "has nothing for a model": ("model:\n", ["model"]),
    "has a number for plugins": ("plugins: 3\n", ["plugins", "3"]),
    "has a table for plugins": ("plugins: {prune: 1}\n", ["plugins"]),
    "has an unknown plugin": ("plugins: [prume]\n", ["'prume'", "'prune'"]),
    "has stages that are a table": ("stages: {epochs: 2}\n", ["stages", "list"]),
    "has stages that are numbers": ("stages: [3]\n", ["stages"]),
    "has an unknown key in a stage": ("stages: [{epochs: 1}, {epoch: 1}]\n", ["stage 2", "epoch", "'epochs'"]),
    "has a stage of no epochs": ("stages: [{epochs: 0}]\n", ["epochs 0", "at least 1"]),
    "has another model in a stage": ("stages: [{model: lenet5}]\n", ["stage 1", "model"]),
    "has a plugin that is off in a stage": ("stages: [{prune: {sparsity: 0.5}}]\n", ["stage 1", "prune", "enabled"]),
    "has a number for a plugin in a stage": ("plugins: [prune]\nstages: [{prune: 3}]\n", ["stage 1", "prune", "table"]),
    "has a sparsity of 2 in a stage": ("plugins: [prune]\nstages: [{prune: {sparsity: 2}}]\n", ["stage 1", "sparsity"]),
    "has a word for a number in a stage": ("stages: [{lr: fast}]\n", ["stage 1", "lr", "fast", "number"]),
    "has a glob of nothing in a stage": (
        "plugins: [prune]\nstages: [{epochs: 1}, {epochs: 1, prune: {layers: conv*}}]\n", ["'conv*'", "fc1"],
    ),
    "has a schedule that does not fit a stage": (
        "plugins: [prune]\nstages: [{epochs: 1}, {epochs: 1, prune: {begin: 4}}]\n", ["begin 4", "1 epoch"],
    ),
    "has empty stages with a word": ("stages: none\n", ["stages", "list"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "named"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_refused_that(text: str | bytes, named: list[str], tmp_path: Path, refusal: Refusal) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refusal("--recipe", recipe)
    assert [part for part in named if part not in line] == []


def test_the_line_about_a_recipe_names_its_file(tmp_path: Path, refusal: Refusal) -> None:
    recipe = tmp_path / "mine.yaml"
    for text in ("epochs: [", "", "- 1", "epoch: 3"):
        recipe.write_text(text)
        assert "mine.yaml" in refusal("--recipe", recipe), text


def folder_of_images(root: Path, splits: dict[str, list[str]]) -> Path:
    for split, classes in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "1.png")
    return root


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_data_directory_without_data_is_refused(data: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "nothing").mkdir()
    for directory in (tmp_path / "nothing", tmp_path / "nowhere"):
        line = refusal("--data", data, "--data-dir", directory)
        assert str(directory) in line
        assert data in line
    assert not (tmp_path / "nowhere").exists()
    assert everything_below(tmp_path / "nothing") == []


def test_a_data_directory_from_the_environment_without_data_is_refused(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEWEIGHT_DATA", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in refusal("--data", "mnist")


def test_mnist_that_is_cut_short_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    assert str(tmp_path / "data") in refusal("--data", "mnist", "--data-dir", tmp_path / "data")


def test_an_image_folder_without_images_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    root = tmp_path / "images"
    assert str(root) in refusal("--data", f"imagefolder:{root}")
    root.mkdir()
    assert "train" in refusal("--data", f"imagefolder:{root}")
    (root / "train").mkdir()
    assert "train" in refusal("--data", f"imagefolder:{root}")
    (root / "train" / "cat").mkdir()
    assert "train" in refusal("--data", f"imagefolder:{root}")


def test_an_image_folder_without_a_test_split_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    root = folder_of_images(tmp_path / "images", {"train": ["cat", "dog"]})
    line = refusal("--data", f"imagefolder:{root}")
    assert "test" in line
    assert "val" in line


def test_an_image_folder_whose_splits_have_other_classes_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    root = folder_of_images(tmp_path / "images", {"train": ["cat", "dog"], "test": ["cat", "cow"]})
    assert "'cow'" in refusal("--data", f"imagefolder:{root}")


def test_an_image_folder_with_a_file_that_is_no_image_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    root = folder_of_images(tmp_path / "images", {"train": ["cat", "dog"], "test": ["cat", "dog"]})
    (root / "train" / "cat" / "2.png").write_text("no image")
    assert "2.png" in refusal("--data", f"imagefolder:{root}", "--batch-size", 2, "--validation", 0)


@pytest.mark.parametrize("words", [["--weights"], ["--plugins", "kd", "--kd.teacher"]], ids=["weights", "teacher"])
def test_a_file_of_weights_that_is_not_there_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(*words, "nowhere.safetensors", "--out", "run") in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "nowhere.safetensors" in shown.err
    assert everything_below(tmp_path) == []


def test_a_model_that_is_too_deep_for_the_images_is_refused(refusal: Refusal) -> None:
    line = refusal("--model", "lenet5", "--image-size", 8)
    assert "8" in line


def test_a_users_module_that_fails_when_imported_is_named(tmp_path: Path, refusal: Refusal, monkeypatch: Any) -> None:
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for option in ("--model", "--data", "--criterion", "--forward", "--metric"):
        line = refusal(option, "my_broken:build")
        assert "'my_broken:build'" in line
        assert "nothing_of_this_name" in line


def test_resume_without_a_run_directory_is_refused(refusal: Refusal) -> None:
    assert "--out" in refusal("--resume", out=False)


def test_a_run_directory_that_holds_something_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    line = refusal("--out", tmp_path / "run", out=False)
    assert str(tmp_path / "run") in line
    assert "--resume" in line
    assert everything_below(tmp_path / "run") == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refusal("--out", tmp_path / "file", out=False)
    assert str(tmp_path / "file" / "run") in refusal("--out", tmp_path / "file" / "run", out=False)
    assert (tmp_path / "file").read_text() == "mine"


VERBS: dict[str, tuple[list[str], list[str]]] = {
    "unknown": (["inspct", "x"], ["'inspct'", "'inspect'"]),
    "unknown, like none": (["xyzzy"], ["'xyzzy'", "evaluate", "inspect", "pack", "plugins", "report", "unpack"]),
    "plugin as a verb": (["prune"], ["'prune'"]),
    "without its file": (["inspect"], ["file"]),
    "with an option it has not": (["inspect", "x", "--deep"], ["--deep"]),
    "with a word too many": (["plugins", "x"], ["x"]),
}


@pytest.mark.parametrize(("words", "named"), VERBS.values(), ids=VERBS)
def test_a_verb_is_refused_that_is(words: list[str], named: list[str], refusal: Refusal) -> None:
    line = refusal(*words, out=False)
    assert [part for part in named if part not in line] == []


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "report", "pack", "unpack"])
def test_a_verb_names_a_file_that_is_not_there(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(verb, "nowhere.safetensors") in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "nowhere.safetensors" in shown.err
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "report", "pack", "unpack"])
def test_a_verb_says_that_a_folder_is_no_file(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert here(verb, "folder") in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "folder" in shown.err
    assert everything_below(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--plugins", "prume,kd"], "'prune'"),
        (["--plugins", "prune", "--prune.layers", "conv*"], "'conv*'"),
        (["--model", "my_models:build"], "my_models"),
        (["--model", "resnet19"], "resnet19"),
    ],
)
def test_a_process_of_its_own_ends_with_2_and_one_line(words: list[str], named: str, tmp_path: Path) -> None:
    done = trainer(tmp_path, *words, "--out", "run", code=2)
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert done.stdout == ""
    assert everything_below(tmp_path) == []


# Plugins of strangers that are not as they should be.


@dataclass(eq=False)
class Right:
    @hookimpl
    def on_init(self, trainer: Trainer) -> None: ...


def test_a_hook_that_is_misspelt_is_named_with_the_right_one() -> None:
    @dataclass(eq=False)
    class Misspelt(Right):
        @hookimpl
        def on_epoch_ends(self, trainer: Trainer, metrics: dict[str, float]) -> None: ...

    with pytest.raises(UsageError, match=r"plugin 'mine'.*'on_epoch_ends'.*did you mean 'on_epoch_end'"):
        check_hooks(Misspelt, "plugin 'mine'")


def test_a_hook_that_is_misspelt_and_unmarked_is_named_with_the_right_one() -> None:
    @dataclass(eq=False)
    class Misspelt(Right):
        def on_exprot(self, trainer: Trainer) -> None: ...

    with pytest.raises(UsageError, match=r"plugin 'mine'.*'on_exprot'.*did you mean 'on_export'"):
        check_hooks(Misspelt, "plugin 'mine'")


def test_a_hook_that_is_not_marked_is_named() -> None:
    @dataclass(eq=False)
    class Unmarked(Right):
        def on_export(self, trainer: Trainer) -> None: ...

    with pytest.raises(UsageError, match=r"plugin 'mine'.*'on_export'.*@hookimpl"):
        check_hooks(Unmarked, "plugin 'mine'")


def test_a_hook_with_an_argument_that_it_does_not_get_is_named() -> None:
    @dataclass(eq=False)
    class Wrong(Right):
        @hookimpl
        def on_epoch_end(self, trainer: Trainer, metric: dict[str, float]) -> None: ...

    with pytest.raises(UsageError, match=r"plugin 'mine'.*'on_epoch_end'.*'metric'.*metrics, trainer"):
        check_hooks(Wrong, "plugin 'mine'")


def test_a_class_without_a_hook_is_named() -> None:
    @dataclass(eq=False)
    class Empty:
        rate: float = 0.5

    with pytest.raises(UsageError, match=r"plugin 'mine'.*Empty has no hook.*on_init"):
        check_hooks(Empty, "plugin 'mine'")


def test_a_dataclass_with_equality_is_refused() -> None:
    @dataclass
    class Equal:
        @hookimpl
        def on_init(self, trainer: Trainer) -> None: ...

    with pytest.raises(UsageError, match=r"plugin 'mine'.*Equal.*eq=False"):
        check_hooks(Equal, "plugin 'mine'")


def test_a_hook_that_is_a_static_method_is_not_passed_over() -> None:
    @dataclass(eq=False)
    class Static(Right):
        @staticmethod
        def on_exprot(trainer: Trainer) -> None: ...

    with pytest.raises(UsageError, match="on_exprot"):
        check_hooks(Static, "plugin 'mine'")


def test_a_step_wrapper_that_is_no_generator_is_refused() -> None:
    @dataclass(eq=False)
    class Wrapper:
        @hookimpl(wrapper=True)
        def on_batch(self, trainer: Trainer) -> None: ...

    with pytest.raises(UsageError, match=r"'wrapper'.*on_batch"):
        Plugins([Wrapper()])


@dataclass(eq=False)
class Sharpness:
    @hookimpl
    def on_batch(self, trainer: Trainer, batches: list[Any]) -> torch.Tensor:
        return torch.zeros(())


@dataclass(eq=False)
class Surgery(Sharpness):
    pass


def test_two_plugins_that_replace_the_step_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'?sharpness'? and '?surgery'?.*step"):
        Plugins([Sharpness(), Surgery()], Step())
    assert list(Plugins([Sharpness(), Right()], Step()).by_name) == ["sharpness", "right"]


def test_one_plugin_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        Plugins([Right(), Right()])


class Wants:
    """A plugin that says what it goes with."""

    def __init__(self, conflicts: tuple[str, ...] = (), codec: bool = False) -> None:
        self.conflicts, self.codec = conflicts, codec


def test_plugins_in_conflict_are_refused_whichever_says_it() -> None:
    for plugins in ({"a": Wants(conflicts=("b",)), "b": Wants()}, {"a": Wants(), "b": Wants(conflicts=("a",))}):
        with pytest.raises(UsageError, match=r"'a' and 'b'|'b' and 'a'"):
            check_order(plugins)
    check_order({"a": Wants(conflicts=("c",)), "b": Wants()})


def test_a_codec_that_does_not_come_last_is_refused_with_the_order_that_would_work() -> None:
    with pytest.raises(UsageError, match=r"c,a,b.*use a,b,c$"):
        check_order({"c": Wants(codec=True), "a": Wants(), "b": Wants()})
    with pytest.raises(UsageError, match=r"use a,e,d,c$"):  # codecs stay in the order in which they were given
        check_order({"a": Wants(), "d": Wants(codec=True), "e": Wants(), "c": Wants(codec=True)})
    check_order({"b": Wants(), "a": Wants(), "c": Wants(codec=True)})


class Faulty:
    """Raises at one place."""

    where: ClassVar[str] = ""

    def fail(self, where: str) -> None:
        if self.where == where:
            raise ZeroDivisionError("division by a stranger")


@dataclass(eq=False)
class Stranger(Faulty):
    where: str = "on_init"  # type: ignore[misc]

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        self.fail("on_init")

        def term(batch: Any, output: torch.Tensor) -> torch.Tensor:
            self.fail("loss")
            return output.sum() * 0

        trainer.losses["stranger"] = term

    @hookimpl
    def on_check(self, model: torch.nn.Module) -> None:
        self.fail("on_check")

    @hookimpl
    def on_structure(self, trainer: Trainer) -> None:
        self.fail("on_structure at the end" if trainer.ending else "on_structure")

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        self.fail("before the step")
        loss = yield
        self.fail("after the step")
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer) -> None:
        self.fail("on_epoch_end")

    @hookimpl
    def on_export(self, trainer: Trainer) -> None:
        self.fail("on_export")


def a_trainer(plugins: list[object], model: torch.nn.Module | None = None) -> Trainer:
    data = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
    return Trainer(model or torch.nn.Linear(4, 2), data, plugins=plugins, epochs=1, batch_size=4)


PLACES = ["on_check", "on_structure", "on_init", "loss", "before the step", "after the step", "on_epoch_end",
          "on_structure at the end", "on_export"]  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_what_a_plugin_raises_carries_a_note_with_its_name(where: str, tmp_path: Path) -> None:
    def fit_and_export() -> None:
        run = a_trainer([Right(), Stranger(where)])
        run.fit()
        run.export(tmp_path / "model.safetensors")

    with pytest.raises(ZeroDivisionError) as raised:
        fit_and_export()
    assert raised.value.__notes__ == ["in plugin 'stranger'"]


def test_what_the_model_raises_is_laid_on_no_plugin() -> None:
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("the model's own")

    with pytest.raises(ZeroDivisionError) as raised:
        a_trainer([Stranger("nowhere")], Broken(4, 2)).fit()
    assert getattr(raised.value, "__notes__", []) == []


def test_a_loss_that_is_not_a_number_ends_the_run_and_is_named() -> None:
    data = torch.full((8, 4), float("nan")), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(Exception, match="loss 'task' is NaN by step 2"):
        Trainer(torch.nn.Linear(4, 2), data, epochs=1, batch_size=4).fit()
