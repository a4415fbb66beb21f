#!/bin/bash
# Build the images on a base made by debootstrap, run them, and bring up compose.yaml: `make test-docker`, as root.
# Needs Debian's buildah, podman, debootstrap, runc, netavark, aardvark-dns, iptables and catatonit, and podman-compose of this environment. Everything
# lies in one folder, SCRATCH, which is removed at the end; nothing is pulled from a registry of images.
#   SCRATCH=FOLDER KEEP=1 tools/test_docker.sh             keeps it
#   SCRATCH=FOLDER KEEP=1 BUILT=1 tools/test_docker.sh     runs the images that lie there
#   CUDA=1 tools/test_docker.sh                            also builds the CUDA image, 15 GB with its layers, and runs it on the processor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
programs=$(dirname "$python")
for program in buildah podman debootstrap runc iptables "$programs/podman-compose"; do
  if ! command -v "$program" >/dev/null; then
    echo "test-docker: $program is missing; install Debian's buildah podman debootstrap runc netavark aardvark-dns iptables catatonit, and podman-compose by pip" >&2
    exit 2
  fi
done
if [[ $EUID -ne 0 ]]; then
  echo "test-docker: debootstrap and the networks of containers need root" >&2
  exit 2
fi

scratch=${SCRATCH:-$(mktemp -d)}
mkdir -p "$scratch"
compose=()
finish() {
  if [[ ${#compose[@]} -gt 0 ]]; then "${compose[@]}" down --volumes >/dev/null 2>&1 || true; fi
  if [[ -z ${KEEP:-} ]]; then rm -rf "$scratch"; fi
}
trap finish EXIT
say() { printf '%s  %s\n' "$(date -u +%T)" "$*"; }
# Say what a command says; a command that fails ends the script.
seen() {
  local what=$1 text
  text=$("${@:2}")
  say "$what: $text"
}
# Print a JSON file's value by a Python expression over `found`.
of() { "$python" -c "import json, sys; found = json.load(open(sys.argv[1])); print($2)" "$scratch/$1.json"; }

# Images, containers and networks of their own, beside whatever else this machine has.
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/images"\nrunroot = "%s/run"\n' "$scratch" "$scratch" >"$scratch/storage.conf"
printf '[containers]\ndefault_ulimits = []\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "%s/networks"\n' "$scratch" >"$scratch/containers.conf"
export CONTAINERS_STORAGE_CONF=$scratch/storage.conf CONTAINERS_CONF=$scratch/containers.conf

# An image of a root folder that debootstrap fills, as a base for the Dockerfile: name, folder, packages.
make_base() {
  local container
  [[ -x $2/usr/bin/env ]] || debootstrap --variant=minbase --include="$3" bookworm "$2" >"$scratch/debootstrap.log"
  container=$(buildah from scratch)
  buildah add -q "$container" "$2" / >/dev/null
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit -q "$container" "$1" >/dev/null
  buildah rm "$container" >/dev/null
}
# Certificates of this machine, for networks that have their own, and torch's CPU wheel, by its hash, where pip finds it.
build() {
  buildah bud --quiet --isolation chroot --layers --network host --volume "$scratch/wheels:/wheels:ro" --volume "$scratch/pip.conf:/etc/pip.conf:ro" \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --file docker/Dockerfile "$@" . >>"$scratch/build.log" 2>&1 || { tail -30 "$scratch/build.log" >&2; exit 1; }
}
mkdir -p "$scratch/wheels"
printf '[global]\nfind-links = /wheels\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$scratch/pip.conf"

if [[ -z ${BUILT:-} ]]; then
  base=${BASE_FOLDER:-$scratch/base}
  make_base localhost/eupe-base "$base" python3,python3-venv,ca-certificates
  say "base: $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' "$base/etc/os-release"), $(chroot "$base" python3 --version)"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -d "$scratch/wheels" -r docker/torch-cpu.lock
  build --build-arg BASE=localhost/eupe-base --tag localhost/eupe-pipeline:latest
  build --build-arg BASE=localhost/eupe-base --tag localhost/eupe-s3:latest --target s3
fi
if [[ -n ${CUDA:-} ]]; then # a base without Python, as NVIDIA's are
  make_base localhost/eupe-bare "$scratch/bare" ca-certificates
  build --build-arg BASE=localhost/eupe-bare --build-arg TORCH=cuda --tag localhost/eupe-pipeline:cuda
fi
say "images: $(buildah images --filter dangling=false --format '{{.Name}} {{.Size}}' | tr -s ' \n' ' ')"

run=(podman run --rm --network none --cap-drop ALL --security-opt no-new-privileges)
seen version "${run[@]}" localhost/eupe-pipeline --version
seen user "${run[@]}" --entrypoint id localhost/eupe-pipeline
seen "S3 server's user" "${run[@]}" --entrypoint id localhost/eupe-s3
"${run[@]}" --entrypoint sh localhost/eupe-pipeline -c '! touch /opt/eupe/x 2>/dev/null && touch /data/x'
say "writes: to /data, not to the program"
seen torch "${run[@]}" --entrypoint python localhost/eupe-pipeline -c 'import torch, ray; print(torch.__version__)'
if [[ -n ${CUDA:-} ]]; then
  seen "CUDA image" "${run[@]}" localhost/eupe-pipeline:cuda --version
  seen "its user" "${run[@]}" --entrypoint id localhost/eupe-pipeline:cuda
  seen "its torch" "${run[@]}" --entrypoint python localhost/eupe-pipeline:cuda -c 'import torch, ray; print(torch.__version__, "of CUDA", torch.version.cuda)'
fi

mkdir -p "$scratch/photos/a" "$scratch/photos/b"
"$python" - "$scratch/photos" <<'PHOTOS'
import sys
from pathlib import Path
from PIL import Image
for number in range(24):
    Image.effect_noise((64, 56), 30 + number).convert("RGB").save(Path(sys.argv[1]) / "ab"[number % 2] / f"{number}.jpg")
PHOTOS
chmod a+x "$scratch" && chmod -R a+rX "$scratch/photos"
export RAY_AUTH_TOKEN AWS_SECRET_ACCESS_KEY PHOTOS=$scratch/photos TENSORBOARD_PORT=16006
export EUPE_IMAGE=localhost/eupe-pipeline:latest EUPE_S3_IMAGE=localhost/eupe-s3:latest
RAY_AUTH_TOKEN=$(od -An -v -N 32 -tx1 /dev/urandom | tr -d ' \n')
AWS_SECRET_ACCESS_KEY=$(od -An -v -N 16 -tx1 /dev/urandom | tr -d ' \n')
compose=("$programs/podman-compose" --file docker/compose.yaml)
"${compose[@]}" up --detach --no-build >>"$scratch/compose.log" 2>&1 || { tail -30 "$scratch/compose.log" >&2; exit 1; }
on_head() { podman exec eupe_head_1 "$@"; }
for _ in $(seq 60); do
  nodes=$(on_head python -c "import ray; ray.init('auto', logging_level='ERROR'); print(len(ray.nodes()))" 2>/dev/null || true)
  [[ $nodes == 2 ]] && break
  sleep 2
done
[[ $nodes == 2 ]] || { podman logs eupe_head_1; podman logs eupe_worker_1; exit 1; }
say "compose: head, worker, S3 server and TensorBoard are up; Ray has $nodes nodes"
on_head eupe-pipeline index /photos --store s3://eupe/store --name photos --json | tail -n 1 >"$scratch/index.json"
words=(--store s3://eupe/store --data photos)
on_head eupe-pipeline extract-features "${words[@]}" --teacher timm:vit_tiny_patch16_224 --teacher-size timm:vit_tiny_patch16_224=64 --allow-random-weights \
  --shard-images 2 --workers 2 --address auto --json 2>>"$scratch/work.log" | tail -n 1 >"$scratch/extract.json"
key=$(of extract "next(iter(found['features'].values()))")
seen "extracted on both nodes" of extract "found['rows'], 'views,', found['shards'], 'shards,', found['images_failed'], 'failed'"
on_head eupe-pipeline features verify "$key" --store s3://eupe/store >"$scratch/verify.log" 2>&1
say "verified: every byte on the S3 server"
on_head eupe-pipeline train --stage 2 --recipe demo "${words[@]}" --features "$key" --allow-random-weights --out /data/runs/stage2 --json \
  "--set=student.architecture='vit-mini'" "--set=student.sizes_px=[32]" --set=run.steps=4 --set=run.batch_size=4 2>>"$scratch/work.log" | tail -n 1 >"$scratch/train.json"
seen trained of train "found['steps'], 'steps'"
tensorboard() { "$python" -c "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:16006/data/runs', timeout=5).read().decode())"; }
for _ in $(seq 30); do
  runs=$(tensorboard 2>/dev/null || true)
  [[ $runs == *stage2* ]] && break
  sleep 2
done
[[ $runs == *stage2* ]] || { podman logs eupe_tensorboard_1; exit 1; }
say "TensorBoard shows: $runs"
podman kill eupe_worker_1 >/dev/null
on_head eupe-pipeline extract-features "${words[@]}" --teacher timm:vit_tiny_patch16_224 --teacher-size timm:vit_tiny_patch16_224=48 --allow-random-weights \
  --shard-images 2 --workers 1 --address auto --json 2>>"$scratch/work.log" | tail -n 1 >"$scratch/again.json"
seen "without the worker" of again "found['rows'], 'views'"
say "done"
