"""Labels of language models are aligned as the model's own loss aligns them; perplexity counts each token once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makeweight import Trainer, UsageError
from makeweight.outputs import logits_of, own_loss, shifted
from makeweight.plugin import Task

from .helpers import here, summary, trainer, two_processes

WORDS, LENGTH = 11, 12


def counting(rows: int) -> dict[str, Tensor]:
    """Sequences that count up from a random start: the next token is certain."""
    start = torch.randint(WORDS, (rows, 1), generator=torch.Generator().manual_seed(0))
    ids = (start + torch.arange(LENGTH)) % WORDS
    return {"input_ids": ids, "labels": ids.clone()}


class Output(dict[str, Any]):
    """A mapping with attributes, as Hugging Face's outputs are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Counter(nn.Module):
    """A model of the next token, or of the token itself: a table of logits by token."""

    def __init__(self, shift: int = 1, zero: bool = False, smoothing: float = 0.0) -> None:
        super().__init__()
        self.table, self.shift, self.smoothing = nn.Embedding(WORDS, WORDS), shift, smoothing
        if zero:
            nn.init.zeros_(self.table.weight)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.table(input_ids)  # [B, T, V]
        if labels is None:
            return Output(logits=logits, loss=None)
        cut, target = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
        loss = cross_entropy(cut.flatten(0, 1), target.flatten(), label_smoothing=self.smoothing)
        return Output(logits=logits, loss=loss)


class LossOfNothing(Counter):
    """Its loss does not show how it aligns the labels."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        output = super().forward(input_ids, labels)
        return Output(logits=output.logits, loss=output.logits.square().mean() + 1)


class NothingForCausalLM(LossOfNothing):
    pass


def settled(model: nn.Module, data: dict[str, Tensor] | None = None, **task: Any) -> Trainer:
    columns = counting(32) if data is None else data
    run = Trainer(model, columns, columns, task=Task(**task), epochs=1, batch_size=16)
    run.check()
    return run


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"zero": True}, {"smoothing": 0.1}])
def test_the_alignment_is_that_of_the_models_own_loss(shift: int, settings: dict[str, Any]) -> None:
    """Logits that are all equal have the same loss in both alignments; smoothed labels have that of neither."""
    torch.manual_seed(0)
    if settings.get("smoothing") and not shift:
        settings = {}  # without a shift, a loss that agrees with neither leaves the labels where they are
    assert settled(Counter(shift, **settings)).task.shifts_labels is bool(shift)


def test_accuracy_and_perplexity_are_those_of_the_next_token() -> None:
    torch.manual_seed(0)
    data = counting(64)
    data["labels"][::3, -4:] = -100
    run = Trainer(Counter(), data, data, task=Task(metric=["accuracy", "perplexity"]), epochs=30, batch_size=16, lr=3.0)
    metrics = run.fit()
    with torch.no_grad():
        logits = run.model(**data).logits[:, :-1]
    target = data["labels"][:, 1:]
    assert metrics["accuracy"] == 1.0
    expected = cross_entropy(logits.flatten(0, 1).double(), target.flatten()).exp()
    assert metrics["perplexity"] == pytest.approx(float(expected), rel=1e-9)
    assert 1 < metrics["perplexity"] < 1.2


def test_functions_and_classes_get_aligned_logits_and_targets() -> None:
    def next_token(output: Any, target: Tensor) -> Tensor:
        right: Tensor = output.logits.argmax(-1) == target
        return right.float().mean(1)

    class Seen:
        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def update(self, output: Tensor, target: Tensor) -> None:
            self.shapes.append((*output.shape, *target.shape))

        def compute(self) -> float:
            assert self.shapes == [(32, LENGTH - 1, WORDS, 32, LENGTH - 1)]
            return 1.0

    torch.manual_seed(0)
    found = settled(Counter(), metric=["accuracy", next_token, Seen()]).evaluate()
    assert found["next_token"] == found["accuracy"]
    assert found["seen"] == 1.0


def test_every_kind_of_output_is_aligned_and_not_changed() -> None:
    class Tuple(NamedTuple):
        logits: Tensor
        loss: float = 0.5

    @dataclass(frozen=True)
    class Frozen:
        logits: Tensor
        loss: float = 0.5

    logits, labels = torch.randn(2, 5, WORDS), torch.zeros(2, 5, dtype=torch.long)
    for output in (
        Tuple(logits),
        Frozen(logits),
        Output(logits=logits, loss=0.5),
        MappingProxyType({"logits": logits}),
    ):
        changed, target = shifted(output, labels)
        assert torch.equal(logits_of(changed), logits[:, :-1])
        assert target.shape == (2, 4)
        assert logits_of(output) is logits
        assert own_loss(changed) == own_loss(output)
    pair = torch.randn(2, 3), torch.zeros(2, dtype=torch.long)
    assert shifted(*pair) == pair


def test_a_loss_that_shows_no_alignment_is_refused_for_a_model_of_the_next_token() -> None:
    with pytest.raises(UsageError, match="NothingForCausalLM: its loss does not show whether it shifts the labels"):
        settled(NothingForCausalLM())
    assert settled(LossOfNothing()).task.shifts_labels is False


def test_labels_that_are_no_tokens_are_refused() -> None:
    data = counting(32)
    data["labels"][-1, -1] = WORDS
    with pytest.raises(UsageError, match=f"labels 0 to {WORDS} of train_data: the model has {WORDS} outputs"):
        settled(Counter(), data)


def test_two_processes_give_the_perplexity_of_one(tmp_path: Path) -> None:
    (tmp_path / "my_counter.py").write_text(MODULE)
    words = ["--model", "my_counter:model", "--data", "my_counter:data", "--metric", "perplexity,accuracy", "--epochs",
             "2", "--batch-size", "16", "--lr", "3"]  # fmt: skip
    trainer(tmp_path, *words, "--out", "one")
    two_processes(tmp_path, "-m", "makeweight", *words, "--out", "two")
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["metric"] == "perplexity"
    assert 1 < one["perplexity"] < 2
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-6)
    assert two["export"]["perplexity"] == pytest.approx(two["perplexity"], rel=1e-9)


MODULE = f"""
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class Output(dict):
    __getattr__ = dict.__getitem__

