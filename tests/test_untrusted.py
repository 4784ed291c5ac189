"""Files that anyone may have written: none of them hangs, fills the memory, or writes into a page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from makeweight import Artifact, MakeweightError, UsageError, loading
from makeweight.commands import recipes
from makeweight.files import artifact
from makeweight.files.checked import (
    checked_count,
    checked_keys,
    checked_number,
    checked_table,
    checked_tensor,
    checked_tensors,
)
from makeweight.files.run_onnx import OnnxModel
from makeweight.files.untrusted import parse_json, parse_yaml
from makeweight_huffman.packing import pack

from .fuzz_checkpoints import fuzz
from .helpers import here, summary, trainer

FUZZED = ["plain", "prune", "cluster", "prune and cluster", "kd", "kd and prune", "qat"]
"""cases of checkpoints"""
SECONDS = 20
"""in which every file is refused, on a busy machine"""
EVIL = "\x1b[31mred\x1b[0m\r\n\u202e\u2028\x00"
SCRIPT = "<script>alert(1)</script>"


@contextmanager
def quick() -> Iterator[None]:
    begun = time.perf_counter()
    yield
    assert time.perf_counter() - begun < SECONDS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("untrusted")
    words = ["--plugins", "prune,huffman", "--epochs", 2, "--batch-size", 323, "--prune.end", 1, "--out", "run"]
    trainer(folder, *map(str, words))
    return folder / "run"


# YAML and JSON.


def bomb(levels: int, written: str = "[{}]") -> str:
    """YAML whose last value is 9**levels values with its aliases written out."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {written.format(','.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


