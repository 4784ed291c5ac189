"""The loss is chosen by the targets; targets, losses and data that cannot be right are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

from makeweight import Data, LoopOptions, Run, Trainer, UsageError
from makeweight.criteria import check_labels
from makeweight.plugin import Task

from .helpers import assert_same_bits, everything_below, here, summary

N = 64


def inputs() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def fitted(model: nn.Module, data: Any, task: Task | None = None) -> Trainer:
    trainer = Trainer(model, data, data, task=task, epochs=1, batch_size=16)
    trainer.fit()
    return trainer


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(inputs())
    return result


# Losses by targets


HOT = (torch.arange(4 * N).view(N, 4) % 3 == 0).float()
ONE_HOT = nn.functional.one_hot(torch.arange(N) % 4, 4).float()
SOFT = torch.rand(N, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
NUMBERS = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
CLASSES = torch.arange(N) % 4

CHOICES: dict[str, tuple[Tensor, int, Callable[[Tensor, Tensor], Tensor]]] = {
    "classes": (CLASSES, 4, cross_entropy),
    "classes in 32 bits": (CLASSES.int(), 4, lambda output, target: cross_entropy(output, target.long())),
    "classes in a byte": (CLASSES.byte(), 4, lambda output, target: cross_entropy(output, target.long())),
    "two classes as bool": (CLASSES > 1, 2, lambda output, target: cross_entropy(output, target.long())),
    "one-hot rows": (ONE_HOT, 4, cross_entropy),
    "probabilities": (SOFT, 4, cross_entropy),
    "multi-hot rows": (HOT, 4, binary_cross_entropy_with_logits),
    "multi-hot integers": (
        HOT.long(),
        4,
        lambda output, target: binary_cross_entropy_with_logits(output, target.float()),
    ),
    "multi-hot bool": (HOT.bool(), 4, lambda output, target: binary_cross_entropy_with_logits(output, target.float())),
    "numbers": (NUMBERS, 4, mse_loss),
    "one number": (NUMBERS[:, :1], 1, mse_loss),
    "one number without a dimension": (NUMBERS[:, 0], 1, lambda output, target: mse_loss(output[:, 0], target)),
    "numbers in double": (NUMBERS.double(), 4, lambda output, target: mse_loss(output, target.float())),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_loss_is_chosen_by_the_targets(name: str) -> None:
    target, width, expected = CHOICES[name]
    torch.manual_seed(0)
    trainer = fitted(nn.Linear(5, width), (inputs(), target))
    assert trainer.metrics["loss"] == pytest.approx(float(expected(outputs(trainer.model), target)), rel=1e-5)
    first = trainer.metrics["train_loss"]
    assert Trainer.fit(Trainer(trainer.model, (inputs(), target), epochs=3, batch_size=16))["train_loss"] < first


def test_a_loss_that_is_given_is_not_chosen() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    trainer = fitted(model, (inputs(), HOT), Task(criterion=nn.MSELoss()))
    assert trainer.metrics["loss"] == pytest.approx(float(mse_loss(outputs(model), HOT)), rel=1e-5)
    assert "accuracy" not in trainer.metrics


def test_pixels_have_classes() -> None:
    x = torch.randn(16, 3, 6, 6)
    y = torch.randint(3, (16, 6, 6))
    y[:, 0] = -100
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1)
    metrics = Trainer(model, (x, y), (x, y), epochs=1, batch_size=8).fit()
    with torch.no_grad():
        output = model(x)
    assert metrics["loss"] == pytest.approx(float(cross_entropy(output, y)), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((output.argmax(1) == y)[:, 1:].float().mean()))


def test_a_task_is_settled_for_each_of_two_trainers() -> None:
    task = Task()
    one = fitted(nn.Linear(5, 4), (inputs(), NUMBERS), task)
    two = fitted(nn.Linear(5, 4), (inputs(), CLASSES), task)
    assert one.metrics["loss"] == pytest.approx(float(mse_loss(outputs(one.model), NUMBERS)), rel=1e-5)
    assert two.metrics["loss"] == pytest.approx(float(cross_entropy(outputs(two.model), CLASSES)), rel=1e-5)


class Detached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Named(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


def hinge_at_nothing(output: Tensor, target: Tensor) -> Tensor:
    return (output * 0).sum()


def per_example(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target, reduction="none")


REFUSED: dict[str, tuple[Tensor, nn.Module, Task | None, list[str]]] = {
    # targets, model, task, and what the line must name
    "labels from 1": (CLASSES + 1, nn.Linear(5, 4), None, ["labels 1 to 4", "4 outputs", "0 to 3", "subtract 1"]),
    "too few outputs": (CLASSES, nn.Linear(5, 3), None, ["labels 0 to 3", "3 outputs", "4 outputs"]),
    "labels below 0": (CLASSES - 1, nn.Linear(5, 4), None, ["labels -1 to 2", "-100"]),
    "one late label": (torch.cat([CLASSES[:-1], torch.tensor([9])]), nn.Linear(5, 4), None, ["labels 0 to 9"]),
    "labels from 1, with torch's loss": (CLASSES + 1, nn.Linear(5, 4), Task(nn.CrossEntropyLoss()), ["subtract 1"]),
    "float classes": (CLASSES.float(), nn.Linear(5, 4), None, ["float32 [16]", "float32 [16, 4]", "targets.long()"]),
    "float numbers": (NUMBERS[:, 0], nn.Linear(5, 4), None, ["float32 [16]", "outputs of the shape"]),
    "int32, torch's loss": (CLASSES.int(), nn.Linear(5, 4), Task(nn.CrossEntropyLoss()), ["CrossEntropyLoss", "int32"]),
    "one output": (CLASSES * 0, nn.Linear(5, 1), None, ["one class is always 0", "torch.nn.BCEWithLogitsLoss"]),
    "one output of 0 or 1": (HOT[:, :1], nn.Linear(5, 1), None, ["0 or 1", "BCEWithLogitsLoss", "MSELoss"]),
    "whole numbers": (CLASSES[:, None], nn.Linear(5, 1), None, ["int64 [16, 1]", "targets.float()"]),
    "a dimension too much": (CLASSES[:, None], nn.Linear(5, 4), None, ["int64 [16, 1]", "float32 [16, 4]"]),
    "broadcast": (NUMBERS[:, 0], nn.Linear(5, 1), Task(nn.MSELoss()), ["MSELoss", "[16, 1]", "[16]", "target size"]),
    "without a gradient": (CLASSES, Detached(5, 4), None, ["does not depend on the parameters"]),
    "always 0": (CLASSES, nn.Linear(5, 4), Task(hinge_at_nothing), ["hinge_at_nothing", "0 for every output"]),
    "not a scalar": (CLASSES, nn.Linear(5, 4), Task(per_example), ["per_example", "float32 [16]", "scalar"]),
    "a mapping": (CLASSES, Named(5, 4), None, ["dict with out", "--forward"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line_before_training(name: str) -> None:
    target, model, task, words = REFUSED[name]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UsageError) as raised:
        fitted(model, (inputs(), target), task)
    shown = str(raised.value)
    assert "\n" not in shown
    for word in words:
        assert word in shown, shown
    assert_same_bits(before, model.state_dict())


def test_labels_of_the_evaluation_data_are_looked_at_too() -> None:
    with pytest.raises(UsageError, match="labels 0 to 7 of eval_data: the model has 4 outputs"):
        Trainer(nn.Linear(5, 4), (inputs(), CLASSES), (inputs(), torch.arange(N) % 8), batch_size=16).fit()


def test_a_class_that_the_loss_ignores_is_no_class() -> None:
    target = torch.where(CLASSES == 3, 255, CLASSES)
    fitted(nn.Linear(5, 3), (inputs(), target), Task(nn.CrossEntropyLoss(ignore_index=255)))
    check_labels(torch.tensor([-100, 0, 1]), 2, "the data")


# Keywords and DataLoaders


def test_an_unknown_keyword_is_refused_with_a_suggestion() -> None:
    data = inputs(), CLASSES
    with pytest.raises(UsageError, match=r"unknown keyword 'epoch': did you mean 'epochs'\?"):
        Trainer(nn.Linear(5, 4), data, epoch=3)
    with pytest.raises(UsageError, match="epochs 3: expected options, or keywords"):
        Trainer(nn.Linear(5, 4), data, options=LoopOptions(), epochs=3)


def model_of_loaders(train: Any, evaluation: Any = None, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    Trainer(model, train, evaluation, epochs=2, **settings).fit()
    return model


def test_a_data_loader_is_taken_with_its_batch_size() -> None:
    whole = TensorDataset(inputs(), CLASSES)
    expected = model_of_loaders((inputs(), CLASSES), batch_size=8).state_dict()
    for shuffle in (True, False):
        loader = DataLoader(whole, batch_size=8, shuffle=shuffle)
        assert_same_bits(model_of_loaders(loader, DataLoader(whole)).state_dict(), expected)
    run = Run(nn.Linear(5, 4), DataLoader(whole, 8), DataLoader(whole, 3))
    assert run.trainer.steps_per_epoch == N // 8


class Lengths(Dataset[Any]):
    """Sequences of several lengths, with the label of their first value."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.full((1 + index % 3,), float(index % 4)), index % 4


