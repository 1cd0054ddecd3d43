"""Hugging Face's Trainer on rows of Upscale, with a GPT-2 of bytes.

    python docs/own_loop/huggingface_trainer.py [--steps 100] [--folder runs/trainer]

Run it again with more steps, and the Trainer goes on from its newest checkpoint: it draws the rows again that it has
seen, which needs no training, and trains on the next one.
"""

import argparse
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import upscale
from upscale.evaluation import table

CONTEXT, BATCH = 128, 8


def build(width: int = 64, depth: int = 2) -> torch.nn.Module:
    """A GPT-2 that sees context + 1 bytes, since it shifts the labels itself."""
    size = {"n_embd": width, "n_layer": depth, "n_head": 2, "n_positions": CONTEXT + 1, "vocab_size": 256}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0, use_cache=False))


def train(folder: Path, steps: int, save_steps: int = 50) -> Trainer:
    """Train until so many steps in all, from the folder's newest checkpoint if there is one."""
    # The Trainer divides the batches among its processes by itself: the rows are those of a world of one.
    overrides = [f"model.context={CONTEXT}", "data.lanes=16"]
    rows = upscale.rows(["lstm"], overrides, rank=0, world_size=1, form="labels")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=save_steps,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    torch.manual_seed(0)
    trainer = Trainer(build(), arguments, train_dataset=rows)
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=found)
    return trainer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="in all")
    parser.add_argument("--folder", type=Path, default=Path("runs/trainer"), help="for checkpoints")
    parser.add_argument("--slices", type=int, default=200, help="of each task")
    options = parser.parse_args(arguments)
    trainer = train(options.folder, options.steps)
    print(table(upscale.evaluate(trainer.model, ["dyck", "wp"], context=CONTEXT, slices=options.slices)))


if __name__ == "__main__":
    main()