YAML = {
    "aliases": (bomb(9), "100,000 values"),
    "merged aliases": (bomb(9, "{{<<: [{}]}}"), "100,000 values"),
    "an alias within itself": ("prune: &a {a: *a, b: *a}", "100,000 values"),
    "deep lists": ("[" * 100_000, "nested too deeply"),
    "deep tables": ("{a: " * 30_000, "nested too deeply"),
    "deep blocks": ("- " * 30_000 + "a", "nested too deeply"),
    "a long number": ("epochs: " + "9" * 100_000, "100,000 digits"),
    "a long hexadecimal number": ("epochs: 0x" + "f" * 100_000, "digits"),
    "a tagged number": ("epochs: !!int '" + "9" * 100_000 + "'", "limit"),
    "infinity": ("lr: .inf", "number inf"),
    "a number too large": ("lr: 1e999", "number inf"),
    "not a number": ("lr: .nan", "number nan"),
    "no day": ("epochs: 2001-13-45", "month"),
    "a day": ("epochs: 2001-12-04", "date"),
    "a set": ("!!set {a, b}", "set"),
    "half a surrogate pair": (r'model: "\ud800"', "surrogates"),
    "a key that is a list": ("? [a]\n: b", "tuple"),
    "aliases in an option's text": (
        "plugins: [prune]\nprune: {sparsity: " + json.dumps(bomb(9)) + "}",
        "100,000 values",
    ),
    "deep lists in an option's text": ("lr: " + json.dumps("[" * 30_000), "nested too deeply"),
    "a long number in an option's text": ("lr: " + json.dumps("9" * 30_000), "30,000 digits"),
    "too long": ("#" * 1_000_000, "bytes"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_beyond_its_bounds_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = YAML[name]
    (tmp_path / "config.yaml").write_text(text)
    with quick():
        assert here("--out", tmp_path, "--resume") == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "config.yaml" in shown.err
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 1000


def test_yaml_with_a_few_aliases_is_read() -> None:
    assert parse_yaml("a: &a [1, 2.5, ~, true]\nb: *a\nc: {<<: {d: *a}}\n") == {
        "a": [1, 2.5, None, True], "b": [1, 2.5, None, True], "c": {"d": [1, 2.5, None, True]},
    }  # fmt: skip


def test_a_word_of_the_command_line_that_is_no_yaml_is_refused() -> None:
    for word in ("[", bomb(9), "9" * 5000):
        with quick(), pytest.raises(UsageError, match="is not valid YAML"):
            recipes.load_yaml(word)


@pytest.mark.parametrize(
    ("text", "said"),
    [("NaN", "number NaN"), ("[-Infinity]", "number -Infinity"), ("1e999", "number 1e999"),
     ("-" + "9" * 9999, "digits"), ("0." + "1" * 9999, "digits"),
     ("[" * 65 + "]" * 65, "deeply"), ("[" * 60_000, "deeply"), ("{", "Expecting"),
     (b"\xff", "not text"), (rb'"\ud800"', "not text"), ("[" + "[]," * 3_000_000 + "1]", "values")],
)  # fmt: skip
def test_json_beyond_its_bounds_is_refused(text: str | bytes, said: str) -> None:
    with quick(), pytest.raises(ValueError, match=said):
        parse_json(text)


def test_json_within_its_bounds_is_read() -> None:
    value = {"a": [1, -2.5e-300, 2**63, None, True, "\u00e9\U0001f600"], "b": {"c": []}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[" * 63 + "]" * 63)
    assert parse_json("[NaN, 1e999, 1]", non_finite=True) == [None, None, 1]


# The report.


def changed(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = summary(out)
    change(found)
    (out / "summary.json").write_text(json.dumps(found))


def every_place(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a tree, of long lists only of the first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in inside:
        yield from every_place(each, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr("makeweight.commands.report.pictures", lambda summary, metrics: [])


@pytest.mark.usefixtures("no_pictures")
def test_a_report_shows_markup_as_text_wherever_it_stands(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    shown_at = []
    for path in every_place(summary(run)):
        if path:
            changed(out, lambda found, path=path: put(found, path, SCRIPT + EVIL))  # type: ignore[misc]
            code = here("report", out)
            err = capsys.readouterr().err
            assert (code, err.count("\n")) in ((0, 0), (1, 1)), path
            page = (out / "report.html").read_text()
            assert "<script" not in page
            assert "\x1b" not in page + err
            shown_at += [path] if code == 0 and "&lt;script&gt;" in page else []
            shutil.copy(run / "summary.json", out)
    assert ("model",) in shown_at
    assert ("steps",) not in shown_at
    (out / "config.yaml").write_text(SCRIPT + EVIL)
    assert here("report", out) == 0
    assert "<script" not in (out / "report.html").read_text()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("value", [-1, 1 << 70, 1e305, True, None, "1", [], {}, [1], {"a": 1}])
def test_a_summary_with_a_value_of_another_kind_is_shown_or_refused_in_one_line(
    value: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    for path in every_place(summary(run)):
        if path:
            changed(out, lambda found, path=path: put(found, path, value))  # type: ignore[misc]
            code = here("report", out)
            assert (code, capsys.readouterr().err.count("\n")) in ((0, 0), (1, 1)), path
            shutil.copy(run / "summary.json", out)


LINES: dict[str, Any] = {
    "names": {"$a$": 1, "b$": 2, "$": 3, "_c": 4, r"\$d": 5, EVIL: 6, "\u4e2d": 7, "x" * 10_000: 8},
    "mathematics": {"loss$\\frac{$": 1, "$\\undefined$": 2},
    "numbers": {"a": 1e299, "b": -1e299, "c": 1e-320, "d": 0, "train_loss": 1e299},
    "others": {"a": None, "b": "text", "c": [1], "d": {"e": 1}, "f": True},
    "many names": {f"a{number}": number for number in range(20_000)},
    "many parts": {f"a/{number}": number for number in range(20_000)},
}


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.parametrize("name", LINES)
def test_a_report_draws_metrics_of_any_name_and_size(name: str, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    (out / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | LINES[name]) + "\n" for step in range(3)))
    found = summary(out)
    for row in found["export"]["tensors"]:
        row["name"] = f"${row['name']}$ \\frac{{$"
    (out / "summary.json").write_text(json.dumps(found))
    with quick():
        assert here("report", out) == 0


def test_a_report_is_written_of_metrics_with_nan_and_of_many_lines(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    (out / "metrics.jsonl").write_text('{"step": 1, "mine": NaN}\n{"step": 2, "mine": 1}\n' * 100_000)
    with quick():
        assert here("report", out) == 0


# What is shown.


def test_an_error_is_one_line_of_printable_text_whatever_names_are_in_it() -> None:
    error = MakeweightError(f"{EVIL} is not there")
    assert str(error) == r"\x1b[31mred\x1b[0m\r\n\u202e\u2028\x00 is not there"
    assert str(UsageError("caf\u00e9 \u4e2d\u6587 \U0001f600")) == "caf\u00e9 \u4e2d\u6587 \U0001f600"
    assert str(MakeweightError("\udcff")) == r"\udcff"
    assert len(str(MakeweightError("x" * 10**8))) < 2100


def test_inspect_shows_names_from_a_file_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd\x1b[2J\n.safetensors"
    save_file({EVIL: torch.ones(3)}, path)
    assert here("inspect", path) == 0
    shown = capsys.readouterr().out
    assert r"\x1b[31mred" in shown
    assert r"odd\x1b[2J\n.safetensors" in shown
    assert "\x1b" not in shown.replace("\n", "")
    path.write_bytes(path.read_bytes()[:-1])
    assert here("inspect", path) == 1
    shown = capsys.readouterr().err
    assert r"odd\x1b[2J\n.safetensors is damaged" in shown
    assert shown.count("\n") == 1


# Our mark in a file.


def export(path: Path, coded: bool) -> None:
    made = Artifact({"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)})
    if coded:
        from makeweight_huffman import Huffman

        Huffman().on_export(artifact=made)
    artifact.write(made, path)


READERS: list[Callable[[Path], Any]] = [
    artifact.is_export, loading.open_any, loading.load_any, loading.load_tensors,
    lambda path: pack(path, path.with_name("packed")),
]  # fmt: skip


@pytest.mark.parametrize("coded", [True, False], ids=["huffman", "plain"])
def test_no_flipped_bit_of_our_mark_makes_a_file_one_of_others(coded: bool, tmp_path: Path) -> None:
    path = tmp_path / "export.safetensors"
    export(path, coded)
    whole = path.read_bytes()
    end = whole.index(b"}}") if coded else whole.index(b'"}') + 2  # of the metadata
    taken = []
    for place in range(8, end):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            for number, read in enumerate(READERS):
                try:
                    read(path)
                except MakeweightError as error:
                    assert "export.safetensors" in str(error)  # noqa: PT017
                else:
                    if number > 0 or not _has_key(bytes(flipped)):  # is_export reads no checksum
                        taken.append((place, bit, number))
    assert taken == []
    assert not (tmp_path / "packed").exists()


def _has_key(content: bytes) -> bool:
    return artifact.KEY in content


def test_a_damaged_mark_is_called_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "export.safetensors"
    export(path, coded=True)
    whole = path.read_bytes()
    for old, new in ((b'"makeweight":', b'"makEweighs":'), (b'"1 ', b'"3 '), (b'"1 ', b'"10'),
                     (b'"__metadata__":{"makeweight"', b'"__metadata__":{"anything_x"')):  # fmt: skip
        path.write_bytes(whole.replace(old, new, 1))
        for verb in ("inspect", "pack", "unpack"):
            assert here(verb, path) == 1
            assert "export.safetensors is damaged" in capsys.readouterr().err
    save_file({"huffman": torch.ones(9, dtype=torch.uint8)}, path)
    assert here("inspect", path) == 1
    assert "coded by plugin 'huffman'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, {"weight": "1"}, {"make": "1 0 {}", "weight": "0123456789abcdef {}"},
     {"sshs": "0123456789abcdef", "config": '{"makeweight":"1 "}', "": ""}, {"makefile": "x", "eight": "y"}],
)  # fmt: skip
def test_a_file_of_others_is_read_with_any_metadata_of_its_own(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"huffman.weight": torch.ones(3), "kd": torch.ones(2, 2, dtype=torch.uint8)}, path, metadata=metadata)
    assert not artifact.is_export(path)
    assert set(loading.load_any(path)) == {"huffman.weight", "kd"}
    pack(path, tmp_path / "packed.safetensors")
    assert set(loading.load_tensors(tmp_path / "packed.safetensors")) == {"huffman.weight", "kd"}


# Memory.


def file_of(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int = 0, end: int = 0) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "an endless empty shape": (lambda: {"a": entry([0, 1 << 62, 1 << 62])}, "too large"),
    "a million tensors": (lambda: {str(number): entry([0]) for number in range(1_000_000)}, "its header"),
    "many tensors": (lambda: {str(number): entry([0]) for number in range(200_000)}, "200,000 tensors"),
    "long names": (lambda: {f"{number}{'x' * 10_000_000}": entry([0]) for number in range(9)}, "characters"),
    "deep": (lambda: {"a": json.loads("[" * 900 + "]" * 900)}, "its header"),
    "a long number": (lambda: {"a": entry([10**4000])}, "its header"),
    "more than there is": (lambda: {"a": entry([1 << 40], 0, 1 << 42)}, "wrong offsets"),
}


@pytest.mark.slow  # headers of up to a million tensors are parsed
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_asks_for_too_much_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, said = HEADERS[name]
    path = file_of(tmp_path / "big.safetensors", header())
    for verb in ("inspect", "pack"):
        with quick():
            assert here(verb, path) == 1
        shown = capsys.readouterr().err
        assert said in shown
        assert (shown.count("\n"), len(shown) < 3000) == (1, True)


def test_a_small_file_that_promises_much_is_refused_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifact, "USUAL_BYTES", 1 << 20)
    plain, packed = tmp_path / "zeros.safetensors", tmp_path / "packed.safetensors"
    save_file({"w": torch.zeros(1 << 20)}, plain)
    pack(plain, packed)
    assert packed.stat().st_size < 10_000
    for verb in ("inspect", "unpack"):
        assert here(verb, packed) == 1
        shown = capsys.readouterr().err
        assert "4,194,304 bytes decoded" in shown
        assert "--max-bytes 4194304" in shown
        assert here(verb, packed, "--max-bytes", 4194304) == 0
        capsys.readouterr()
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.ones(1 << 20))
    for read in (loading.load_tensors, loading.load_any, lambda path, **more: loading.load(path, model, **more)):
        with pytest.raises(MakeweightError, match="limit=4194304"):
            read(packed)
        read(packed, limit=4194304)
    assert not model.w.any()


def test_no_memory_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "export.safetensors", coded=True)

    def none_left(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr("makeweight_huffman.tensors.decode_elements", none_left)
    with pytest.raises(MakeweightError, match=r"export\.safetensors needs more memory than is available"):
        loading.load_tensors(tmp_path / "export.safetensors")


# Checkpoints.


@pytest.mark.slow  # many cases
def test_checkpoints_with_any_change_are_taken_or_refused_in_one_line() -> None:
    done, taken = fuzz(seconds=600, seed=1, most=len(FUZZED) * 20, cases=FUZZED)
    assert done == len(FUZZED) * 20
    assert 0 < taken < done


STATE = {"a": 1, "b": 2.5, "c": torch.ones(2, 3), "d": {"x": torch.ones(1)}, "e": None, "f": True, "g": float("nan"),
         "h": [1], "i": 10**400, "j": {1: 2}}  # fmt: skip


def test_values_of_a_state_are_taken_as_they_are() -> None:
    assert (checked_count(STATE, "a"), checked_number(STATE, "a", 0), checked_number(STATE, "b")) == (1, 1.0, 2.5)
    assert checked_tensor(STATE, "c", [2, None], torch.float32) is STATE["c"]
    assert list(checked_tensors(STATE, "d")) == ["x"]
    assert checked_table(STATE, "d") is STATE["d"]
    checked_keys({"a": 1}, ["a"])


@pytest.mark.parametrize(
    ("take", "said"),
    [
        (lambda: checked_count(STATE, "z"), "'z' is missing"),
        (lambda: checked_count(None, "a"), "the state is not a table"),
        (lambda: checked_count(STATE, "b"), "'b' is 2.5: expected a whole number"),
        (lambda: checked_count(STATE, "f"), "'f' is True"),
        (lambda: checked_count(STATE, "a", 0), "whole number from 0 to 0"),
        (lambda: checked_count({"a": -1}, "a"), "'a' is -1"),
        (lambda: checked_number(STATE, "g"), "'g' is a float"),
        (lambda: checked_number(STATE, "i"), "'i' is a int"),
        (lambda: checked_number(STATE, "f"), "'f' is True"),
        (lambda: checked_number(STATE, "c"), "'c' is a Tensor"),
        (lambda: checked_number(STATE, "b", 0, 1), "expected a number from 0 to 1"),
        (lambda: checked_tensor(STATE, "h"), "'h' is a list: expected a tensor"),
        (lambda: checked_tensor(STATE, "c", [2]), r"shape \[2, 3\]: expected \[2\]"),
        (lambda: checked_tensor(STATE, "c", None, torch.int64), "expected torch.int64"),
        (lambda: checked_tensors(STATE, "h"), "'h' is not a table"),
        (lambda: checked_tensors({"a": {"b": 1}}, "a"), "'b' is 1: expected a tensor"),
        (lambda: checked_table(STATE, "j"), "'j' is not a table"),
        (lambda: checked_keys({"a": 1}, ["b"]), "'a' is unknown"),
        (lambda: checked_keys({"a": 1}, ["a", "b"]), "'b' is missing"),
    ],
)
def test_values_of_another_kind_are_refused(take: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        take()


# ONNX.


def onnx_file(path: Path, kind: str) -> Path:
    """A graph that takes [n, 3] and gives something odd."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, kinds = onnx.helper, onnx.TensorProto
    rows = make.make_tensor_value_info("x", kinds.FLOAT, ["n", 3])
    constants = []

    def value(dtype: int, shape: Any = None) -> Any:
        return make.make_tensor_value_info("y", dtype, shape)

    match kind:
        case "nothing":
            nodes, outputs = [make.make_node("Identity", ["x"], ["y"])], []
        case "a sequence":
            nodes = [make.make_node("SequenceConstruct", ["x"], ["y"])]
            outputs = [make.make_tensor_sequence_value_info("y", kinds.FLOAT, None)]
        case "whole numbers" | "text":
            dtype = kinds.INT64 if kind == "whole numbers" else kinds.STRING
            nodes, outputs = [make.make_node("Cast", ["x"], ["y"], to=dtype)], [value(dtype)]
        case "one number":
            nodes, outputs = [make.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [value(kinds.FLOAT)]
        case "no end":
            body = make.make_graph(
                [make.make_node("Identity", ["on"], ["on_out"]), make.make_node("Identity", ["s"], ["s_out"])], "body",
                [make.make_tensor_value_info("i", kinds.INT64, []), make.make_tensor_value_info("on", kinds.BOOL, []),
                 make.make_tensor_value_info("s", kinds.FLOAT, ["n", 3])],
                [make.make_tensor_value_info("on_out", kinds.BOOL, []),
                 make.make_tensor_value_info("s_out", kinds.FLOAT, ["n", 3])],
            )  # fmt: skip
            constants = [
                make.make_tensor("most", kinds.INT64, [], [1 << 62]),
                make.make_tensor("go", kinds.BOOL, [], [1]),
            ]
            nodes = [make.make_node("Loop", ["most", "go", "x"], ["y"], body=body)]
            outputs = [value(kinds.FLOAT, ["n", 3])]
    graph = make.make_graph(nodes, "odd", [rows], outputs, constants)
    path.write_bytes(
        make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [("nothing", "returns nothing"), ("a sequence", r"returns a seq\(tensor"), ("whole numbers", r"tensor\(int64\)"),
     ("text", r"tensor\(string\)"), ("one number", "one row per example"), ("no end", "took more than 1 s")],
)  # fmt: skip
def test_a_graph_with_odd_outputs_or_without_end_is_refused(
    kind: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = onnx_file(tmp_path / "odd.onnx", kind)
    with quick(), pytest.raises(MakeweightError, match=said):
        OnnxModel(path, seconds=1)(torch.zeros(2, 3))
    assert "onnxruntime" not in capfd.readouterr().err
