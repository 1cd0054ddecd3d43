#!/usr/bin/env bash
# From a fresh clone to a trained, measured and fine-tuned model: set up, look at the data, pre-train with DeepSpeed,
# evaluate, report, then fine-tune on text from the pre-trained weights and from scratch, and compare.
# Eight minutes on two fast CPU cores, the set-up included; needs Python 3.10 and a C compiler; uses this machine's GPUs.
source "$(dirname "$0")/environment.sh"
read -ra compilers <<<"${CC:-cc gcc clang}" # CC may hold options too
command -v "${compilers[@]}" >/dev/null || {
    echo "error: there is no C compiler, which one of the sources needs: on Debian and Ubuntu, apt-get install gcc" >&2
    exit 2
}
make_environment

run=runs/quickstart
# Ends here with the reason where there are GPUs that PyTorch cannot use.
device=$(python -c 'from upscale.console import command; from upscale.machine import accelerator as a; command.run(lambda _: print(a.device_type()) or 0)')
gpus=0
[ "$device" = cpu ] || gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=$((gpus > 0 ? gpus : 2))
ranks=$((ranks > 8 ? 8 : ranks)) # configs/smoke.yaml has 8 lanes
if [ "$gpus" -eq 0 ]; then
    export DS_ACCELERATOR=cpu
    echo "== no GPU here: training $ranks ranks on the CPU"
else
    echo "== training on $ranks GPUs"
fi

echo "== what the model will learn from: rows that random LSTMs, automata and Turing machines wrote"
upscale sample --config configs/smoke.yaml --rows 6

echo "== pre-training on $ranks ranks, five minutes at most (run directory $run; remove it to start over)"
train() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    deepspeed --num_gpus "$ranks" --master_port "$port" upscale/train.py "$@"
}
train --config configs/smoke.yaml run.dir="$run" run.name=quickstart run.minutes=5

echo "== measuring the newest checkpoint, and drawing the curves"
upscale evaluate --run "$run" --slices 600
upscale report "$run" --to "$run/report"

corpus=corpora/wp_excerpt
echo "== fine-tuning on $corpus: the first 90 % of the Wikipedia excerpt that ships with the package are trained on, the"
echo "   next 5 % are wp in what follows; from the pre-trained weights, then from scratch, with nothing else changed"
[ -f "$corpus/index.json" ] || upscale prepare wp --from upscale/evaluation/texts/wp.xz --to "$corpus"
train --config configs/finetune_smoke.yaml run.dir="${run}_pretrained" run.name=pretrained init.from="$run"
train --config configs/finetune_smoke.yaml run.dir="${run}_scratch" run.name=scratch

echo "== what pre-training was worth"
upscale report "${run}_pretrained" "${run}_scratch" --to "$run/comparison"

cat <<END

What the numbers mean: the model has never seen text. "model" is how many bits it needs for one character of each text
or task when it sees the characters before it; 8 is guessing, so everything below 8 was learned from random programs.
"Markov" needs no training: it counts inside the same window. The paper trains a thousand times longer: configs/w384.yaml.

  report      $run/report/index.html, and of the fine-tunings $run/comparison/index.html
  curves      $run/report/*.png, from $run/metrics.jsonl and $run/evaluations.jsonl
  checkpoints $run/checkpoints/
END
