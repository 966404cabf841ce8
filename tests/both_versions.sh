#!/usr/bin/env bash
# The golden checkpoint, written by Python 3.11 and by Python 3.12, each with the newest JAX that it resolves to, and
# read by the other; and the suite with 3.12, for .ci/run has run it with the interpreter at hand.
#
#   tests/both_versions.sh [DIR [PYTEST ARGUMENT …]]
#
# DIR keeps the environments (by default a temporary folder that is removed); what follows goes to pytest, by default
# `-n 2`. The environment of the running `python` serves as the one of its own version where it has this project.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
  mkdir -p "$1"
  where=$(cd "$1" && pwd)
  shift
else
  where=$(mktemp -d)
  trap 'rm -rf "$where"' EXIT
fi
[ $# -gt 0 ] || set -- -n 2
export JAX_PLATFORMS=cpu PYTHONPATH="$PWD"

interpreter() { # the path of Python $1, which is on PATH or pyenv's
  local found
  for found in $(type -ap "python$1") "$HOME"/.pyenv/versions/"$1"*/bin/python"$1"; do
    if "$found" -c "import sys, venv; assert sys.version_info[:2] == tuple(map(int, '$1'.split('.')))" 2>/dev/null; then
      echo "$found"
      return
    fi
  done
  echo "there is no python$1, neither on PATH nor in ~/.pyenv/versions" >&2
  return 1
}

environment() { # the path of a Python $1 that has this project and its tests
  if python -c "import sys, jax, flax, optax, orbax, pytest, hypothesis
assert sys.version_info[:2] == tuple(map(int, '$1'.split('.')))" 2>/dev/null; then
    type -p python
    return
  fi
  local made="$where/py$1"
  [ -x "$made/bin/python" ] || "$(interpreter "$1")" -m venv "$made"
  "$made/bin/pip" install --quiet --disable-pip-version-check --upgrade ".[test]" >&2
  echo "$made/bin/python"
}

old=$(environment 3.11)
new=$(environment 3.12)

for python in "$old" "$new"; do
  "$python" -c "import sys, jax, flax, optax, orbax.checkpoint as o, importlib.metadata as m
print(f'Python {sys.version.split()[0]}:', *(f'{p} {m.version(p)}' for p in ('jax', 'flax', 'optax', 'orbax-checkpoint')))"
done
rm -rf "$where/golden-old" "$where/golden-new"
"$old" tests/golden.py write "$where/golden-old"
"$new" tests/golden.py write "$where/golden-new"
for folder in "$where/golden-old" "$where/golden-new" tests/golden; do
  "$old" tests/golden.py read "$folder"
  "$new" tests/golden.py read "$folder"
done
echo "the golden checkpoint goes both ways"

"$new" -m pytest "$@"
