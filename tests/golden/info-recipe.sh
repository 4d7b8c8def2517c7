#!/bin/sh
# Rebuilds the artefact by the commands in its history.
set -eu
sslbd data --count 60 --seed 0 --size 16 shapes -o rebuilt.1.h5
sslbd pretrain --epochs 2 --method simclr:temperature=0.2,hidden=0,out=128 --seed 0 --device cpu rebuilt.1.h5 -o rebuilt.safetensors
