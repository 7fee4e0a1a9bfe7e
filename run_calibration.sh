#!/usr/bin/env bash
# Calibration alone: from float weights to an integer ONNX file, without labels or gradients.
#
#     ./run_calibration.sh [classification|segmentation] [--runs FOLDER] [OPTIONS]
#
# Takes the float network that run_quantization_example.sh trains for that task, and trains it if it
# is not there. OPTIONS go to every run of references/edgeailite/scripts/train_*_main.py, such as
# --per_channel_q all; --quantize_method ptc_fx and --qconfig_type PRESET go to those that quantize,
# --ptq fast or --ptq best (see docs/post_training.md) and budgets of bits, such as --size_budget 0.7
# (docs/mixed_precision.md), to the calibration.
# Run it again: what is done is skipped, what was cut off is resumed.
set -euo pipefail
cd "$(dirname "$0")"
. tools/run_step.sh
. tools/main_job.sh
read_arguments "$@"
. tools/setup_env.sh
prepare_task
# The same for ImageNet: --img_resize 256 --img_crop 224 and the full-size network are defaults.
#   CLASSIFY="python references/edgeailite/scripts/train_classification_main.py"
#   IMAGENET="--data_path ./data/datasets/image_folder_classification --model_name mobilenetv2_tv_x1"
#   WEIGHTS=https://download.pytorch.org/models/mobilenet_v2-b0353104.pth
# Put the images into train/CLASS/ and val/CLASS/ of that folder.
# The same for Cityscapes: 384x768, DeepLabV3+Lite on MobileNetV2 are defaults.
#   SEGMENT="python references/edgeailite/scripts/train_segmentation_main.py"
#   CITY="--data_path ./data/datasets/cityscapes/data --output_size 1024 2048"

run_step float "1/4 train in float" "${FLOAT[@]}"
# ImageNet: nothing to do, WEIGHTS are published. Cityscapes: see run_quantization_example.sh.

run_step float_validation "2/4 validate the float network" \
    --phase validation --pretrained "$RUNS/float/checkpoint.pth"
# ImageNet: $CLASSIFY $IMAGENET --phase validation --pretrained $WEIGHTS

run_step calibrated "3/4 calibrate it" \
    --phase calibration --quantize True --pretrained "$RUNS/float/checkpoint.pth" \
    "${CALIBRATED[@]}"
# ImageNet: $CLASSIFY $IMAGENET --phase calibration --quantize True --pretrained $WEIGHTS \
#       --epochs 1 --epoch_size 0.1 --batch_size 64
# Another network: --model_name resnet50_x1, with the weights that belong to it
#   (https://download.pytorch.org/models/resnet50-19c8e357.pth).
# Cityscapes: $SEGMENT $CITY --phase calibration --quantize True --epochs 1 \
#       --pretrained FLOAT/checkpoint.pth

run_step calibrated_validation "4/4 validate and verify the calibrated network" \
    --phase validation --quantize True --pretrained "$RUNS/calibrated/checkpoint.pth" --verify True
# ImageNet: $CLASSIFY $IMAGENET --phase validation --quantize True --verify True \
#       --pretrained RUN_FOLDER/checkpoint.pth

"$PYTHON" references/edgeailite/scripts/summarize_runs.py "$RUNS"
