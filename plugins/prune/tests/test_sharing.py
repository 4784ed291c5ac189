from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makeweight import Trainer, UsageError
from makeweight.models.lenets import LeNet300
from makeweight_prune import Prune
from makeweight_prune.curves import Curve, as_json, read
from makeweight_prune.sharing import largest, share_out


def test_layers_that_lose_linearly_get_the_closed_form() -> None:
    """If drop_i = k_i s_i, one drop d for all layers gives s_i = d / k_i and d = s Σ n_i / Σ (n_i / k_i)."""
    slopes, sizes = {"a": 0.2, "b": 0.5, "c": 1.0}, {"a": 500_000, "b": 300_000, "c": 200_000}
    points = [number / 20 for number in range(1, 20)]
    curves = {name: Curve(sizes[name], points, [slopes[name] * point for point in points]) for name in slopes}
    for target in (0.1, 0.3, 0.45):
        drop = target * 1_000_000 / sum(sizes[name] / slopes[name] for name in slopes)
        shared = share_out(curves, target)
        assert shared == pytest.approx({name: drop / slopes[name] for name in slopes}, abs=2e-5)
    # a stops at 0.95, its last point; the others take the rest: d (300,000 / 0.5 + 200,000 / 1) = 800,000 - 475,000.
    assert share_out(curves, 0.8) == pytest.approx({"a": 0.95, "b": 325 / 400, "c": 325 / 800}, abs=2e-5)


def test_layers_that_lose_nothing_all_go_the_same_fraction_of_their_free_sparsity() -> None:
    curves = {"a": Curve(1000, [0.5, 0.9], [0.0, 0.3]), "b": Curve(1000, [0.4, 0.8], [-0.01, -0.02])}
    assert share_out(curves, 0.325) == pytest.approx({"a": 0.25, "b": 0.4})  # half of 0.5 and of 0.8
    assert share_out(curves, 0.65) == pytest.approx({"a": 0.5, "b": 0.8})
    assert share_out(curves, 0.75) == pytest.approx({"a": 0.7, "b": 0.8})


def test_the_largest_sparsity_is_interpolated_on_the_running_maximum_of_the_drop() -> None:
    curve = Curve(10, [0.2, 0.4, 0.6, 0.8], [0.1, 0.3, 0.05, 0.5])
    assert [largest(curve, drop) for drop in (-1, 0.05, 0.1, 0.2, 0.4, 0.5, 9)] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.7, 0.8, 0.8]
    )


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Curve]:
    curves = {}
    for number in range(draw(st.integers(1, 6))):
        sparsity = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=8)))
        drop = draw(st.lists(st.floats(-1, 1, width=16), min_size=len(sparsity), max_size=len(sparsity)))
        curves[f"fc{number}"] = Curve(draw(st.integers(2, 100_000)), [each / 100 for each in sparsity], drop)
    return curves


@given(networks(), st.floats(0, 1))
def test_the_total_is_exact_for_any_curves(curves: dict[str, Curve], share: float) -> None:
    total = sum(curve.weights for curve in curves.values())
    target = share * 0.999 * sum(curve.weights * curve.sparsity[-1] for curve in curves.values()) / total
    shared = share_out(curves, target)
    counts = {name: sparsity * curves[name].weights for name, sparsity in shared.items()}
    assert all(count == pytest.approx(round(count), abs=1e-6) for count in counts.values())
    assert sum(map(round, counts.values())) == min(round(target * total), total - len(curves))
    assert all(0 <= sparsity < 1 for sparsity in shared.values())


def test_a_target_above_the_largest_measured_total_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sparsity 0\.96: expected at most 0\.95, the largest total in x\.json"):
        share_out({"a": Curve(100, [0.95], [0.1])}, 0.96, "x.json")


SIZES = {"fc1": 19_200, "fc2": 30_000, "fc3": 1_000}


def written(tmp_path: Path, **changes: Any) -> str:
    """The path of a file for LeNet-300-100 on 8 × 8 pixels; fc1 is the least sensitive. `a__b`: key b of table a."""
    values = {"fc1": [0.9, 0.85, 0.8], "fc2": [0.8, 0.6, 0.4], "fc3": [0.7, 0.3, 0.1]}
    layers = {name: {"weights": SIZES[name], "sparsity": [0.8, 0.9, 0.98], "values": values[name]} for name in SIZES}
    record = json.loads(as_json("lenet300", "digits", "accuracy", 0.9, 144, layers))
    for keys, value in changes.items():
        *above, last = keys.split("__")
        table = record
        for key in above:
            table = table[key]
        table[last] = value
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(record))
    return str(path)


