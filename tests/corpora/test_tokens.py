"""Corpora of a tokenizer's tokens against the tokenizer itself, and perplexity against a loop over every token."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

import upscale
from tests import tiny
from tests.corpora import test_documents as documents
from tests.corpora.small import corpus, text
from tests.reference import documents as reference
from tests.reference import perplexity
from tests.test_train import losses, train
from upscale.cli import evaluate, prepare
from upscale.corpora.shards.reading import Corpus
from upscale.data import training_rows
from upscale.errors import UserError
from upscale.evaluation import overlap
from upscale.model import parametrization

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level BPE of 300 tokens, one of which ends a document, and its file."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(
        [text.decode() for text in documents.DOCUMENTS], vocab_size=300, special_tokens=["</s>"], show_progress=False
    )
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return tokenizers.Tokenizer.from_file(str(file)), file


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """The documents of tests/corpora/test_documents.py as tokens."""
    place = tmp_path_factory.mktemp("tokens")
    (place / "a.jsonl").write_bytes(documents.as_lines())
    documents.prepare(
        documents.request(
            "text", place / "to", place / "a.jsonl", held_out=documents.SHARE, tokenizer=str(tokenizer[1])
        )
    )
    return place / "to"


def tokens(folder, split) -> np.ndarray:
    found = Corpus.open(folder).splits[split]
    return np.frombuffer(found.read(0, len(found)), "<i2")


def test_tokens_are_the_tokenizers(folder, tokenizer):
    """Document after document, each with the end token; the index tells the vocabulary and the bytes of text."""
    known, _ = tokenizer
    description = Corpus.open(folder).description
    assert (description.token_bytes, description.row_tokens) == (2, None)
    assert description.vocabulary == known.get_vocab_size() > 256
    for split, content in reference.splits(documents.DOCUMENTS, held_out=documents.SHARE).items():
        expected = [
            each
            for document in content.split(b"\0")[:-1]
            for each in [*known.encode(document.decode()).ids, known.token_to_id("</s>")]
        ]
        assert tokens(folder, split).tolist() == expected
        assert description.provenance["text_bytes"][split] == len(content.replace(b"\0", b""))
    with pytest.raises(UserError, match="holds tokens above bytes, but a text of bytes is wanted"):
        Corpus.open(folder).splits["train"].text()


def test_they_are_trained_on(folder):
    """Rows are windows of the tokens; a smaller vocabulary, and tasks of bytes, are refused."""
    listed = f"[{{path: {folder}}}]"
    config = tiny.config(data__kind="corpus", data__corpora=listed, model__vocabulary=320)
    rows = training_rows.open_rows(config)(range(12), "cpu").draw(2)
    assert rows.dtype == torch.int16 and rows.shape == (24, 17)
    windows = np.lib.stride_tricks.sliding_window_view(tokens(folder, "train"), 17)
    assert {row.tobytes() for row in rows.numpy()} <= {window.tobytes() for window in windows}
    with pytest.raises(UserError, match="tokens below 2.., but model.vocabulary is 256: set model.vocabulary=2.."):
        training_rows.open_rows(tiny.config(data__kind="corpus", data__corpora=listed))
    with pytest.raises(UserError, match="holds a tokenizer's tokens, but the evaluation's tasks are bytes"):
        overlap.check_tokens(config)
    overlap.check_tokens(tiny.config())


class Bigrams(torch.nn.Module):
    """Logits that depend on the token before."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0)))

    def forward(self, given):
        return self.table[given]


