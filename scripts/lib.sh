# shellcheck shell=bash
# Shared by the scripts beside it; sourced, not run. Sets REPO and VENV.
#
# ensure_venv [EXTRAS]   .venv with the package (editable) and its extras, made or brought
#                        up to date only when pyproject.toml says something new
# ensure_packages NAME.. Debian packages, by apt-get, only those that are missing

set -euo pipefail

REPO=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
VENV=$REPO/.venv

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# Run a command as root; false where there is no way to.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have_sudo; then
        sudo "$@"
    else
        return 1
    fi
}

# Whether sudo works, asking for a password only where someone can type one.
have_sudo() {
    command -v sudo >/dev/null || return 1
    sudo -n true 2>/dev/null || { [ -t 0 ] && [ -t 2 ] && sudo -v; }
}

# Show a command's output only if it fails.
quietly() {
    local output
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output" | tail -n 30 >&2
        return 1
    fi
}

ensure_packages() {
    command -v dpkg-query >/dev/null || { say "no Debian system: install by hand: $*"; return 1; }
    local package missing=()
    for package; do
        # shellcheck disable=SC2016
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] && ! have_sudo; then
        say "not installed, and no root to install them: ${missing[*]}"
        return 1
    fi
    say "installing ${missing[*]}"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
            --no-install-recommends "${missing[@]}"
}

# The interpreter for the virtual environment: the system's own first, which every user
# can reach and which stays when a version manager's goes.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# The same, installed where there is none: only root does that without being asked.
ensure_python() {
    find_python && return
    if [ "$(id -u)" -eq 0 ] && ensure_packages python3 >&2 && find_python; then
        return
    fi
    say "needs Python 3.11 or newer: apt-get install python3"
    return 1
}

is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

ensure_venv() {
    local extras=${1:-}
    if ! venv_fits "$extras" && ! [ -w "$REPO" ]; then
        VENV=${XDG_CACHE_HOME:-$HOME/.cache}/lamina/venv
    fi
    venv_fits "$extras" && return
    mkdir -p "$(dirname "$VENV")"
    exec 9>"$VENV.lock"
    flock 9
    venv_fits "$extras" || make_venv "$extras" || die "could not set up $VENV"
    exec 9>&-
}

# A virtual environment fits if it was completed for these requirements and at least these extras.
venv_fits() {
    local hash='' have=''
    [ -x "$VENV/bin/python" ] && [ -r "$VENV/lamina-stamp" ] || return 1
    read -r hash have <"$VENV/lamina-stamp" || true
    [ "$hash" = "$(requirements_hash)" ] && { [ -z "$1" ] || [ "$have" = "$1" ]; }
}

requirements_hash() {
    { printf '%s\n' "$REPO"; cat "$REPO/pyproject.toml"; } | sha256sum | cut -d' ' -f1
}

make_venv() {
    local extras=$1 have='' start=$SECONDS
    say "setting up $VENV (only needed once)"
    # An update keeps the extras that are there.
    if [ -z "$extras" ] && [ -r "$VENV/lamina-stamp" ]; then
        read -r _ have <"$VENV/lamina-stamp" || true
        extras=$have
    fi
    rm -f "$VENV/lamina-stamp"
    if ! { use_uv && make_with uv_install "$extras"; }; then
        make_with pip_install "$extras" || return 1
    fi
    printf '%s %s\n' "$(requirements_hash)" "$extras" >"$VENV/lamina-stamp"
    say "done in $((SECONDS - start)) s"
}

make_with() {
    "$1" "$REPO${2:+[$2]}"
}

# uv does not read pip's configuration, so a machine that has one (a mirror, a certificate) uses pip.
use_uv() {
    command -v uv >/dev/null && ! env | grep -q '^PIP_' &&
        ! [ -e /etc/pip.conf ] && ! [ -e "$HOME/.config/pip/pip.conf" ] && ! [ -e "$HOME/.pip/pip.conf" ]
}

uv_install() {
    local python
    if ! is_recent "$VENV/bin/python"; then
        python=$(ensure_python) || return 1
        quietly uv venv -q --clear -p "$python" "$VENV" || return 1
    fi
    quietly uv pip install -q -p "$VENV/bin/python" -e "$1"
}

pip_install() {
    if ! { is_recent "$VENV/bin/python" && "$VENV/bin/python" -c 'import pip' 2>/dev/null; }; then
        local python
        python=$(ensure_python) || return 1
        rm -rf "$VENV"
        "$python" -c 'import ensurepip' 2>/dev/null || ensure_packages python3-venv ||
            { say "needs Python's venv module: apt-get install python3-venv"; return 1; }
        quietly "$python" -m venv "$VENV" || return 1
    fi
    quietly "$VENV/bin/python" -m pip install -q --disable-pip-version-check -e "$1"
}
