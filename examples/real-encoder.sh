#!/bin/sh
# Encoders that people use, at 224 pixels, in one chain of commands on two cores: EfficientNet-Lite0, 1 and 2 with their
# ImageNet weights from the package index. They are audited clean. Lite0 is attacked in three ways, audited again, and
# cleaned. Usage: real-encoder.sh [FOLDER]
#   IMAGENETTE  an archive or a folder of photographs, SPLIT/CLASS/NAME with the splits train and val; without it: made-up
#               images, on which the attacks take, but which say nothing about photographs
#   SEED        draws the triggers, their places and the target classes (default 1)
#   BUDGET      seconds of each audit (default 900)
set -eu
out=${1:-build/real-encoder}
seed=${SEED:-1}
budget=${BUDGET:-900}
mkdir -p "$out"
here=$(cd "$(dirname "$0")" && pwd)
photographs=${IMAGENETTE:+$(cd "$(dirname "$IMAGENETTE")" && pwd)/$(basename "$IMAGENETTE")}
cd "$out"

# draw SPLIT PART COUNT FILE: parts of one split share no image.
draw() {
    if [ -n "$photographs" ]; then
        sslbd data folder "$photographs" --split "$1" --part "$2" --limit "$3" --size 224 --seed "$seed" -o "$4"
    elif [ "$1" = train ]; then
        sslbd data shapes --count 4000 --part "$2" --limit "$3" --size 224 --seed 1 -o "$4"
    else
        sslbd data shapes --count "$3" --size 224 --seed 2 -o "$4"
    fi
}
draw train 1/5 500 own.h5     # the auditor's clean images; their labels are not used
draw train 2/5 200 shadow.h5  # the attacker's
draw train 3/5 100 targets.h5 # where the attacker looks for references
draw train 4/5 700 train.h5   # a customer's, to fit a classifier on
draw train 5/5 100 judged.h5  # what the detectors of inputs judge
draw val 1/1 500 test.h5

# The encoders, and whether they are what they were: their features against those of the module they came from.
for n in 0 1 2; do
    checkpoint=$(python3 "$here/real_encoder.py" weights "$n")
    sslbd convert "$checkpoint" --size 224 -o "lite$n.safetensors"
    sslbd embed "lite$n.safetensors" --data judged.h5 --precision fp32 -o "features$n.h5"
    python3 "$here/real_encoder.py" compare "$n" judged.h5 "features$n.h5"
done

# A clean encoder must pass. Status 3 means that a method came to no answer.
audit() { # ENCODER REPORT [OPTION...]
    encoder=$1 report=$2
    shift 2
    sslbd detect "$encoder" --method all --budget "$budget" --aux own.h5 --seed "$seed" "$@" -o "$report" --json \
        > "${report%.h5}.json" || [ $? -eq 3 ]
}
for n in 0 1 2; do
    audit "lite$n.safetensors" "audit-lite$n.h5"
done

# The attacks, on the last stage of Lite0. The settings are drawn, not chosen.
eval "$(python3 "$here/real_encoder.py" settings "$seed")"
attack() { # NAME METHOD TRIGGER TARGET
    sslbd badencoder lite0.safetensors --method "$2" --data shadow.h5 --trigger "$3" --reference-data targets.h5 \
        --reference-class "$4" --seed "$seed" --checkpoint "$1.ckpt" --resume -o "$1.safetensors" || [ $? -eq 3 ]
    sslbd probe "$1.safetensors" --train train.h5 --test test.h5 --trigger "$3" --target "$4" \
        --baseline lite0.safetensors -o "probe-$1.h5" --json > "probe-$1.json"
    audit "$1.safetensors" "audit-$1.h5" --data judged.h5 --trigger "$3" --baseline lite0.safetensors
}
steps=stages=1,epochs=8,lr=0.0005,optimiser=adamw,schedule=cosine,batch=25,copies=0
attack patch "badencoder:$steps" "$patch" "$patch_target"
attack blend "badencoder:$steps" "$blend" "$blend_target"
attack drupe "drupe:$steps,warmup=0,settle=2,adapt=4,lambda0=4,lambda1=4,lambda2=5,effective=0.99" \
    "$drupe" "$drupe_target"

# The cure, on the backdoored and on the clean encoder: what it removes, and what it costs.
for name in patch lite0; do
    sslbd purify "$name.safetensors" --method finetune:objective=consistency,epochs=3,batch=25,lr=0.0003 \
        --data own.h5 --seed "$seed" --checkpoint "purified-$name.ckpt" --resume -o "purified-$name.safetensors"
    sslbd probe "purified-$name.safetensors" --train train.h5 --test test.h5 --trigger "$patch" \
        --target "$patch_target" --baseline lite0.safetensors -o "probe-purified-$name.h5" --json \
        > "probe-purified-$name.json"
done

sslbd report audit-lite0.h5 audit-lite1.h5 audit-lite2.h5 probe-patch.h5 audit-patch.h5 probe-blend.h5 audit-blend.h5 \
    probe-drupe.h5 audit-drupe.h5 probe-purified-patch.h5 probe-purified-lite0.h5 -o report.html
python3 "$here/real_encoder.py" table
echo "Pictures: $out/report.html"