@pytest.mark.parametrize("kind", ["tokens", "bytes"])
def test_perplexity_and_bits_per_byte(folder, tmp_path, kind):
    """Against a loop over all tokens of whole rows, one after the other, and over every second row."""
    place = folder
    if kind == "bytes":
        corpus(tmp_path / "wp", text(1200), {"train": 900, "validation": 200, "test": 100})
        place = tmp_path / "wp"
    content = Corpus.open(place).splits["validation"]
    dtype = np.uint8 if kind == "bytes" else "<i2"
    given = torch.from_numpy(np.frombuffer(content.read(0, len(content)), dtype).astype(np.int64))
    model = Bigrams(300)
    logs = torch.log_softmax(model.table.detach().double(), -1)
    bits = torch.tensor([-logs[given[place], given[place + 1]] / math.log(2) for place in range(len(given) - 1)])
    whole = (len(given) - 1) // 7
    found = upscale.perplexity(model, place, context=7)
    assert found["rows"] == whole > 4 and found["bits_per_token"] == pytest.approx(bits[: whole * 7].mean().item())
    assert found["perplexity"] == pytest.approx(2 ** found["bits_per_token"])
    size = len(given) if kind == "bytes" else Corpus.open(place).description.provenance["text_bytes"]["validation"]
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_token"] * len(given) / size)
    three = upscale.perplexity(lambda each: (model(each),), place, context=7, rows=3, batch_rows=2)
    starts = [number * whole // 3 * 7 for number in range(3)]
    of_rows = torch.stack([bits[start : start + 7].mean() for start in starts])
    assert three["bits_per_token"] == pytest.approx(of_rows.mean().item())
    assert three["standard_error"] == pytest.approx((of_rows.std() / math.sqrt(3)).item())


def test_what_cannot_be_measured(folder):
    with pytest.raises(UserError, match="wanted are logits of every position"):
        upscale.perplexity(lambda given: Bigrams(300)(given)[..., :256], folder, context=7)
    with pytest.raises(UserError, match="but the model's are below 256"):
        upscale.perplexity(parametrization.build(tiny.config()), folder)
    with pytest.raises(UserError, match="tokens; one row needs 100,001"):
        upscale.perplexity(Bigrams(300), folder, context=100_000)
    with pytest.raises(UserError, match="rows is 0"):
        upscale.perplexity(Bigrams(300), folder, rows=0)
    with pytest.raises(UserError, match="--tasks with --corpus"):
        evaluate.main(["--run", "x", "--corpus", str(folder), "--tasks", "wp"])


def test_the_command(folder, monkeypatch, capsys):
    """The line that it prints, against the function."""
    monkeypatch.setattr(evaluate, "load", lambda run, device, step: Bigrams(300))
    monkeypatch.setattr(evaluate, "perplexity", lambda *given, **asked: upscale.perplexity(*given, **asked, context=7))
    assert evaluate.main(["--run", "x", "--corpus", str(folder), "--split", "test"]) == 0
    found = upscale.perplexity(Bigrams(300), folder, context=7, split="test")
    assert (
        f"{found['bits_per_byte']:.4f} bits per byte, perplexity {found['perplexity']:.3f}" in capsys.readouterr().out
    )


def test_from_a_text_to_perplexity(tmp_path, tokenizer, capsys):
    """The three commands on one text, against the tokenizer, and each token's logits given only those before it."""
    known, file = tokenizer
    (tmp_path / "a.jsonl").write_bytes(documents.as_lines())
    place, run = tmp_path / "tokens", tmp_path / "run"
    asked = ["--from", tmp_path / "a.jsonl", "--held-out", documents.SHARE, "--tokenizer", file]
    assert prepare.main(["text", "--to", *map(str, [place, *asked])]) == 0
    vocabulary = known.get_vocab_size()
    train(run, "data.kind=corpus", f"data.corpora=[{{path: {place}}}]", f"model.vocabulary={vocabulary}")
    assert losses(run)[0] == pytest.approx(math.log2(vocabulary), abs=0.5) and losses(run)[-1] < losses(run)[0] - 1
    capsys.readouterr()
    assert evaluate.main(["--run", str(run), "--corpus", str(place)]) == 0
    shown = capsys.readouterr().out
    content = reference.splits(documents.DOCUMENTS, held_out=documents.SHARE)["validation"]
    ids = [[*known.encode(each.decode()).ids, known.token_to_id("</s>")] for each in content.split(b"\0")[:-1]]
    found = perplexity.measure(upscale.load(run), sum(ids, []), 16, content.replace(b"\0", b""))
    pattern = r"([\d.]+) bits per byte, perplexity ([\d.]+), ([\d.]+) .* bits per token"
    assert [float(each) for each in re.search(pattern, shown).groups()] == pytest.approx(found, abs=6e-4)


def test_a_tokenizer_that_does_not_fit(tmp_path, tokenizer):
    """No file of the package, too many tokens, no end, one document, other bytes: each before shards are written."""
    known, file = tokenizer
    (tmp_path / "a.jsonl").write_bytes(documents.as_lines())
    (tmp_path / "book").write_bytes(b"one text")
    (tmp_path / "other.json").write_text("{}")
    tree = json.loads(file.read_text())
    large = {"type": "WordLevel", "unk_token": "0", "vocab": {str(number): number for number in range(40_000)}}
    (tmp_path / "large.json").write_text(json.dumps({**tree, "model": large, "added_tokens": []}))
    small = {**large, "vocab": {"0": 0, "wort": 1}}
    (tmp_path / "small.json").write_text(json.dumps({**tree, "model": small, "added_tokens": []}))

    def refused(message, tokenizer, source="a.jsonl", **asked):
        with pytest.raises(UserError, match=message):
            documents.made(tmp_path / "to", tmp_path / source, tokenizer=str(tokenizer), **asked)
        assert not (tmp_path / "to").exists()

    refused("cannot be read: No such file", tmp_path / "none.json")
    refused("is no file of the package tokenizers", tmp_path / "other.json")
    refused("has 40,000 tokens; rows hold at most 32,768", tmp_path / "large.json")
    refused("has no token that ends a document", tmp_path / "small.json")
    refused("cut it with --documents blank or line", file, "book")
    refused("a tokenizer reads UTF-8 only", file, encoding="any")
