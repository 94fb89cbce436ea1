#!/usr/bin/env bash
# What has to hold before a release, and takes too long or too much room for each change.
#
#   bash benchmarks/release.sh              all of it
#   bash benchmarks/release.sh PART...      some of it:
#     build      build wheel and sdist in dist/, and check what an index will show of them
#     newest     install the wheel alone with the newest dependencies, and audit the digits at a tiny budget
#     lowest     the same with the lowest versions that pyproject.toml allows
#     notebooks  run the notebooks in examples/ in full; their kept outputs stay as they are
#
# newest and lowest take the wheel in dist/, or build it. Each makes an environment of up to 6 GB and deletes it. Python is
# UV_PYTHON or else python3; UV_TORCH_BACKEND=cpu installs PyTorch without CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=(python3 -m uv)
unset PYTHONPATH # the wheel alone is tried
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT

build() {
  rm -rf dist
  "${uv[@]}" build -q --out-dir dist
  "${uv[@]}" tool run -q twine check --strict dist/*.whl dist/*.tar.gz
}

smoke() { # smoke RESOLUTION: a fresh environment with nothing but the wheel
  [ -e dist ] || build
  local wheel
  wheel=$(realpath dist/*.whl)
  "${uv[@]}" venv -q --python "${UV_PYTHON:-python3}" "$home/env"
  # uv takes for direct what it is given; of a wheel alone it would take the newest dependencies.
  local given=("$wheel")
  [ "$1" = highest ] || given+=(-r pyproject.toml)
  "${uv[@]}" pip install -q --python "$home/env" --resolution "$1" "${given[@]}"
  "${uv[@]}" pip check -q --python "$home/env"
  cat > "$home/tiny.yaml" <<'YAML'
prior: {steps: 6, batch_size: 4, width: 2, watch_images: 1000}
adaptation: {steps: 4, iterations: 2}
target_training: {epochs: 3, width: 2}
evaluator_training: {epochs: 3, width: 2}
public_training: {epochs: 2, width: 2}
attack: [{class: plug-and-play, pool: 30, candidates: 6, keep: 4, steps: 3, crops: 2}]
shadows: 4
YAML
  (
    cd "$home" # where no source of the package is found
    env/bin/python -m inversight --version
    env/bin/inversight audit --config tiny.yaml --out run
    env/bin/inversight report run
    env/bin/python - "$1" <<'PYTHON'
import importlib.metadata, json, pathlib, platform, sys

import pandas
from packaging.requirements import Requirement

metrics = json.loads(pathlib.Path("run/metrics.json").read_text())
assert 0 < metrics["ddcs_best"]["value"] and 0 < metrics["exposure_mean"]["p_value"] <= 1, metrics
assert len(pandas.read_parquet("run/samples.parquet")) == 100
assert "<html" in pathlib.Path("run/report.html").read_text()
required = sorted(
    Requirement(text).name
    for text in importlib.metadata.requires("inversight")
    if "extra ==" not in text
)
versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in required)
print(f"{sys.argv[1]}: passed with Python {platform.python_version()}, {versions}")
PYTHON
  )
  rm -rf "${home:?}"/*
}

newest() { smoke highest; }
lowest() { smoke lowest-direct; }
notebooks() { "${uv[@]}" run --locked python examples/run_notebooks.py; }

parts=("$@")
[ $# -gt 0 ] || parts=(build newest lowest notebooks)
for part in "${parts[@]}"; do
  case $part in
    build | newest | lowest | notebooks) "$part" ;;
    *) echo "release.sh: no part is called $part; there are build, newest, lowest and notebooks" >&2 && exit 2 ;;
  esac
done