class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding({WORDS}, 8), nn.Linear(8, {WORDS})

    def forward(self, input_ids, labels=None):
        logits = self.out(self.table(input_ids))
        loss = None if labels is None else cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(logits=logits, loss=loss)

def model():
    return Counter()

def data():
    ids = (torch.arange(99)[:, None] + torch.arange({LENGTH})) % {WORDS}
    labels = ids.clone()
    labels[::5, 3:] = -100
    return {{"input_ids": ids, "labels": ids}}, {{"input_ids": ids, "labels": labels}}
"""


# Models of Hugging Face, from configurations


def huggingface(name: str) -> nn.Module:
    """A tiny model with random weights."""
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    if name == "GPT2LMHeadModel":
        config = transformers.GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=1, n_head=2, **ends)
    elif name == "LlamaForCausalLM":
        config = transformers.LlamaConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes, **ends)
    elif name.startswith("Bert"):
        config = transformers.BertConfig(
            vocab_size=WORDS, max_position_embeddings=16, is_decoder="LMHead" in name, **sizes
        )
    else:
        config = transformers.T5Config(
            vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, **ends
        )
    model: nn.Module = getattr(transformers, name)(config)
    return model


SHIFTED = {
    "GPT2LMHeadModel": True,
    "LlamaForCausalLM": True,
    "BertLMHeadModel": True,
    "BertForMaskedLM": False,
    "BertForTokenClassification": False,
    "T5ForConditionalGeneration": False,
}


@pytest.mark.parametrize("name", SHIFTED)
def test_models_of_hugging_face_are_aligned_as_they_shift_their_labels(name: str) -> None:
    data = counting(32)
    if name == "BertForTokenClassification":
        data["labels"] = data["labels"] % 2
    assert settled(huggingface(name), data).task.shifts_labels is SHIFTED[name]


def test_gpt2_has_the_accuracy_of_the_tokens_that_it_predicts() -> None:
    """0.62 % was printed where 99.17 % is true."""
    data = counting(128)
    task = Task(metric=["accuracy", "perplexity"])
    model = huggingface("GPT2LMHeadModel")
    run = Trainer(model, data, data, task=task, epochs=12, batch_size=16, optimizer="adamw", lr=0.02)
    metrics = run.fit()
    run.model.eval()
    with torch.no_grad():
        output = run.model(**data)
    right = (output.logits[:, :-1].argmax(-1) == data["labels"][:, 1:]).float().mean()
    assert metrics["accuracy"] == pytest.approx(float(right), abs=1e-6)
    assert metrics["accuracy"] > 0.95
    assert metrics["perplexity"] == pytest.approx(float(output.loss.exp()), rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(output.loss), rel=1e-5)


def test_pairs_of_equal_tokens_are_refused_for_a_model_of_the_next_token() -> None:
    ids = counting(32)["input_ids"]
    with pytest.raises(UsageError, match="GPT2LMHeadModel predicts the next token and the targets are its inputs"):
        Trainer(huggingface("GPT2LMHeadModel"), (ids, ids), batch_size=16).fit()


def test_the_command_line_trains_and_exports_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "my_gpt2.py").write_text(
        MODULE + "\n"
        "def gpt2():\n"
        "    from transformers import GPT2Config, GPT2LMHeadModel\n"
        f"    return GPT2LMHeadModel(GPT2Config(vocab_size={WORDS}, n_positions=16, n_embd=16, n_layer=1, n_head=2,\n"
        "                                      bos_token_id=0, eos_token_id=0))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model", "my_gpt2:gpt2", "--data", "my_gpt2:data", "--metric", "perplexity,accuracy", "--epochs", 8,
             "--batch-size", 16, "--optimizer", "adamw", "--lr", 0.02]  # fmt: skip
    assert here(*words, "--out", "run") == 0
    found = summary(tmp_path / "run")
    assert found["accuracy"] > 0.9
    assert found["higher_is_better"] is False
    assert found["export"]["perplexity"] == found["perplexity"]
