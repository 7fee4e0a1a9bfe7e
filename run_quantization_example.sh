#!/usr/bin/env bash
# From a float network to an integer ONNX file whose every output equals PyTorch's.
#
#     ./run_quantization_example.sh [classification|segmentation] [--runs FOLDER] [OPTIONS]
#
# Trains a small network in float, calibrates it, trains it quantization-aware, validates each,
# exports ONNX and compares all outputs value by value. Once .venv is made, on two CPU cores:
#   classification  MobileNetV2 on handwritten digits, about four minutes
#   segmentation    DeepLabV3+Lite on synthetic street scenes, about seven minutes; ends with a
#                   picture of float and quantized predictions
# OPTIONS go to every run of references/edgeailite/scripts/train_*_main.py, such as --gpus 0;
# --quantize_method qat_fx, --qconfig_type PRESET and --bit_widths FILE go to those that quantize,
# --ptq METHODS and budgets of bits to the calibration, --learned_ranges, --damping, --distillation
# and the like (docs/low_bit_training.md) to the quantized training.
# Run it again: what is done is skipped, what was cut off is resumed.
set -euo pipefail
cd "$(dirname "$0")"
. tools/run_step.sh
. tools/main_job.sh
read_arguments "$@"
case " ${QUANTIZED[*]-}" in
    *[\ =]ptc_fx*)
        echo "error: ptc_fx calibrates and does not train: run it with ./run_calibration.sh, or" \
            "take --quantize_method qat_fx" >&2
        exit 2
        ;;
esac
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
# Put leftImg8bit/ and gtFine/ into that folder.

run_step float "1/6 train in float" "${FLOAT[@]}"
# ImageNet: nothing to train, WEIGHTS are published. From scratch, on two GPUs:
#   $CLASSIFY $IMAGENET --epochs 150 --batch_size 512 --lr 0.1 --gpus 0 1
# Cityscapes, the encoder from WEIGHTS:
#   $SEGMENT $CITY --pretrained $WEIGHTS --gpus 0 1

run_step float_validation "2/6 validate the float network" \
    --phase validation --pretrained "$RUNS/float/checkpoint.pth"
# ImageNet: $CLASSIFY $IMAGENET --phase validation --pretrained $WEIGHTS
# Cityscapes: $SEGMENT $CITY --phase validation --pretrained RUN_FOLDER/checkpoint.pth

run_step calibrated "3/6 calibrate it: images only, no labels, no gradients" \
    --phase calibration --quantize True --pretrained "$RUNS/float/checkpoint.pth" \
    "${CALIBRATED[@]}"
# ImageNet: a tenth of the training images is plenty.
#   $CLASSIFY $IMAGENET --phase calibration --quantize True --pretrained $WEIGHTS \
#       --epochs 1 --epoch_size 0.1 --batch_size 64
# Cityscapes:
#   $SEGMENT $CITY --phase calibration --quantize True --pretrained FLOAT/checkpoint.pth --epochs 1

run_step calibrated_validation "4/6 validate and verify the calibrated network" \
    --phase validation --quantize True --pretrained "$RUNS/calibrated/checkpoint.pth" --verify True
# ImageNet: $CLASSIFY $IMAGENET --phase validation --quantize True --verify True \
#       --pretrained RUN_FOLDER/checkpoint.pth
# Cityscapes: $SEGMENT $CITY and the same options, on part of the images: --epoch_size_val 20

run_step qat "5/6 train it quantization-aware" \
    --phase training --quantize True --pretrained "$RUNS/float/checkpoint.pth" "${QAT[@]}"
# ImageNet: a small learning rate, and part of the images per epoch.
#   $CLASSIFY $IMAGENET --quantize True --pretrained $WEIGHTS \
#       --epochs 50 --epoch_size 0.1 --lr 1e-5 --batch_size 64
# Cityscapes:
#   $SEGMENT $CITY --quantize True --pretrained FLOAT/checkpoint.pth --epochs 50 --lr 1e-5 \
#       --batch_size 6

run_step qat_validation "6/6 validate and verify the trained network" \
    --phase validation --quantize True --pretrained "$RUNS/qat/checkpoint.pth" --verify True
# As in step 4.

"$PYTHON" references/edgeailite/scripts/summarize_runs.py "$RUNS"
# Of runs of your own: python references/edgeailite/scripts/summarize_runs.py FOLDER_OF_RUN_FOLDERS
