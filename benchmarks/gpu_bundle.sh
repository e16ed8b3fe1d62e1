#!/usr/bin/env bash
# Packs into DIR, in less than 60 MiB, what benchmarks/gpu.py needs on a machine with a GPU and without a network: the project,
# CIFAR-10's parquet files, and wheels for Python 3.12 of what that machine may lack. It is expected to have torch, torchvision and
# what comes with them, accelerate, numpy, safetensors and jaxtyping.
#
#   benchmarks/gpu_bundle.sh DIR [CIFAR10]     CIFAR10: a folder with train.parquet and test.parquet; by default data/cifar10
#   bash DIR/run.sh [--minutes 12] ...         there: the options are those of gpu.py
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
cifar=${2:-$root/data/cifar10}
[ -f "$cifar/train.parquet" ] && [ -f "$cifar/test.parquet" ] || {
    echo "no train.parquet and test.parquet in $cifar: name their folder, $0 DIR CIFAR10" >&2
    exit 2
}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
rm -rf "$dir"/{src,benchmarks,cifar10,wheels,run.sh}
mkdir -p "$dir/cifar10" "$dir/wheels" "$dir/benchmarks"
cp -r "$root/src" "$dir/src"
cp -r "$root/benchmarks/gpu.py" "$root/benchmarks/gpu_parts" "$dir/benchmarks"
find "$dir" -name __pycache__ -prune -exec rm -rf {} +
cp "$cifar/train.parquet" "$cifar/test.parquet" "$dir/cifar10"
chmod -R u+w "$dir/cifar10"

# what is imported at once, then what the measurement can do without (Captum's rows are then left out)
needed=(pydantic pydantic_core annotated-types typing-inspection typing_extensions tomlkit lazy-loader rich markdown-it-py mdurl
    pygments psutil pyarrow)
optional=(captum)
python=${PYTHON:-python3}
fetch() {
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --constraint "$root/constraints.txt" --dest "$dir/wheels" "$1"
}
for name in "${needed[@]}"; do fetch "$name"; done
for name in "${optional[@]}"; do fetch "$name" || echo "without $name"; done

# pyarrow reads parquet files; its servers, clouds, headers and tests are nearly half of it
"$python" - "$dir/wheels" <<'PYTHON'
import pathlib
import re
import sys
import zipfile

unused = re.compile(r"flight|libarrow_s3|/include/|/tests/|libarrow_python\.so(\.\d+\..*)?$|gandiva")
(wheel,) = pathlib.Path(sys.argv[1]).glob("pyarrow-*.whl")
small = wheel.with_suffix(".part")
with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
    for item in old.infolist():
        if not unused.search(item.filename):
            new.writestr(item, old.read(item), zipfile.ZIP_DEFLATED)
small.replace(wheel)
PYTHON

cat >"$dir/run.sh" <<'RUN'
#!/usr/bin/env bash
# Installs the wheels that this machine lacks into a folder of their own, and measures. The options are those of gpu.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
site=${SITE:-$(mktemp -d)}
python=${PYTHON:-python3}
for wheel in "$here"/wheels/*.whl; do
    name=$(basename "$wheel" | cut -d- -f1)
    # pydantic's two packages fit each other alone
    [[ $name != pydantic* ]] && "$python" -c "import importlib.metadata as m, sys; m.version(sys.argv[1])" "$name" 2>/dev/null &&
        continue
    echo "installing $name"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheel"
done
export PYTHONPATH="$here/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" "$here/benchmarks/gpu.py" --data "parquet:path=$here/cifar10,val_fraction=0.1" "$@"
RUN
chmod +x "$dir/run.sh"
size=$(du -sm --apparent-size "$dir" | cut -f1)
echo "$dir: $size MiB"
[ "$size" -lt 60 ] || { echo "more than 60 MiB: too large for a machine that takes less" >&2; exit 1; }
