"""Metrics per example and over the whole set equal scikit-learn's, in one process and in two; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from makeweight import Trainer, UsageError
from makeweight.commands.confusion import Confusion, check_classes, class_parts
from makeweight.data.batches import Batches
from makeweight.errors import MakeweightError
from makeweight.metrics import by_name
from makeweight.plugin import Task
from makeweight.training.evaluation import evaluate
from makeweight.training.whole_set import in_turn

from .helpers import everything_below, here, summary, trainer, two_processes

METRICS = '''
import sklearn.metrics
import torch

class WholeSet:
    """Keeps all outputs and targets."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.outputs, self.targets = [], []

    def update(self, output, target):
        assert len(output) == len(target)
        self.outputs.append(output.clone())
        self.targets.append(target.clone())

    def both(self):
        return torch.cat(self.outputs), torch.cat(self.targets)

class F1(WholeSet):
    higher_is_better = True

    def compute(self):
        output, target = self.both()
        return sklearn.metrics.f1_score(target, output.argmax(1), average="macro")

class Auc(WholeSet):
    def compute(self):
        output, target = self.both()
        return sklearn.metrics.roc_auc_score(target, output.double().softmax(1), multi_class="ovr")

class Precision(WholeSet):
    def compute(self):
        output, target = self.both()
        return torch.tensor(sklearn.metrics.average_precision_score(target == 3, output[:, 3]))

class Order(WholeSet):
    """Depends on the order of the examples and on where batches begin."""

    def compute(self):
        sizes = torch.tensor([len(each) for each in self.targets])
        output, target = self.both()
        place = torch.arange(1, len(target) + 1, dtype=torch.float64)
        return float((place * target).sum() + 1e6 * (sizes * torch.arange(len(sizes))).sum())

class R2(WholeSet):
    def compute(self):
        return sklearn.metrics.r2_score(*reversed([each.numpy() for each in self.both()]))

def confidence(output, target):
    return output.softmax(1).gather(1, target[:, None])

def batch_mean(output, target):
    return (output.argmax(1) == target).float().mean()

def error(output, target):
    return (output.argmax(1) != target).float()

def two_values(output, target):
    return output[:, :2]

def f1_of_three():
    return F1()

def loss(output, target):
    return output[:, 0]

class Vector(F1):
    def compute(self):
        return torch.zeros(2)
