#!/usr/bin/env bash
# Make a virtual environment with the versions of constraints.txt: .ci/install.sh FOLDER
# Called by make when the folder is missing or pyproject.toml or constraints.txt changed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

python3=$(command -v python3) || { echo "error: python3 is not on PATH; install Python 3.11 or newer." >&2; exit 2; }
"$python3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python3" --version) is too old: Python 3.11 or newer is needed, on PATH as python3," >&2
  echo "or an environment of your own: make PYTHON=/path/to/python ..." >&2
  exit 2
}
# Debian and Ubuntu ship venv apart from Python; without it `python3 -m venv` fails half-way.
"$python3" -c 'import ensurepip, venv' 2>/dev/null || {
  echo "error: Python's venv is missing. On Debian or Ubuntu: apt install python3-venv" >&2
  exit 2
}
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge 3000 ] || { echo "error: $free MB free here, about 3000 MB are needed for the packages." >&2; exit 2; }

# A folder whose making was cut off is made anew: half a package may look whole to pip. Only one that this script made
# gets the mark, and no link: what is in another one belongs to the user.
if [ ! -L "$venv" ]; then
  if [ -e "$venv/.installing" ]; then
    echo "The last installation into $venv was cut off: starting again."
    find "$venv" -mindepth 1 ! -path "$venv/.installing" -delete
  elif [ ! -e "$venv" ] || [ -e "$venv/.installed" ]; then
    mkdir -p "$venv"
    touch "$venv/.installing"
    rm -f "$venv/.installed"
  fi
fi

echo "Installing Python packages into $venv (once) ..."
"$python3" -m venv "$venv"
# The project itself runs from this folder and is not installed; its dependencies are read from pyproject.toml.
"$venv/bin/python" - > "$venv/requirements.txt" <<'PY'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PY
started=$SECONDS
quiet=--quiet
[ ! -t 1 ] || quiet=
# DS_BUILD_OPS=0: DeepSpeed compiles nothing, so no C compiler is needed.
DS_BUILD_OPS=0 "$venv/bin/python" -m pip install $quiet --disable-pip-version-check \
  --constraint constraints.txt --requirement "$venv/requirements.txt" < /dev/null
"$venv/bin/python" -m benchmark.profiling.doctor --packages
rm -f "$venv/.installing"
touch "$venv/.installed"
echo "Installed in $((SECONDS - started)) s, $(du -sm "$venv" | cut -f1) MB."
