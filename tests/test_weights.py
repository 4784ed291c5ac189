"""What training starts from: files of PyTorch, exports, and the caches of torchvision, timm and the Hugging Face hub.

Nothing is downloaded: the tests write the caches as the libraries lay them out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from makeweight import MakeweightError, load, load_tensors
from makeweight.commands.arguments import parse
from makeweight.commands.session import Session
from makeweight.commands.trust import code_in
from makeweight.models import pretrained
from makeweight.models.by_name import build
from makeweight.models.weight_matching import classifier_of, find_state, fit, without_prefixes
from makeweight.options import Options

from .helpers import assert_same_bits, here, summary, trainer

SHORT = ["--epochs", "1", "--batch-size", "646"]
LENET = "lenet300"
DATA = """
import torch
from makeweight import Data

def images(classes, channels=3):
    x = torch.rand(24, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % classes
    return Data((x, y), (x, y), num_classes=classes)

def four(): return images(4)
def gray(): return images(4, 1)
"""


@pytest.fixture
def here_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module my_data, of 24 random images in 4 classes; the working directory."""
    (tmp_path / "my_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(classes: int = 10, seed: int = 7) -> nn.Module:
    """A lenet300 for the digits, of other weights than a run with seed 0 begins with."""
    return build(LENET, (1, 8, 8), classes, seed)


def network(**options: Any) -> tuple[nn.Module, list[str]]:
    """The network that a run starts from, and what it tells the user about its weights."""
    session = Session(Options(**options))
    return session.network(), session.remarks


def refusal(*words: object, capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line with which `trainer` refuses these words."""
    capsys.readouterr()
    assert here(*words) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("trainer: error: ")
    return said.removeprefix("trainer: error: ").strip()


# Files of torch.save.


def wrapped(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """A model's state in the forms that training scripts write, and what is said of each."""
    state = model.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    averaged = AveragedModel(model).state_dict()
    assert "n_averaged" in averaged
    module = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}
    return {
        "plain": (state, ""),
        "state_dict": ({"epoch": 3, "state_dict": state}, "read from its entry 'state_dict'"),
        "model": ({"model": state, "args": argparse.Namespace(lr=0.1)}, "read from its entry 'model'"),
        "model_state_dict": ({"model_state_dict": state, "optimizer": {"a": 1}, "loss": torch.ones(1)},
                             "read from its entry 'model_state_dict'"),
        "ema": ({"state_dict": other, "state_dict_ema": state},
                "read from its entry 'state_dict_ema' (it also has 'state_dict')"),
        "nested": ({"ema": {"state_dict": state}}, "read from its entry 'ema.state_dict'"),
        "data parallel": (module, "without the prefix 'module.' of its names"),
        "averaged": (averaged, "without the prefix 'module.' of its names"),
        "compiled": ({"model": compiled},
                     "read from its entry 'model'; without the prefix '_orig_mod.module.' of its names"),
    }  # fmt: skip


@pytest.mark.parametrize("form", wrapped(nn.Linear(1, 1)))
def test_a_file_of_torch_save_is_read_in_every_form(form: str, tmp_path: Path) -> None:
    model = trained()
    content, said = wrapped(model)[form]
    path = tmp_path / "net.pth"
    torch.save(content, path)
    found, remarks = network(weights=str(path))
    assert_same_bits(found.state_dict(), model.state_dict())
    assert remarks == ([f"weights {path}: {said}"] if said else [])


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.pth.tar", "A.PTH"])
def test_every_usual_ending_is_read_as_torchs_own_file(name: str, tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / name)
    assert_same_bits(network(weights=str(tmp_path / name))[0].state_dict(), trained().state_dict())


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return print, ("code of a file has run",)


def test_a_file_that_holds_more_than_tensors_is_refused_and_its_code_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = trained().state_dict()
    script = torch.jit.script(nn.Linear(2, 2)) if hasattr(torch, "jit") else None
    contents: dict[str, tuple[Any, str]] = {
        "code": (Harmful(), "holds objects of"),
        "model": (nn.Linear(2, 2), "holds objects of torch.nn.modules.linear.Linear, not only tensors: expected"),
        "number": (3, "holds a int: expected tensors by name"),
        "empty": ({}, "holds an empty table: expected tensors by name"),
        "text": ({"fc1.weight": "no"}, "holds 'fc1.weight', a str: expected tensors by name"),
        "sparse": ({**state, "fc1.weight": state["fc1.weight"].to_sparse()}, "'fc1.weight' is not a dense tensor"),
    }
    for name, (content, said) in contents.items():
        torch.save(content, f"{name}.pth")
        line = refusal(
            "--weights", f"{name}.pth", capsys=capsys, code=1 if name in ("number", "empty", "text", "sparse") else 2
        )
        assert line.startswith(f"weights {name}.pth")
        assert said in line
    Path("bytes.pth").write_bytes(b"\x00" * 100)
    assert "is damaged, or not a file that torch.save wrote" in refusal("--weights", "bytes.pth", capsys=capsys)
    torch.save(state, "cut.pth")
    whole = Path("cut.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "is damaged, or not a file" in refusal("--weights", "cut.pth", capsys=capsys)
    if script is not None:
        script.save("script.pt")
        assert "is a TorchScript program: expected a state dict" in refusal("--weights", "script.pt", capsys=capsys)
    assert "code of a file has run" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_prefixes_stay_where_the_model_has_them_too_or_not_every_name_has_them() -> None:
    tensors = {"module.a": torch.ones(1), "module.b": torch.ones(1)}
    assert without_prefixes(tensors, ["module.a", "module.b"]) == (tensors, "")
    assert without_prefixes({**tensors, "c": torch.ones(1)}, ["a"])[1] == ""
    assert list(without_prefixes(tensors, ["a", "b"])[0]) == ["a", "b"]
    with pytest.raises(MakeweightError, match="net holds a list"):
        find_state([torch.ones(1)], "net")


# Fitting.


def test_another_number_of_classes_leaves_the_classifier_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other, start = trained(classes=26).state_dict(), build(LENET, (1, 8, 8), 10).state_dict()
    torch.save(other, "net.pth")
    save_file(other, "net.safetensors")
    for file in ("net.pth", "net.safetensors"):
        found, remarks = network(weights=file)
        expected = {**other, "fc3.weight": start["fc3.weight"], "fc3.bias": start["fc3.bias"]}
        assert_same_bits(found.state_dict(), expected)
        said = "'fc3.weight', 'fc3.bias' newly initialised: 26 classes in the file, 10 in the model"
        assert remarks == [f"weights {file}: {said}"]
    assert here("--weights", "net.pth", "--dry-run") == 0
    assert f"weights net.pth: {said}\n" in capsys.readouterr().out


def test_an_export_of_other_classes_is_a_start_too_and_one_of_the_same_classes_as_before(
    here_with_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "resnet20", "--batch-size", "6", "--validation", "0", "--epochs", "1", "--data"]
    (here_with_data / "my_data.py").write_text(DATA + "def six(): return images(6)\n")
    assert here(*words, "my_data:six", "--plugins", "prune,huffman", "--out", "six") == 0
    tensors = load_tensors("six/model.safetensors")
    for weights in ("six/model.safetensors", "six"):
        found, remarks = network(model="resnet20", data="my_data:four", weights=weights, validation=0)
        state = found.state_dict()
        same = [name for name in state if state[name].shape == tensors[name].shape]
        assert_same_bits({name: state[name] for name in same}, {name: tensors[name] for name in same})
        assert set(state) - set(same) == {"fc.weight", "fc.bias"}
        assert remarks[0].endswith("newly initialised: 6 classes in the file, 4 in the model")
    found, remarks = network(model="resnet20", data="my_data:six", weights="six", validation=0)
    assert_same_bits(dict(sorted(found.state_dict().items())), dict(sorted(tensors.items())))
    assert remarks == []


MISMATCHES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda state: state.pop("fc1.bias"), "the model also has 'fc1.bias'"),
    "unknown": (lambda state: state.update({f"x{n}": torch.ones(1) for n in range(5)}),
                "the file also has 'x0', 'x1', 'x2' and 2 more"),
    "hidden": (lambda state: state.update({"fc1.weight": torch.ones(200, 64), "fc1.bias": torch.ones(200)}),
               "the file has 'fc1.weight' [200, 64] where the model has [300, 64], 'fc1.bias' [200]"),
    "inputs": (lambda state: state.update({"fc3.weight": torch.ones(26, 99), "fc3.bias": torch.ones(26)}),
               "the file has 'fc3.weight' [26, 99] where the model has [10, 100]"),
    "half a classifier": (lambda state: state.update({"fc3.weight": torch.ones(26, 100)}),
                          "the file has 'fc3.weight' [26, 100] where the model has [10, 100]"),
    "names": (lambda state: state.update({"head.weight": state.pop("fc3.weight"), "head.bias": state.pop("fc3.bias")}),
              "the model also has 'fc3.weight', 'fc3.bias'; the file also has 'head.weight', 'head.bias'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISMATCHES)
def test_every_other_mismatch_is_an_error_that_lists_both_sides(name: str, tmp_path: Path) -> None:
    change, said = MISMATCHES[name]
    state = dict(trained().state_dict())
    change(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(MakeweightError) as error:
        network(weights=str(tmp_path / "net.pth"))
    assert str(error.value).startswith(f"weights {tmp_path / 'net.pth'} belongs to another model: {said}")


def test_integers_are_not_taken_for_weights_and_old_files_may_lack_counters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "tracked" not in name}
    state["1.running_mean"] += 3
    assert fit(model, state, "net") == []
    assert model.get_buffer("1.running_mean").tolist() == [3, 3]
    state["0.weight"] = torch.ones(2, 2, dtype=torch.int8)
    with pytest.raises(MakeweightError, match=r"net: '0.weight' has dtype torch.int8, the model's has torch.float32"):
        fit(model, state, "net")


def test_a_tied_weight_may_stand_under_either_of_its_names() -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    given = tied().state_dict()
    for dropped in ("0.weight", "1.weight"):
        model = tied()
        assert fit(model, {name: each for name, each in given.items() if name != dropped}, "net") == []
        assert_same_bits(model.state_dict(), given)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def differing(one: nn.Module, other: nn.Module) -> dict[str, torch.Size]:
    there, own = shapes(one), shapes(other)
    assert there.keys() == own.keys()
    return {name: there[name] for name in there if there[name] != own[name]}


TORCHVISION = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
               "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
               "swin_t", "swin_v2_t", "vgg11", "vit_b_32"]  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_classifier_of_torchvisions_models_is_found(name: str) -> None:
    from torchvision.models import get_model

    extra: Any = {"init_weights": False, "aux_logits": True} if name in pretrained.AUXILIARY else {}
    with torch.device("meta"):
        there, here = (get_model(name, weights=None, num_classes=classes, **extra) for classes in (1000, 7))
    other = differing(there, here)
    assert other
    assert classifier_of(here, other, 7) == list(other)
    assert classifier_of(here, other, 8) == []


@pytest.mark.slow  # many models
def test_the_classifier_of_timms_models_is_found() -> None:
    timm = pytest.importorskip("timm")
    for name in ["deit_tiny_distilled_patch16_224", "mobilenetv3_small_050", "test_convnext", "test_efficientnet",
                 "test_nfnet", "test_resnet", "test_vit", "volo_d1_224", "cait_xxs24_224", "resnetv2_50"]:  # fmt: skip
        with torch.device("meta"):
            there, here = (timm.create_model(name, num_classes=classes) for classes in (1000, 7))
        other = differing(there, here)
        assert classifier_of(here, other, 7) == list(other), name


def test_a_layer_that_is_not_the_last_or_not_alone_is_no_classifier() -> None:
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 7), nn.BatchNorm1d(7))
    weight, bias = {"1.weight": [9, 7]}, {"1.bias": [9]}
    assert classifier_of(model, {**weight, **bias}, 7) == ["1.weight", "1.bias"]
    assert classifier_of(model, {**weight, **bias}, None) == ["1.weight", "1.bias"]
    for other in (weight, {"0.weight": [9, 4], "0.bias": [9]}, {**weight, **bias, "2.weight": [9]},
                  {**weight, "1.bias": [8]}, {"1.weight": [9, 6], **bias}, {"1.weight": [9, 7, 1], **bias},
                  ):  # fmt: skip
        assert classifier_of(model, other, 7) == []


