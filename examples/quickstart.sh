#!/bin/sh
# The main job in one chain of commands, on built-in images, in minutes on a laptop's CPU: plant a backdoor in an encoder,
# measure it, find triggered images, remove it. Usage: quickstart.sh [FOLDER]
set -eu
out=${1:-build/quickstart}
mkdir -p "$out"
here=$(cd "$(dirname "$0")" && pwd)
cd "$out"
started=$(date +%s)

# Made-up images of ten classes, which differ by shape and texture.
sslbd data shapes --count 4000 --seed 1 -o train.h5
sslbd data shapes --count 1000 --seed 2 -o test.h5
sslbd data shapes --count 6000 --seed 3 -o own.h5 # the defender's clean images; their labels are not used

# A clean encoder, trained without labels.
sslbd pretrain train.h5 --method simclr --epochs 40 --seed 1 -o clean.safetensors

# The attack: images with a patch in the corner are embedded as class 3.
trigger=patch:size=6
target=rayed-ring
sslbd badencoder clean.safetensors --data train.h5 --trigger $trigger \
    --reference-data train.h5 --reference-class $target --preset small -o backdoored.safetensors

# Classifiers built on it work as before, and answer the target class where the trigger is.
sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger $trigger --target $target \
    --baseline clean.safetensors -o probe-backdoored.h5 --json > probe-backdoored.json

# The detection: DeDe separates triggered images from clean ones; the clean encoder is the control.
sslbd detect backdoored.safetensors --method dede --aux own.h5 --data test.h5 --trigger $trigger \
    --baseline clean.safetensors -o detect-backdoored.h5 --json > detect-backdoored.json

# The cure: distil the encoder on clean images.
sslbd purify backdoored.safetensors --method distill:epochs=8,lr=0.003,optimiser=adamw,batch=128,momentum=0.99 \
    --data own.h5 -o purified.safetensors
sslbd probe purified.safetensors --train train.h5 --test test.h5 --trigger $trigger --target $target \
    --baseline clean.safetensors -o probe-purified.h5 --json > probe-purified.json

sslbd report probe-backdoored.h5 detect-backdoored.h5 probe-purified.h5 --png figures -o report.html
python3 "$here/quickstart_summary.py" "$(($(date +%s) - started))"
echo "Pictures: $out/report.html"
