# What the main jobs of both run_*.sh scripts have in common, per task. To be sourced after
# tools/run_step.sh and tools/setup_env.sh, with TASK set.

# Sets SCRIPT, COMMON (options of all steps), FLOAT, CALIBRATED and QAT (options of those trainings),
# and makes the data, if it is not there.
prepare_task() {
    local data
    CALIBRATED=(--epochs 1)
    if [ "$TASK" = classification ]; then
        SCRIPT=references/edgeailite/scripts/train_classification_main.py
        data=data/datasets/digits
        COMMON=(
            --dataset_name image_folder_classification --data_path "$data"
            --img_resize 32 --img_crop 32 --rand_scale 0.7 1.0 --rand_flip False --workers 0
            --model_name mobilenetv2_tv_x0p5 --strides 2 1 2 2 1 --batch_size 32
            --evaluate_start False
        )
        FLOAT=(--epochs 16 --lr 0.05)
        QAT=(--epochs 5 --lr 0.005)
        # Layers as small as these compute faster on one thread than on several.
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
        "$PYTHON" data/make_digits.py --output "$data"
    else
        SCRIPT=references/edgeailite/scripts/train_segmentation_main.py
        data=data/datasets/street_scenes
        COMMON=(
            --dataset_name cityscapes_segmentation --data_path "$data" --img_resize 96 192
            --rand_scale 0.75 1.5 --workers 1 --batch_size 8 --scheduler cosine
            --model_name deeplabv3plus_mobilenetv2_tv_edgeailite --evaluate_start False
        )
        FLOAT=(--epochs 12 --lr 2e-3)
        QAT=(--epochs 3 --lr 1e-4)
        "$PYTHON" data/make_street_scenes.py --output "$data"
    fi
}
