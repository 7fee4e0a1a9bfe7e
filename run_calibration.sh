#!/usr/bin/env bash
# Calibration alone: from float weights to an integer ONNX file, without labels or gradients.
#
#     ./run_calibration.sh [classification] [--runs FOLDER] [OPTIONS]
#
# Takes the float network that run_quantization_example.sh trains on handwritten digits, and trains
# it if it is not there. OPTIONS go to every run of
# references/edgeailite/scripts/train_classification_main.py, such as --per_channel_q all;
# --quantize_method ptc_fx and --qconfig_type PRESET go to those that quantize.
# Run it again: what is done is skipped, what was cut off is resumed.
set -euo pipefail
cd "$(dirname "$0")"
. tools/run_step.sh
read_arguments data/checkpoints/quantization_example "$@"
. tools/setup_env.sh
# Layers as small as these compute faster on one thread than on several that wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

SCRIPT=references/edgeailite/scripts/train_classification_main.py
DATA=data/datasets/digits
COMMON=(
    --dataset_name image_folder_classification --data_path "$DATA"
    --img_resize 32 --img_crop 32 --rand_scale 0.7 1.0 --rand_flip False --workers 0
    --model_name mobilenetv2_tv_x0p5 --strides 2 1 2 2 1 --batch_size 32 --evaluate_start False
)
# The same for ImageNet: --img_resize 256 --img_crop 224 and the full-size network are defaults.
#   IMAGENET="--data_path ./data/datasets/image_folder_classification --model_name mobilenetv2_tv_x1"
#   WEIGHTS=https://download.pytorch.org/models/mobilenet_v2-b0353104.pth

"$PYTHON" data/make_digits.py --output "$DATA"
# ImageNet: put the images into train/CLASS/ and val/CLASS/ of the folder above.

run_step float "1/4 train in float" --epochs 16 --lr 0.05
# ImageNet: nothing to do, WEIGHTS are published.

run_step float_validation "2/4 validate the float network" \
    --phase validation --pretrained "$RUNS/float/checkpoint.pth"
# ImageNet: python $SCRIPT $IMAGENET --phase validation --pretrained $WEIGHTS

run_step calibrated "3/4 calibrate it" \
    --phase calibration --quantize True --pretrained "$RUNS/float/checkpoint.pth" --epochs 1
# ImageNet: python $SCRIPT $IMAGENET --phase calibration --quantize True --pretrained $WEIGHTS \
#       --epochs 1 --epoch_size 0.1 --batch_size 64
# Another network: --model_name resnet50_x1, with the weights that belong to it
#   (https://download.pytorch.org/models/resnet50-19c8e357.pth).

run_step calibrated_validation "4/4 validate and verify the calibrated network" \
    --phase validation --quantize True --pretrained "$RUNS/calibrated/checkpoint.pth" --verify True
# ImageNet: python $SCRIPT $IMAGENET --phase validation --quantize True --verify True \
#       --pretrained RUN_FOLDER/checkpoint.pth

"$PYTHON" references/edgeailite/scripts/summarize_runs.py "$RUNS"