'''


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits_of_export(run: Path) -> tuple[Tensor, Tensor]:
    """The logits of an export of the digits, and the test labels."""
    from makeweight import load
    from makeweight.commands.session import Session
    from makeweight.options import Options

    session = Session(Options())
    model = load(run / "model.safetensors", session.original()).eval()
    x, y = session.data.test.columns
    with torch.no_grad():
        return model(x), y


CLASSES = "my_metrics:F1,accuracy,my_metrics:Auc,my_metrics:Precision,my_metrics:confidence,perplexity"


def test_every_figure_of_the_summary_is_scikit_learns(cwd: Path) -> None:
    assert here("--epochs", 2, "--metric", CLASSES, "--out", "run") == 0
    found, (logits, target) = summary(cwd / "run"), logits_of_export(cwd / "run")
    predicted, probabilities = logits.argmax(1), logits.double().softmax(1)
    expected = {
        "f1": sklearn.metrics.f1_score(target, predicted, average="macro"),
        "accuracy": sklearn.metrics.accuracy_score(target, predicted),
        "auc": sklearn.metrics.roc_auc_score(target, probabilities, multi_class="ovr"),
        "precision": sklearn.metrics.average_precision_score(target == 3, logits[:, 3]),
        "confidence": float(probabilities.gather(1, target[:, None]).mean()),
        "perplexity": float(torch.tensor(sklearn.metrics.log_loss(target, probabilities)).exp()),
    }
    assert found["metric"] == "f1"
    assert found["higher_is_better"] is True
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
        assert found["export"][name] == found[name], name
        assert name in found["metrics"], name
    assert found["loss"] == pytest.approx(sklearn.metrics.log_loss(target, probabilities), rel=1e-5)
    matrix = sklearn.metrics.confusion_matrix(target, predicted)
    assert found["confusion"]["matrix"] == matrix.tolist()
    recalls = sklearn.metrics.recall_score(target, predicted, average=None)
    assert [each["accuracy"] for each in found["classes"]] == pytest.approx(recalls.tolist())
    assert [each["name"] for each in found["classes"]] == [str(digit) for digit in range(10)]
    assert sum(each["examples"] for each in found["classes"]) == 360
    page = (cwd / "run" / "report.html").read_text()
    assert "<h2>Classes</h2>" in page
    assert "confusion matrix" in page
    assert "test f1" in page


def test_metrics_of_a_recipe_are_a_list_and_functions_may_make_them(cwd: Path) -> None:
    (cwd / "recipe.yaml").write_text("epochs: 1\nmetric: [my_metrics:f1_of_three, my_metrics:error]\n")
    assert here("--recipe", "recipe.yaml", "--out", "run") == 0
    found = summary(cwd / "run")
    assert found["metric"] == "f1"
    assert 0 < found["error"] < 1
    assert here("evaluate", "run/model.safetensors", "--no-latency", "--recipe", "run/config.yaml") == 0


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (
            "my_metrics:batch_mean",
            ["batch_mean gives one value for a batch of 128 examples", "[128]", "compute"],
        ),
        ("my_metrics:two_values", ["metric two_values gives values of shape [128, 2]", "[128]"]),
        ("my_metrics:loss", ["metric 'loss'", "another"]),
        ("my_metrics:F1,my_metrics:f1_of_three", ["'f1'", "twice"]),
        ("acuracy", ["'acuracy'", "'accuracy'"]),
        ("mse", ["metric mse", "targets [128]", "shape of the outputs"]),
    ],
)
def test_what_cannot_be_averaged_or_named_is_refused_before_training(
    metric: str, expected: list[str], cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_below(cwd)
    assert here("--epochs", 1, "--metric", metric, "--out", "run") == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    for word in expected:
        assert word in shown
    assert [path for path in everything_below(cwd) if "__pycache__" not in path] == before


def test_a_metric_of_the_whole_set_that_is_not_one_finite_number_is_an_error(cwd: Path) -> None:
    done = trainer(cwd, "--epochs", 1, "--metric", "my_metrics:Vector", code=1)
    assert "metric vector: compute() returns a tensor of shape [2]: expected one number" in done.stderr
    assert done.stderr.count("\n") == 1

    class Undefined:
        def update(self, output: Any, target: Any) -> None: ...

        def compute(self) -> float:
            return float("nan")

    data = torch.randn(8, 3), torch.arange(8) % 2
    with pytest.raises(MakeweightError, match="metric undefined is nan over 8 examples"):
        Trainer(nn.Linear(3, 2), data, data, task=Task(metric=Undefined()), epochs=1, batch_size=4).fit()


def test_which_direction_is_better_can_be_asked() -> None:
    class Distance:
        higher_is_better: ClassVar[bool | None] = None

        def update(self, output: Any, target: Any) -> None: ...

        def compute(self) -> float:
            return 0.0

    def rank(output: Any, target: Any) -> Tensor:
        return torch.zeros(len(target))

    rank.higher_is_better = False  # type: ignore[attr-defined]
    task = Task(metric=["accuracy", "perplexity", "mse", "mae", Distance, rank])
    expected = {"accuracy": True, "perplexity": False, "mse": False, "mae": False, "distance": False, "rank": False}
    assert {name: task.higher_is_better(name) for name in task.metrics} == expected
    assert task.higher_is_better() is True
    assert task.higher_is_better("loss") is False
    assert Task().metric_name == "accuracy"
    with pytest.raises(UsageError, match="expected a function"):
        by_name(3)


def test_errors_of_numbers_are_scikit_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(101, 4)
    y = torch.cat([x[:, :1] ** 2, x[:, 1:2]], 1)
    scope: dict[str, Any] = {}
    exec(METRICS, scope)
    task = Task(metric=[scope["R2"], "mse", "mae"])
    run = Trainer(nn.Linear(4, 2), (x, y), (x, y), task=task, epochs=2, batch_size=10)
    metrics = run.fit()
    with torch.no_grad():
        predicted = run.model(x)
    assert metrics["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(y, predicted), rel=1e-6)
    assert metrics["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, predicted), rel=1e-6)
    assert metrics["r2"] == pytest.approx(sklearn.metrics.r2_score(y, predicted), rel=1e-6)
    assert metrics["loss"] == pytest.approx(metrics["mse"], rel=1e-5)


def test_perplexity_counts_every_token_once_however_they_lie_in_batches() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(10, 5, 7), torch.randint(5, (10, 7))
    target[0, 1:], target[3, 2:] = -100, -100
    batches = Batches(_tensors(logits, target), 4, torch.device("cpu"), training=False)
    found = evaluate(nn.Identity(), batches, Task(metric="perplexity"))
    expected = nn.functional.cross_entropy(logits.double(), target).exp()
    assert found["perplexity"] == pytest.approx(float(expected), rel=1e-12)


def _tensors(*columns: Tensor) -> Any:
    from makeweight.data.tensors import Tensors

    return Tensors(columns)


def test_the_examples_of_three_processes_are_put_in_order() -> None:
    whole = torch.arange(22.0).view(11, 2)
    parts = [whole[rank::3] for rank in range(3)]
    sizes = [len(part) for part in parts]
    assert sizes == [4, 4, 3]
    assert torch.equal(in_turn(parts, sizes), whole)
    named = in_turn([{"a": part, "b": part.tolist()} for part in parts], sizes)
    assert torch.equal(named["a"], whole)
    assert named["b"] == whole.tolist()
    pair = in_turn([[part, part + 1] for part in parts], sizes)
    assert torch.equal(pair[1], whole + 1)
    with pytest.raises(MakeweightError, match="batches of one shape"):
        in_turn([torch.zeros(2, 3), torch.zeros(2, 4)], [2, 2])
    with pytest.raises(MakeweightError, match="one row per example"):
        in_turn([torch.zeros(2, 3), torch.zeros(1, 3)], [2, 2])
    with pytest.raises(MakeweightError, match="cannot gather a float"):
        in_turn([1.0, 2.0], [1, 1])


SCRIPT = """
import json, os, torch
from makeweight import Trainer
from makeweight.plugin import Task
from my_metrics import F1, Auc, Order, confidence

torch.manual_seed(0)
x, y = torch.randn(1201, 6), torch.arange(1201) % 3
model = torch.nn.Linear(6, 3)
task = Task(metric=[Order(), F1(), Auc(), confidence, "accuracy", "perplexity"])
trainer = Trainer(model, (x[:64], y[:64]), (x, y), task=task, epochs=1, batch_size=64)
result = {"processes": trainer.accelerator.num_processes, "values": trainer.evaluate(),
          "few": trainer.evaluate((x[:3], y[:3]))["order"]}
with open(f"{result['processes']}-{trainer.accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
trainer.accelerator.wait_for_everyone()
os._exit(0)
"""


def test_two_processes_see_every_example_once_and_give_the_figures_of_one(cwd: Path) -> None:
    """1,201 examples in batches of 500: the second process has one example less, and one batch less."""
    import subprocess
    import sys

    (cwd / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "script.py"], check=True)
    two_processes(cwd, "script.py")
    one, *two = (json.loads((cwd / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert [one["processes"], *(each["processes"] for each in two)] == [1, 2, 2]
    place = torch.arange(1, 1202, dtype=torch.float64)
    assert one["values"]["order"] == float((place * (torch.arange(1201) % 3)).sum() + 1e6 * (500 + 2 * 201))
    assert two[0] == two[1]
    for name, value in one["values"].items():
        assert two[0]["values"][name] == pytest.approx(value, rel=1e-6), name
    assert two[0]["values"]["order"] == one["values"]["order"]
    assert two[0]["few"] == one["few"] == 1 * 0 + 2 * 1 + 3 * 2


def test_metrics_of_torchmetrics_are_taken(cwd: Path) -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    (cwd / "my_torchmetrics.py").write_text(
        "from torchmetrics.classification import MulticlassF1Score, MulticlassAUROC\n"
        "def f1(): return MulticlassF1Score(10)\n"
        "def auc(): return MulticlassAUROC(10)\n"
    )
    assert here("--epochs", 1, "--metric", "my_torchmetrics:f1,my_torchmetrics:auc", "--out", "run") == 0
    found, (logits, target) = summary(cwd / "run"), logits_of_export(cwd / "run")
    f1 = sklearn.metrics.f1_score(target, logits.argmax(1), average="macro")
    auc = sklearn.metrics.roc_auc_score(target, logits.double().softmax(1), multi_class="ovr")
    assert found["multiclassf1score"] == pytest.approx(f1, rel=1e-5)
    assert found["multiclassauroc"] == pytest.approx(auc, rel=1e-5)
    assert found["higher_is_better"] is True
    assert torchmetrics


def test_of_many_classes_the_most_frequent_confusions_are_kept() -> None:
    target = torch.arange(300) % 30
    predicted = torch.where(target == 7, 9, target)
    confusion = Confusion()
    for part in (slice(0, 100), slice(100, 300)):
        confusion.update(torch.nn.functional.one_hot(predicted[part], 30).float(), target[part])
    found = confusion.facts([f"name {index}" for index in range(30)])
    assert found["confusion"] == {"pairs": [[7, 9, 10]]}
    assert found["classes"][7] == {"name": "name 7", "examples": 10, "accuracy": 0.0}
    check_classes(found)
    html = "".join(class_parts(found, lambda header, rows: str([header, *rows])))
    assert "['name 7', 'name 9', '10']" in html
    assert Confusion().facts(None) == {}


@pytest.mark.parametrize(
    "damaged",
    [
        {"classes": 3},
        {"classes": [{"name": 1, "examples": 2}]},
        {"classes": [{"name": "a", "examples": 2, "accuracy": 7}]},
        {"classes": [{"name": "a", "examples": 2, "accuracy": 1}], "confusion": {"matrix": [[1, 2]]}},
        {"classes": [{"name": "a", "examples": 2, "accuracy": 1}], "confusion": {"matrix": [["x"]]}},
        {"classes": [{"name": "a", "examples": 2, "accuracy": 1}], "confusion": {"pairs": [[0, 1, 2]]}},
        {"classes": [{"name": "a", "examples": 2, "accuracy": 1}], "confusion": {"pairs": [[0, 1, 2]] * 99}},
        {"confusion": []},
    ],
)
def test_classes_of_an_untrusted_summary_are_checked(damaged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"class|confusion"):
        check_classes(damaged)
