"""The examples of docs/own_loop.md run and resume to the very row; each where its package is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import upscale
from tests.docs import markdown
from upscale.evaluation import suite
from upscale.evaluation.compression import target_positions
from upscale.evaluation.dataset import EvaluationError

pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_loop_{name}", markdown.ROOT / f"docs/own_loop/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle finds the form of its rows
    spec.loader.exec_module(module)
    return module


def test_importing_the_package_is_cheap():
    code = "import sys, upscale; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=markdown.ROOT)


def test_a_plain_loop_resumes_and_is_measured(tmp_path, monkeypatch):
    """Stopped after 6 steps of 12, against the same loop without a stop: the same losses, bit for bit."""
    pytest.importorskip("x_transformers", reason="needs x-transformers")
    script = example("plain_loop")
    monkeypatch.setattr(script, "CONTEXT", 32)

    def model():
        torch.manual_seed(1)
        return script.build(width=32)

    whole = script.train(model(), 12)
    parts = [script.train(model(), steps, tmp_path / "loop.pt") for steps in (6, 12)]
    assert parts[0] + parts[1] == whole and [len(part) for part in parts] == [6, 6]
    trained = model()
    trained.load_state_dict(torch.load(tmp_path / "loop.pt")["model"])
    fresh, after = (upscale.evaluate(each, ["wp"], context=32, slices=50)[0] for each in (model(), trained))
    assert after["bits_per_character"] != fresh["bits_per_character"] and trained.training


def test_hugging_faces_trainer_resumes(tmp_path, monkeypatch):
    """Stopped after 4 steps of 6, against a training without a stop: equal weights."""
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    script = example("huggingface_trainer")
    monkeypatch.setattr(script, "CONTEXT", 32)
    whole = script.train(tmp_path / "whole", 6, save_steps=4).model
    script.train(tmp_path / "parts", 4, save_steps=4)
    parts = script.train(tmp_path / "parts", 6, save_steps=4).model
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (record,) = upscale.evaluate(parts, ["dyck"], context=32, slices=20)
    assert 2 < record["bits_per_character"] < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes(workers):
    """Two ranks, stopped after 13 batches, where no worker has just copied its state; against loaders that went on."""
    pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    script = example("stateful_loader")
    overrides = ["model.context=32", "data.lanes=8", "data.draw=4"]

    def loader(rank):
        return script.RowLoader(["automaton"], overrides, rank=rank, world_size=2, batch=3, workers=workers)

    for rank in range(2):
        whole, batches, state = loader(rank), [], {}
        for number, batch in enumerate(whole):
            batches.append(batch)
            if number == 12:
                state = whole.state_dict()
            if number == 16:
                break
        again = loader(rank)
        again.load_state_dict(state)
        for (inputs, targets), expected in zip(again, batches[13:], strict=False):
            assert torch.equal(inputs["input"], expected[0]["input"]) and torch.equal(targets, expected[1])


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("form", ["module", "every position", "the next", "attribute", "tuple"])
def test_any_model_is_measured(form):
    """A model that always gives one byte half of the probability, against what that costs on the text itself."""
    scores = torch.zeros(256)
    scores[ord(" ")] = torch.log(torch.tensor(255.0))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(scores)
            self.dropout = torch.nn.Dropout(0.9)

        def forward(self, tokens):
            return self.dropout(self.scores).expand(*tokens.shape, 256)

    forms = {
        "module": Model(),
        "every position": lambda tokens: scores.expand(*tokens.shape, 256),
        "the next": lambda tokens: scores.expand(len(tokens), 256),
        "attribute": lambda tokens: Output(scores.expand(*tokens.shape, 256)),
        "tuple": lambda tokens: (scores.expand(*tokens.shape, 256), None),
    }
    (record,) = upscale.evaluate(forms[form], ["wp"], context=16, slices=500)
    (dataset,) = suite.datasets(["wp"])
    targets = target_positions(len(dataset.data), context=16, slices=500)
    share = float((dataset.data[targets] == ord(" ")).mean())
    expected = share * 1 + (1 - share) * torch.log2(torch.tensor(510.0)).item()
    assert record["bits_per_character"] == pytest.approx(expected, rel=1e-5)
    assert record["markov_bits_per_character"] and record["task"] == "wp"
    if form == "module":
        assert forms[form].training and forms[form].dropout.training


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(tasks=["dick"]), "did you mean 'dyck'"),
        (dict(context=1), "context is 1; allowed: 2 or more"),
        (dict(slices=0), "slices is 0"),
        (dict(split="train"), "split is 'train'; allowed: validation, test"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_called(given, message):
    with pytest.raises(EvaluationError, match=message):
        upscale.evaluate(None, **{"tasks": ["dyck"], **given})


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="the logits of the next token"):
        upscale.evaluate(lambda tokens: torch.zeros(len(tokens), 100), ["dyck"], context=16, slices=5)
    with pytest.raises(ValueError, match="returned a str; logits are expected"):
        upscale.evaluate(lambda tokens: "text", ["dyck"], context=16, slices=5)
