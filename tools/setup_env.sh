# Make the virtual environment .venv with what requirements.txt pins. To be sourced:
#
#     . tools/setup_env.sh
#
# Done already: nothing happens. Sets PYTHON to the environment's interpreter.
# EDGEAILITE_PYTHON chooses the interpreter that makes the environment.

setup_env() {
    local root base stamp wanted started
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    base="${EDGEAILITE_PYTHON:-python3}"
    PYTHON="$root/.venv/bin/python"
    stamp="$root/.venv/requirements.stamp"
    wanted="$(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum)"
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    if ! command -v "$base" >/dev/null; then
        echo "error: there is no '$base'. Install Python 3.11 or newer, or name one:" \
            "EDGEAILITE_PYTHON=/path/to/python3 $0" >&2
        return 1
    fi
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: '$base' is $("$base" --version 2>&1); the pinned packages need Python 3.11" \
            "or newer. Name another: EDGEAILITE_PYTHON=/path/to/python3 $0" >&2
        return 1
    fi
    started=$SECONDS
    echo "== making .venv with $("$base" --version) (takes some minutes, once)"
    "$base" -m venv "$root/.venv" &&
        install_step "torch" "$(grep '^torch==' "$root/requirements.txt")" &&
        # torchvision's wheel asks for a CUDA build of torch; ours is there already.
        install_step "torchvision" --no-deps "$(grep '^torchvision==' "$root/requirements.txt")" &&
        install_rest &&
        install_step "edgeailite" --no-deps --no-build-isolation -e "$root" || {
        echo "error: the installation failed (see above); run the script again to continue it" >&2
        return 1
    }
    echo "$wanted" >"$stamp"
    echo "== .venv is ready after $((SECONDS - started)) s"
}

install_step() {
    local what="$1"
    shift
    echo "== installing $what"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"
}

install_rest() {
    local rest status
    rest="$(mktemp)"
    grep -v '^torchvision==' "$root/requirements.txt" >"$rest"
    # setuptools builds this package; a fresh venv of Python 3.12 or newer has none.
    install_step "the other requirements" -r "$rest" "setuptools>=77"
    status=$?
    rm -f "$rest"
    return $status
}

setup_env
