"""The new sources in the training program: a vocabulary beyond bytes that resumes, and mistakes found at the start."""

import torch
from safetensors.torch import load_file

from tests.test_train import losses, train

PAPER_NCA = [
    "model.vocabulary=10002",
    "model.context=48",
    "data.sources=[{kind: nca, colours: 10, grid: 4, delimiters: true, permute: false}, {kind: lstm, hidden: 8}]",
]


def test_a_vocabulary_beyond_bytes_trains_and_resumes(tmp_path):
    """Against the uninterrupted run: equal losses; the lanes in the checkpoint are int16."""
    train(tmp_path / "straight", *PAPER_NCA, "run.steps=4")
    for steps in (2, 4):
        train(tmp_path / "parted", *PAPER_NCA, f"run.steps={steps}")
    assert losses(tmp_path / "parted") == losses(tmp_path / "straight")
    assert all(12 < bits < 15 for bits in losses(tmp_path / "straight"))
    (lanes,) = (tmp_path / "parted/checkpoints/step-00000004").glob("lanes-*.safetensors")
    assert {buffer.dtype for name, buffer in load_file(lanes).items() if "origins" not in name} == {torch.int16}


def test_an_impossible_band_ends_the_command_before_training(tmp_path):
    """Against exit code 2 and one message without a traceback."""
    output = train(tmp_path / "run", "data.sources=[{kind: nca, grid: 4, band: [1.5, 1.9]}]", expect=2)
    assert "band [1.5, 1.9] accepts 0.0%" in output and "Traceback" not in output
    assert not (tmp_path / "run/metrics.jsonl").exists()