# The caches of libraries.


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def save_pretrained(folder: Path, name: str, rename: Callable[[str], str] = str) -> dict[str, Tensor]:
    """Write random weights into torchvision's cache in the place of the model's own. Returns them."""
    from torchvision.models import get_model, get_model_weights

    extra: Any = {"init_weights": False, "aux_logits": True} if name in pretrained.AUXILIARY else {}
    torch.manual_seed(3)
    state: dict[str, Tensor] = get_model(name, weights=None, **extra).state_dict()
    torch.save({rename(key): tensor for key, tensor in state.items()},
               folder / Path(get_model_weights(name).DEFAULT.url).name)  # fmt: skip
    return state


def test_torchvisions_default_weights_come_from_its_cache(
    torch_home: Path, here_with_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = save_pretrained(torch_home, "squeezenet1_1")
    words: dict[str, Any] = {"model": "squeezenet1_1", "data": "my_data:four", "validation": 0.0}
    start = Session(Options(**words)).network().state_dict()
    classifier = ["classifier.1.weight", "classifier.1.bias"]
    for weights in ("pretrained", "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1",
                    "torchvision:SqueezeNet1_1_Weights.DEFAULT"):  # fmt: skip
        found, remarks = network(**words, weights=weights)
        assert_same_bits(found.state_dict(), {**state, **{name: start[name] for name in classifier}})
        assert remarks == [
            "data my_data:four is used as it is: the weights expect pixels in 0..1, normalised with mean [0.485, "
            "0.456, 0.406] and standard deviation [0.229, 0.224, 0.225]",
            f"weights {weights}: SqueezeNet1_1_Weights.IMAGENET1K_V1; 'classifier.1.weight', 'classifier.1.bias' newly "
            "initialised: 1000 classes in the file, 4 in the model",
        ]
    said = refusal(
        "--model", "squeezenet1_1", "--data", "my_data:gray", "--weights", "pretrained", capsys=capsys, code=1
    )
    assert said.startswith("weights pretrained belongs to another model: the file has 'features.0.weight' "
                           "[64, 3, 3, 3] where the model has [64, 1, 3, 3]")  # fmt: skip


def test_old_names_of_densenet_are_read_as_torchvision_reads_them(torch_home: Path) -> None:
    def old(name: str) -> str:
        for part in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in name else name
        return name

    state = save_pretrained(torch_home, "densenet121", old)
    found = pretrained.of_library("densenet121", "pretrained")
    assert found is not None
    assert_same_bits(found.load(3), state)


def test_googlenet_starts_without_auxiliary_classifiers_and_with_its_own_scale_of_inputs(
    torch_home: Path, here_with_data: Path
) -> None:
    from torchvision.models import googlenet

    state = save_pretrained(torch_home, "googlenet")
    (here_with_data / "my_data.py").write_text(DATA + "def thousand(): return images(1000)\n")
    found, _ = network(model="googlenet", data="my_data:thousand", validation=0.0, weights="pretrained")
    whole = googlenet(weights="DEFAULT").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.eval()(x), whole(x))
    assert {name.partition(".")[0] for name in state.keys() - found.state_dict().keys()} == {"aux1", "aux2"}