def padded(examples: list[Any]) -> Any:
    x = torch.zeros(len(examples), 5)
    for row, (sequence, _) in enumerate(examples):
        x[row, : len(sequence)] = sequence
    return x, torch.tensor([label for _, label in examples])


def test_the_collate_function_of_a_data_loader_is_taken() -> None:
    loader = DataLoader(Lengths(), batch_size=16, collate_fn=padded)
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    metrics = Trainer(model, loader, loader, epochs=1).fit()
    x, y = padded([Lengths()[index] for index in range(N)])
    with torch.no_grad():
        assert metrics["loss"] == pytest.approx(float(cross_entropy(model(x), y)), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    with pytest.raises(UsageError, match=r"cannot be put into a batch .* --collate"):
        Trainer(nn.Linear(5, 4), Lengths(), epochs=1, batch_size=16).fit()


def test_a_sampler_of_ones_own_is_refused() -> None:
    whole = TensorDataset(inputs(), CLASSES)
    weighted = WeightedRandomSampler([1.0] * N, N)
    for sampler in (weighted, RandomSampler(whole, replacement=True), RandomSampler(whole, num_samples=3)):
        with pytest.raises(UsageError, match=f"train_data is a DataLoader with a {type(sampler).__name__}"):
            Trainer(nn.Linear(5, 4), DataLoader(whole, 8, sampler=sampler))
    with pytest.raises(UsageError, match="expected torch's own order"):
        Trainer(nn.Linear(5, 4), DataLoader(whole, batch_sampler=[[0, 1], [2]]))
    with pytest.raises(UsageError, match="train_data is a Tensor"):
        Trainer(nn.Linear(5, 4), inputs())


def test_batch_sizes_that_differ_are_refused() -> None:
    loader = DataLoader(TensorDataset(inputs(), CLASSES), 8)
    with pytest.raises(UsageError, match="batch_size 16: expected 8, as in the DataLoader"):
        Trainer(nn.Linear(5, 4), loader, batch_size=16)


# The command line


MODULE = """
import torch
from torch.utils.data import DataLoader
from makeweight import Data

x = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
y = torch.arange(80) % 4

class Lengths(torch.utils.data.Dataset):
    classes = ["north", "east", "south", "west"]
    def __len__(self): return 80
    def __getitem__(self, index): return x[index, :1 + index % 3], int(y[index])

def padded(examples):
    rows = torch.zeros(len(examples), 5)
    for row, (sequence, _) in enumerate(examples):
        rows[row, :len(sequence)] = sequence
    return rows, torch.tensor([label for _, label in examples])

def model(): return torch.nn.Linear(5, 4)
def several(): return torch.nn.Linear(5, 3)
def lengths(): return Lengths(), Lengths()
def loaders(): return DataLoader(Lengths(), 16, collate_fn=padded), DataLoader(Lengths(), 5, collate_fn=padded)
def numbers(): return (x, x[:, :4]), (x, x[:, :4])
def hot(): return (x, (x[:, :4] > 0).float()), (x, (x[:, :4] > 0).float())
def pair(): return x, y
def train_only(): return Data((x, y), None)
def alone(): return torch.utils.data.TensorDataset(x, y)
def from_one(): return (x, y), (x, y + 1)
def names(): return Data((x, y), (x, y), classes=["a", "b"])
"""
MODEL = ["--model", "my_tasks:model", "--epochs", 1, "--batch-size", 16]


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_loss_of_torch_is_named_as_in_python(cwd: Path) -> None:
    words = [*MODEL, "--data", "my_tasks:hot", "--metric", "mse,mae"]
    assert here(*words, "--criterion", "torch.nn.MSELoss", "--out", "run") == 0
    found = summary(cwd / "run")
    assert found["metric"] == "mse"
    assert found["higher_is_better"] is False
    assert found["loss"] == pytest.approx(found["mse"], rel=1e-5)
    assert "classes" not in found


def test_a_collate_function_is_given_by_name_and_class_names_reach_the_summary(cwd: Path) -> None:
    assert here(*MODEL, "--data", "my_tasks:lengths", "--collate", "my_tasks:padded", "--out", "named") == 0
    assert here(*MODEL, "--data", "my_tasks:loaders", "--out", "taken") == 0
    one, two = summary(cwd / "named"), summary(cwd / "taken")
    assert [each["name"] for each in one["classes"]] == ["north", "east", "south", "west"]
    assert (one["accuracy"], one["loss"]) == (two["accuracy"], two["loss"])
    assert here("evaluate", "named/model.safetensors", "--no-latency", "--recipe", "named/config.yaml") == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "my_tasks:pair"], ["my_tasks:pair returned 2 tensors", "two pairs (x, y)"]),
        (["--data", "my_tasks:train_only"], ["my_tasks:train_only returned no test data"]),
        (["--data", "my_tasks:alone"], ["my_tasks:alone returned a TensorDataset", "(train, test)"]),
        (["--data", "my_tasks:from_one"], ["labels 1 to 4 of test", "subtract 1"]),
        (["--data", "my_tasks:names"], ["classes ['a', 'b']", "4 names"]),
        (["--data", "my_tasks:lengths"], ["cannot be put into a batch", "--collate"]),
        (["--data", "my_tasks:loaders", "--batch-size", "8"], ["batch_size 8", "expected 16"]),
        (["--data", "my_tasks:numbers", "--model", "my_tasks:several"], ["[16, 4]", "[16, 3]"]),
        (["--data", "my_tasks:hot", "--criterion", "torch.nn.MSELos"], ["torch.nn:MSELos"]),
        (["--data", "my_tasks:hot", "--criterion", "torch.nn.CTCLoss"], ["CTCLoss"]),
        (["--collate", "my_tasks:padded", "--data", "digits", "--model", "lenet300"], ["collate", "in memory"]),
        (["--collate", "padded"], ["collate", "'padded'", "package.module:function"]),
    ],
)
def test_each_mistake_is_one_line(
    words: list[str], expected: list[str], cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data" in words else ["--data", "my_tasks:lengths"]
    before = everything_below(cwd)
    assert here(*MODEL, *data, *words, "--out", "run") == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    for word in expected:
        assert word in shown, shown
    assert [path for path in everything_below(cwd) if "__pycache__" not in path] == before


def test_a_dry_run_shows_the_loss_and_the_direction_of_each_metric(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*MODEL, "--data", "my_tasks:numbers", "--metric", "mse,mae", "--dry-run") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("loss"))
    assert line == "loss: squared error; metrics: mse (lower is better), mae (lower is better)"
    assert here("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "loss: cross entropy, or that of the model; metrics: accuracy (higher is better)" in shown


def test_classes_of_data_sets_have_names() -> None:
    from makeweight.data import by_name

    data = by_name.load("digits")
    assert isinstance(data, Data)
    assert data.classes == [str(digit) for digit in range(10)]
