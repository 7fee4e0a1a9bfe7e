# One step of a run_*.sh script: skipped when done, resumed when cut off. To be sourced after
# tools/setup_env.sh; SCRIPT, RUNS, COMMON=(options of all steps), EXTRA=(the user's options),
# QUANTIZED=(those of them that only steps which quantize take), CALIBRATION=(those that only a
# calibration takes) and TRAINING=(those that only quantized training takes) are to be set.

# run_step NAME WHAT [OPTIONS...]: one run of SCRIPT in the folder RUNS/NAME.
run_step() {
    local name="$1" what="$2" folder="$RUNS/$1" started=$SECONDS resume=() quantized=()
    shift 2
    case " $* " in
        *" --quantize True "*) quantized=(${QUANTIZED[@]+"${QUANTIZED[@]}"}) ;;
    esac
    case " $* " in
        *" --phase calibration "*) quantized+=(${CALIBRATION[@]+"${CALIBRATION[@]}"}) ;;
        *" --phase training --quantize True "*) quantized+=(${TRAINING[@]+"${TRAINING[@]}"}) ;;
    esac
    if [ -f "$folder/result.json" ]; then
        echo "== $what: done already (delete $folder to do it again)"
        return 0
    fi
    echo "== $what"
    if [ -f "$folder/checkpoint.pth" ]; then
        echo "== it was cut off: resuming from $folder"
        resume=(--resume "$folder")
    fi
    "$PYTHON" "$SCRIPT" "${COMMON[@]}" "$@" --save_path "$folder" \
        ${resume[@]+"${resume[@]}"} ${quantized[@]+"${quantized[@]}"} ${EXTRA[@]+"${EXTRA[@]}"}
    echo "== $what: $((SECONDS - started)) s"
}

# read_arguments "$@": sets TASK, RUNS, EXTRA, QUANTIZED, CALIBRATION and TRAINING. Each task, and
# each set of options for quantization, has a default folder of its own.
read_arguments() {
    TASK=classification
    RUNS=
    EXTRA=()
    QUANTIZED=()
    CALIBRATION=()
    TRAINING=()
    local default_runs
    if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
        TASK="$1"
        shift
    fi
    case "$TASK" in
        classification) default_runs=data/checkpoints/quantization_example ;;
        segmentation) default_runs=data/checkpoints/segmentation_example ;;
        *)
            echo "error: unknown task '$TASK'; there are: classification, segmentation" >&2
            return 2
            ;;
    esac
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help)
                sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
            --runs)
                RUNS="${2:?--runs needs a folder}"
                shift 2
                ;;
            --quantize[_-]method | --qconfig[_-]type)
                QUANTIZED+=("$1" "${2:?$1 needs a value}")
                default_runs+="_$2"
                shift 2
                ;;
            --bit[_-]widths)
                QUANTIZED+=("$1" "${2:?$1 needs a value}")
                default_runs+="_bit_widths"
                shift 2
                ;;
            --ptq)
                CALIBRATION+=("$1" "${2:?$1 needs a value}")
                default_runs+="_$2"
                shift 2
                while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
                    CALIBRATION+=("$1")
                    default_runs+="_$1"
                    shift
                done
                ;;
            --size[_-]budget | --mac[_-]budget | --accuracy[_-]budget)
                CALIBRATION+=("$1" "${2:?$1 needs a value}")
                default_runs+="_${1#--}_$2"
                shift 2
                ;;
            --ptq=* | --size[_-]budget=* | --mac[_-]budget=* | --accuracy[_-]budget=*)
                CALIBRATION+=("$1")
                default_runs+="_${1#*=}"
                shift
                ;;
            --learned[_-]ranges | --damping | --distillation | --distillation[_-]temperature | \
                --reestimate[_-]bn | --freeze[_-]midway)
                TRAINING+=("$1" "${2:?$1 needs a value}")
                default_runs+="_${1#--}_$2"
                shift 2
                ;;
            --learned[_-]ranges=* | --damping=* | --distillation=* | \
                --distillation[_-]temperature=* | --reestimate[_-]bn=* | --freeze[_-]midway=*)
                TRAINING+=("$1")
                default_runs+="_${1#--}"
                shift
                ;;
            --quantize[_-]method=* | --qconfig[_-]type=*)
                QUANTIZED+=("$1")
                default_runs+="_${1#*=}"
                shift
                ;;
            *)
                EXTRA+=("$1")
                shift
                ;;
        esac
    done
    RUNS="${RUNS:-$default_runs}"
}