def test_weights_of_torchvision_that_cannot_be_had_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))  # nothing can be written there: no download begins
    monkeypatch.chdir(tmp_path)
    said = refusal("--model", "resnet18", "--weights", "pretrained", capsys=capsys)
    assert said.startswith("weights pretrained of resnet18 cannot be loaded: ")
    for weights, expected in {
        "torchvision:ResNet18_Weights.IMAGENET1K_V2": "did you mean 'ResNet18_Weights.IMAGENET1K_V1'?",
        "torchvision:resnet18": "torchvision has no such weights: ",
        "torchvision:ResNet18_Weights": "did you mean 'ResNet18_Weights.DEFAULT'?",
    }.items():
        assert expected in refusal("--model", "resnet18", "--weights", weights, capsys=capsys)
    for model in ("lenet300", "cifar-resnet18", "my_net:net"):
        (tmp_path / "my_net.py").write_text("def net(): pass\n")
        assert f"model {model} has no trained weights" in refusal(
            "--model", model, "--weights", "pretrained", capsys=capsys
        )


def hub_entry(home: Path, repository: str, files: Mapping[str, bytes], revision: str = "main") -> None:
    """Write a repository into the hub's cache as huggingface_hub lays it out."""
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (root / "snapshots" / commit / name).symlink_to(blob)


