#!/usr/bin/env bash
# From a float network to an integer ONNX file whose every output equals PyTorch's.
#
#     ./run_quantization_example.sh [classification] [--runs FOLDER] [OPTIONS]
#
# Trains a small MobileNetV2 on handwritten digits in float, calibrates it, trains it
# quantization-aware, validates each, exports ONNX and compares all outputs value by value. About
# four minutes on two CPU cores once .venv is made. OPTIONS go to every run of
# references/edgeailite/scripts/train_classification_main.py, such as --gpus 0; --quantize_method
# qat_fx and --qconfig_type PRESET go to those that quantize.
# Run it again: what is done is skipped, what was cut off is resumed.
set -euo pipefail
cd "$(dirname "$0")"
. tools/run_step.sh
read_arguments data/checkpoints/quantization_example "$@"
case " ${QUANTIZED[*]-}" in
    *[\ =]ptc_fx*)
        echo "error: ptc_fx calibrates and does not train: run it with ./run_calibration.sh, or" \
            "take --quantize_method qat_fx" >&2
        exit 2
        ;;
esac
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

run_step float "1/6 train in float" --epochs 16 --lr 0.05
# ImageNet: nothing to train, WEIGHTS are published. From scratch, on two GPUs:
#   python $SCRIPT $IMAGENET --epochs 150 --batch_size 512 --lr 0.1 --gpus 0 1

run_step float_validation "2/6 validate the float network" \
    --phase validation --pretrained "$RUNS/float/checkpoint.pth"
# ImageNet: python $SCRIPT $IMAGENET --phase validation --pretrained $WEIGHTS

run_step calibrated "3/6 calibrate it: images only, no labels, no gradients" \
    --phase calibration --quantize True --pretrained "$RUNS/float/checkpoint.pth" --epochs 1
# ImageNet: a tenth of the training images is plenty.
#   python $SCRIPT $IMAGENET --phase calibration --quantize True --pretrained $WEIGHTS \
#       --epochs 1 --epoch_size 0.1 --batch_size 64

run_step calibrated_validation "4/6 validate and verify the calibrated network" \
    --phase validation --quantize True --pretrained "$RUNS/calibrated/checkpoint.pth" --verify True
# ImageNet: python $SCRIPT $IMAGENET --phase validation --quantize True --verify True \
#       --pretrained RUN_FOLDER/checkpoint.pth

run_step qat "5/6 train it quantization-aware" \
    --phase training --quantize True --pretrained "$RUNS/float/checkpoint.pth" \
    --epochs 5 --lr 0.005
# ImageNet: a small learning rate, and part of the images per epoch.
#   python $SCRIPT $IMAGENET --quantize True --pretrained $WEIGHTS \
#       --epochs 50 --epoch_size 0.1 --lr 1e-5 --batch_size 64

run_step qat_validation "6/6 validate and verify the trained network" \
    --phase validation --quantize True --pretrained "$RUNS/qat/checkpoint.pth" --verify True
# ImageNet: as in step 4.

"$PYTHON" references/edgeailite/scripts/summarize_runs.py "$RUNS"
# ImageNet: python references/edgeailite/scripts/summarize_runs.py FOLDER_OF_THE_RUN_FOLDERS
