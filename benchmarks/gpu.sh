#!/usr/bin/env bash
# What still lacks a figure on a GPU, in at most eight minutes: each part has a limit. Nothing is downloaded.
#
#   bash benchmarks/gpu.sh             results in benchmarks/out/gpu, one JSON file for each part; continues there
#   bash benchmarks/gpu.sh OUT         results in OUT, such as "$OUT" on a borrowed machine
#   bash benchmarks/gpu.sh OUT --tiny  on any machine: whether it runs
#
# PYTHON is the Python with inversight and scikit-learn, by default uv's. A part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/out/gpu}
shift || true
python=${PYTHON:-python3 -m uv run python}
mkdir -p "$out"
failed=()

part() { # part NAME SECONDS SCRIPT OPTION...
  local name=$1 limit=$2
  shift 2
  if [ -s "$out/$name.json" ]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name ($(date +%T), at most $limit s)"
  # shellcheck disable=SC2086  # PYTHON can be a command with arguments
  if timeout "$limit" $python "$@" --json "$out/$name.part.json" 2>&1 | tee "$out/$name.log"; then
    mv "$out/$name.part.json" "$out/$name.json"
  else
    failed+=("$name")
  fi
}

part eigenpairs 100 benchmarks/natural_gradient.py --parts eigenpairs "$@"
part stages 240 benchmarks/stages.py "$@"
part shadows 130 benchmarks/shadows.py --models 8 "$@"
echo "results: $out"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
