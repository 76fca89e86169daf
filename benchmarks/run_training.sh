#!/usr/bin/env bash
# Fine-tuning under every method and keep rate on Fashion-MNIST garments composited on photographs: our own Table 1, and
# whether low entropy marks the garments.
#
#   benchmarks/run_training.sh [FOLDER]
#
# Needs `pip install '.[demo,search]'` and Fashion-MNIST's IDX files (Debian's package dataset-fashion-mnist, or ROOT=…).
# First DINOv2 ViT-S/14 at 112 px is fine-tuned dense; then each setting is fine-tuned from there, dense among them.
# Everything is written into FOLDER, by default benchmarks/results/fashion-mnist-photos; started again, it continues.
#
# The full grid is for a GPU. A part of it, by environment: DENSE_IMAGES=4000 DENSE_EPOCHS=2 TRAIN_IMAGES=600 EPOCHS=1
# TEST_IMAGES=1000 METHODS="dense,random,evit,shannon" KEEP_RATES="0.7,0.5,0.3" SEEDS="0" BATCH=24 CHECK_IMAGES=120
# DEVICE="cpu". A limit is empty for all images.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export OMP_WAIT_POLICY=PASSIVE

folder="${1:-$here/results/fashion-mnist-photos}"
device="${DEVICE:-auto}"
batch="${BATCH:-64}"
methods="${METHODS:-dense,random,evit,renyi-0.5,shannon,renyi-2,renyi-inf}"
data=(--data fashion-mnist-photos ${ROOT:+--root "$ROOT"})
model=(--model vit_small_patch14_dinov2)
test_limit=(${TEST_IMAGES:+--test-limit "$TEST_IMAGES"})
recipe=(--drop-path 0 --set image_size=112 --set layer_decay=0.75 --set mixup=0 --set cutmix=0 --set random_erasing=0
    --set 'crop_scale=[0.7,1.0]' --device "$device" --workers "${WORKERS:-0}")

entropatch finetune "${data[@]}" "${model[@]}" "${recipe[@]}" --weights bundled --method dense --output "$folder/dense" \
    ${DENSE_IMAGES:+--train-limit "$DENSE_IMAGES"} "${test_limit[@]}" --set batch_size=32 --set learning_rate=3.2e-3 \
    --set epochs="${DENSE_EPOCHS:-5}" --no-tensorboard

entropatch search "${data[@]}" "${model[@]}" "${recipe[@]}" --weights "$folder/dense/final.safetensors" \
    --scope finetuned --methods "$methods" --keep-rates "${KEEP_RATES:-0.9,0.8,0.7,0.6,0.5,0.4,0.3}" \
    --seeds "${SEEDS:-0,1,2}" ${TRAIN_IMAGES:+--train-limit "$TRAIN_IMAGES"} "${test_limit[@]}" \
    --set batch_size="$batch" --set learning_rate=2e-3 --set epochs="${EPOCHS:-3}" --repeats 5 --output "$folder/search"

entropatch check "${data[@]}" "${model[@]}" --weights "$folder/dense/final.safetensors" --image-size 112 \
    --orders 0.5,1,2,inf --limit "${CHECK_IMAGES:-1000}" --output "$folder/check"