def saved(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save(dict(tensors))


def offline(home: Path) -> dict[str, Any]:
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hub")}


PRINT = """
import sys, torch
from makeweight.commands.session import Session
from makeweight.options import Options
options = dict(word.split("=", 1) for word in sys.argv[2:])
session = Session(Options(validation=0.0 if "data" in options else 0.1, **options))
torch.save(session.network().state_dict(), sys.argv[1])
print("\\n".join(session.remarks))
"""


def network_of_a_process(folder: Path, environment: dict[str, str], **options: str) -> tuple[dict[str, Tensor], str]:
    """The state of the network that a run starts from in a process of its own: libraries read their settings once."""
    import os
    import subprocess
    import sys

    words = [sys.executable, "-c", PRINT, "out.pth", *(f"{name}={value}" for name, value in options.items())]
    done = subprocess.run(words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pth"), done.stdout


@pytest.mark.slow  # processes of their own
def test_a_repository_of_the_hub_is_read_from_its_cache_whole_in_parts_and_by_revision(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    state, other = trained().state_dict(), trained(seed=8).state_dict()
    names = list(state)
    index = {
        "metadata": {},
        "weight_map": {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)},
    }
    parts = {f"part-{rest}.safetensors": saved({name: state[name] for name in names[rest::2]}) for rest in (0, 1)}
    home = tmp_path / "hf"
    hub_entry(home, "org/whole", {"model.safetensors": saved(state)})
    hub_entry(home, "org/whole", {"model.safetensors": saved(other)}, "v2.0")
    hub_entry(home, "org/parts", {"model.safetensors.index.json": json.dumps(index).encode(), **parts})
    for repository, expected in (("org/whole", state), ("org/whole@v2.0", other), ("org/parts", state)):
        found, _ = network_of_a_process(tmp_path, offline(home), weights=f"hf:{repository}")
        assert_same_bits(found, expected)
    index["weight_map"]["fc1.weight"] = "../../x.safetensors"
    hub_entry(home, "org/evil", {"model.safetensors.index.json": json.dumps(index).encode()})
    for repository, said in (
        ("org/none", "weights hf:org/none: model.safetensors cannot be downloaded: "),
        ("org/whole@v3", "weights hf:org/whole@v3: model.safetensors cannot be downloaded: "),
        ("org/evil", "expected at most 1000 names of .safetensors files in the same folder"),
    ):
        done = trainer(tmp_path, "--weights", f"hf:{repository}", code=2, **offline(home))
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_huggingface_hub_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = refusal("--weights", "hf:org/name", capsys=capsys)
    assert said == "weights hf:org/name: needs huggingface_hub: pip install 'makeweight[hf]'"
    for wrong in ("hf:", "hf:a/b/c", "hf:a b", "hf:a/b@"):
        assert "expected hf:ORGANISATION/NAME or" in refusal("--weights", wrong, capsys=capsys)


@pytest.mark.slow  # processes of their own
def test_timms_weights_come_from_the_hubs_cache_and_a_tag_alone_is_refused(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    (tmp_path / "my_data.py").write_text(DATA)
    home = tmp_path / "hf"
    hub_entry(home, "timm/test_resnet.r160_in1k", {"model.safetensors": saved(state)})
    words = {"data": "my_data:four", "weights": "pretrained"}
    for model in ("timm:test_resnet.r160_in1k", "timm:test_resnet"):
        found, said = network_of_a_process(tmp_path, offline(home), model=model, **words)
        same = {name for name in state if name not in ("fc.weight", "fc.bias")}
        assert_same_bits(
            {name: found[name] for name in found if name in same}, {name: state[name] for name in found if name in same}
        )
        assert found["fc.weight"].shape[0] == 4
        assert "normalised with mean [0.5, 0.5, 0.5] and standard deviation [0.5, 0.5, 0.5]" in said
        remark = "'fc.weight', 'fc.bias' newly initialised: 1000 classes in the file"
        assert f"weights pretrained: timm's test_resnet.r160_in1k; {remark}" in said
    found, _ = network_of_a_process(
        tmp_path, offline(home), model="timm:test_resnet", data="my_data:gray", weights="pretrained"
    )
    first = next(name for name in state if state[name].ndim == 4)
    torch.testing.assert_close(found[first], state[first].sum(1, keepdim=True))  # timm's rule for one channel
    done = trainer(tmp_path, "--model", "timm:test_vit", "--weights", "pretrained", code=2, **offline(home))
    assert "weights pretrained of timm:test_vit cannot be loaded: " in done.stderr


def test_a_tag_without_weights_and_an_unknown_tag_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    assert refusal("--model", "timm:mobilenetv3_small_100.lamb_in1k", capsys=capsys) == (
        "model timm:mobilenetv3_small_100.lamb_in1k names trained weights: expected --weights pretrained with it; to "
        "train from random weights leave the tag out, --model timm:mobilenetv3_small_100"
    )
    assert "did you mean 'resnet18.a1_in1k'?" in refusal("--model", "timm:resnet18.a1_in1", capsys=capsys)
    said = refusal("--model", "timm:coatnet_0_224", "--weights", "pretrained", capsys=capsys)
    assert said == "weights pretrained: timm has no trained weights of coatnet_0_224"


# Normalisation.


def test_an_image_folder_is_normalised_as_the_weights_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    for split in ("train", "test"):
        for number, name in enumerate(("black", "white")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for each in range(2):
                Image.new("RGB", (32, 32), (255 * number,) * 3).save(folder / f"{each}.png")
    data = f"imagefolder:{tmp_path / 'images'}"

    def of(model: str, weights: str | None) -> tuple[Any, list[str]]:
        session = Session(Options(model=model, data=data, weights=weights, validation=0.0))
        return session.data.test[2][0][:, 0, 0].tolist(), session.remarks

    white = [
        (1 - mean) / deviation for mean, deviation in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    for model, weights in (("resnet18", None), ("resnet18", "pretrained"), ("timm:test_resnet", None)):
        assert of(model, weights) == (pytest.approx(white, rel=1e-5), [])
    said = "is normalised with mean [0.5, 0.5, 0.5] and standard deviation [0.5, 0.5, 0.5], as the weights expect"
    assert of("timm:test_resnet.r160_in1k", "pretrained") == (pytest.approx([1, 1, 1]), [f"data {data} {said}"])


# Trust.


def test_a_downloaded_config_cannot_name_a_pickle_and_names_of_libraries_are_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (
        "pretrained",
        "hf:org/name@v1",
        "torchvision:ResNet18_Weights.DEFAULT",
        "net.safetensors",
        "runs/x",
    ):
        assert list(code_in({"weights": weights})) == []
    assert list(code_in({"weights": "my.code:f"})) == ["weights my.code:f"]
    monkeypatch.chdir(tmp_path)
    torch.save(trained().state_dict(), "net.pth")
    Path("run").mkdir()
    Path("run/config.yaml").write_text("weights: net.pth\nepochs: 1\nbatch_size: 646\n")
    said = refusal("--resume", "--out", "run", capsys=capsys)
    assert "run/config.yaml" in said
    assert "weights net.pth (a pickle): to trust it, " in said
    assert here("--resume", "--out", "run", "--recipe", "run/config.yaml") == 0
    assert here("--resume", "--out", "run", "--dry-run") == 0  # now it is a run of this user's own
    assert "weights: net.pth" in Path("run/config.yaml").read_text()


# Directories, and parts of an export.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "run"
    assert here(*SHORT, "--plugins", "prune,huffman", "--out", folder) == 0
    return folder


def test_evaluate_and_inspect_take_a_run_directory(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for path in (run, run / "model.safetensors"):
        capsys.readouterr()
        assert here("evaluate", path, "--no-latency") == 0
        evaluated = capsys.readouterr().out
        assert here("inspect", path) == 0
        shown[path] = evaluated, capsys.readouterr().out
    assert shown[run] == shown[run / "model.safetensors"]
    assert f"{100 * summary(run)['accuracy']:.2f} %" in shown[run][0]
    (tmp_path / "empty").mkdir()
    for verb in ("evaluate", "inspect"):
        said = refusal(verb, tmp_path / "empty", capsys=capsys)
        assert (
            said == f"{tmp_path / 'empty'} is a directory without model.safetensors: expected a finished run, or a file"
        )


def test_an_export_is_loaded_in_part_without_strict_and_a_warning_says_what_is_left_out(run: Path) -> None:
    path = run / "model.safetensors"
    model, tensors = trained(classes=4), load_tensors(path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MakeweightError, match=r"'fc3.weight' has shape"):
        load(path, model)
    assert_same_bits(model.state_dict(), before)
    said = (
        r"was loaded in part: the file has 'fc3.weight' \[10, 100\] where the model has \[4, 100\], 'fc3.bias' \[10\]"
    )
    with pytest.warns(UserWarning, match=said):
        assert load(path, model, strict=False) is model
    heads = ("fc3.weight", "fc3.bias")
    assert_same_bits(model.state_dict(), {name: before[name] if name in heads else tensors[name] for name in before})
    extra = nn.Sequential()
    extra.add_module("fc1", nn.Linear(64, 300))
    extra.add_module("more", nn.Linear(1, 1))
    with pytest.warns(
        UserWarning, match="the model also has 'more.weight', 'more.bias'; the file also has 'fc2.weight'"
    ):
        load(path, extra, strict=False)
    assert torch.equal(extra.get_parameter("fc1.weight"), tensors["fc1.weight"])
    with pytest.raises(MakeweightError, match="none of its tensors fits the model"):
        load(path, nn.Linear(3, 3), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(load(path, trained(), strict=False).state_dict(), {name: tensors[name] for name in before})


# The command line.


def test_names_of_files_with_code_are_refused_with_the_name_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text("open('imported', 'w')\ndef model(): pass\n")
    for option, given, right in (
        ("model", "my_net.py:model", "my_net:model"),
        ("model", "./my_net.py", "my_net:FUNCTION"),
        ("data", "sub/my_net.py:data", "sub.my_net:data"),
        ("data", "my_net.py", "my_net:FUNCTION"),
        ("criterion", "my_net.py:loss", "my_net:loss"),
        ("metric", "my_net.py:metric", "my_net:metric"),
    ):
        said = refusal(f"--{option}", given, capsys=capsys)
        assert said.endswith(f"{given!r}: expected a module, not a file: {right}")
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "words", [["--plugins", "prune", "kd", "--epochs", "3"], ["--epochs", "3", "--plugins=prune kd"],
              ["--plugins", "prune,", "kd", "--epochs=3"], ["--plugins", " prune , kd ", "--epochs", "3"]]
)  # fmt: skip
def test_plugins_may_be_separated_by_blanks(words: list[str]) -> None:
    configuration = parse(words)
    assert list(configuration.plugins) == ["prune", "kd"]
    assert configuration.options.epochs == 3


RECIPE = """
plugins: [prune, kd, other]
epochs: 2
prune: {sparsity: 0.5}
kd: {teacher: initial}
other: {strength: 3}
stages:
  - {epochs: 1, kd: {alpha: 0.5}}
  - {epochs: 1, prune: {sparsity: 0.7}}
"""


def test_plugins_of_a_recipe_are_dropped_on_the_command_line_with_their_tables_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    configuration = parse(["--recipe", "r.yaml", "--plugins", "prune"])
    assert list(configuration.plugins) == ["prune"]
    assert [stage.plugins["prune"].sparsity for stage in configuration.stages] == [0.5, 0.7]
    said = "recipe r.yaml: its options of kd, other are ignored, as --plugins leaves them out"
    assert configuration.remarks == [said]
    assert configuration.resolved()["stages"] == [{"epochs": 1}, {"epochs": 1, "prune": {"sparsity": 0.7}}]
    assert parse(["--recipe", "r.yaml", "--plugins", ""]).plugins == {}
    assert here("--recipe", "r.yaml", "--plugins", "prune", "--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"{said}\n")


def test_options_of_a_plugin_that_is_off_are_still_errors_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE.replace(", other", "").replace("other: {strength: 3}", ""))
    Path("off.yaml").write_text("kd: {teacher: initial}\n")
    Path("typo.yaml").write_text("plugins: [prune]\nkdd: {teacher: initial}\n")
    off = "plugin 'kd' is not enabled"
    assert off in refusal("--recipe", "off.yaml", capsys=capsys)
    assert off in refusal("--recipe", "r.yaml", "--plugins", "prune", "--kd.alpha", "1", capsys=capsys)
    assert off in refusal("--recipe", "r.yaml", "--plugins", "prune", "--stages.1.kd.alpha", "1", capsys=capsys)
    assert "kdd: unknown option" in refusal("--recipe", "typo.yaml", "--plugins", "prune", capsys=capsys)
    assert here("--recipe", "off.yaml", "--plugins", "prune", "--dry-run") == 0


def test_a_run_is_not_resumed_without_one_of_its_plugins_unless_its_recipe_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not enabled" in refusal("--resume", "--out", run, "--plugins", "prune", capsys=capsys)
    configuration = parse(["--plugins", "prune"], beside=run / "config.yaml")  # as `evaluate` reads it
    assert configuration.remarks == [
        f"recipe {run / 'config.yaml'}: its options of huffman are ignored, as --plugins leaves them out"
    ]