def test_training_reaches_the_total_and_sensitive_layers_keep_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = (torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    plugin = Prune(sparsity=0.9, sensitivity=written(tmp_path), schedule="one-shot", every=1)
    run = Trainer(LeNet300((1, 8, 8), 10), data, plugins=[plugin], batch_size=32, epochs=1)
    metrics = run.fit()
    zeros = sum(int((run.model.get_parameter(f"{name}.weight") == 0).sum()) for name in SIZES)
    assert zeros == round(0.9 * 50_200)
    assert metrics["sparsity/fc1"] > 0.9 > metrics["sparsity/fc2"] > metrics["sparsity/fc3"] > 0
    assert run.export(tmp_path / "model.safetensors") is not None


def test_the_drop_is_lost_accuracy_or_gained_loss(tmp_path: Path) -> None:
    accuracy = read(written(tmp_path))
    assert accuracy.layers["fc2"].drop == pytest.approx([0.1, 0.3, 0.5])
    loss = read(written(tmp_path, metric="loss"))
    assert loss.layers["fc2"].drop == pytest.approx([-0.1, -0.3, -0.5])
    perplexity = read(written(tmp_path, metric="perplexity", higher_is_better=False))
    assert perplexity.layers == loss.layers
    with pytest.raises(UsageError, match="higher_is_better: expected true or false"):
        read(written(tmp_path, higher_is_better=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "expected the format 'makeweight sensitivity 1'"),
        ({"layers": {}}, "expected a table of layers"),
        ({"layers": [1]}, "expected a table of layers"),
        ({"dense": "high"}, "dense: expected a number"),
        ({"dense": float("nan")}, "it holds the number NaN"),
        ({"dense": 10**4000}, "a number of 4,001 digits"),
        ({"layers__fc1": 3}, "layer 'fc1': expected a table"),
        ({"layers__fc1__weights": True}, "weights of 'fc1': expected a positive whole number"),
        ({"layers__fc1__weights": -5}, "weights of 'fc1': expected a positive whole number"),
        ({"layers__fc1__sparsity": [0.5, "x"]}, "sparsity of 'fc1': expected a list of numbers"),
        ({"layers__fc1__values": None}, "values of 'fc1': expected a list of numbers"),
        ({"layers__fc1__values": [0.5]}, "'fc1' has 3 sparsities but 1 values"),
        ({"layers__fc1__sparsity": [0.9, 0.5, 0.8]}, "sparsity of 'fc1': expected ascending numbers between 0 and 1"),
        ({"layers__fc1__sparsity": [0.5, 0.9, 1.0]}, "sparsity of 'fc1': expected ascending numbers between 0 and 1"),
        ({"layers__fc1__weights": 7}, "belongs to another model: fc1 has 7 weights there, 19,200 in this one"),
        ({"layers__conv1": {"weights": 7, "sparsity": [0.5], "values": [1]}}, "this one has no layer 'conv1'"),
        ({"layers": {"fc1": {"weights": 19_200, "sparsity": [0.5], "values": [1]}}}, "has no layer 'fc2'"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    data = (torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    run = Trainer(LeNet300((1, 8, 8), 10), data, plugins=[Prune(sensitivity=path)], batch_size=32, epochs=1)
    with pytest.raises(UsageError) as refused:
        run.set_up()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.sampled_from(
        ["format", "layers", "dense", "metric", "weights", "sparsity", "values", "fc1"]), each, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_json_gives_curves_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    record = value if not isinstance(value, dict) else {"format": "makeweight sensitivity 1", "dense": 1, **value}
    path.write_text(json.dumps(record))
    with suppress(UsageError):
        assert read(str(path)).layers


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"dense": ' + "9" * 5000 + "}"])
def test_invalid_json_and_missing_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match="is not readable JSON"):
        read(str(tmp_path / "x.json"))
    with pytest.raises(UsageError, match=r"sensitivity nowhere\.json cannot be read: No such file"):
        read("nowhere.json")
    (tmp_path / "latin.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not readable JSON: it is not text"):
        read(str(tmp_path / "latin.json"))


@pytest.mark.parametrize(
    "options",
    [{"scope": "global"}, {"quality": 1.0}, {"pattern": "2:4"}, {"sparsity": {"fc1": 0.5}}],
)
def test_only_one_number_for_sparsity_can_be_distributed(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sensitivity: expected one number for sparsity, with scope layer"):
        Prune(sensitivity="x.json", **options)
