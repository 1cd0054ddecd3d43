#!/usr/bin/env bash
# From a fresh clone to a trained, measured model: set up, look at the data, pre-train with DeepSpeed, evaluate, report.
# About three minutes of training on two CPU cores; uses the GPUs of this machine when there are some.
source "$(dirname "$0")/environment.sh"
make_environment

run=runs/quickstart
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=$((gpus > 0 ? gpus : 2))
ranks=$((ranks > 8 ? 8 : ranks)) # configs/smoke.yaml has 8 lanes
if [ "$gpus" -eq 0 ]; then
    export DS_ACCELERATOR=cpu
    echo "== no GPU here: training $ranks ranks on the CPU"
else
    echo "== training on $ranks GPUs"
fi

echo "== what the model will learn from: rows that random LSTMs wrote"
upscale sample --config configs/smoke.yaml --rows 6

echo "== pre-training on $ranks ranks (run directory $run; remove it to start over)"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
deepspeed --num_gpus "$ranks" --master_port "$port" upscale/train.py --config configs/smoke.yaml run.dir="$run" run.name=quickstart

echo "== measuring the newest checkpoint, and drawing the curves"
upscale evaluate --run "$run" --slices 600
upscale report "$run" --to "$run/report"

cat <<END

What the numbers mean: the model has never seen text. "model" is how many bits it needs for one character of each text
or task when it sees the characters before it; 8 is guessing, so everything below 8 was learned from random programs.
"Markov" needs no training: it counts inside the same window. The paper trains a thousand times longer: configs/w384.yaml.

  report      $run/report/index.html
  curves      $run/report/*.png, from $run/metrics.jsonl and $run/evaluations.jsonl
  checkpoints $run/checkpoints/
END
