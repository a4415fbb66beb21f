# Everything a checkout needs, from Python >= 3.11, make, git and npm alone. `make` shows the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
BENCH := .venv-bench
# Processes that run the tests side by side.
WORKERS ?= 2
# The Python of the machine that `make gpu-wheels` is for.
GPU_PYTHON ?= 3.12

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help venv test test-long test-faults bench-store bench-cli check format pins package pythons test-docker demo bench-extract bench-train bench-curate bench-rules bench-students bench-pixels bench-quantised bench-day bench-gpu gpu-wheels gpu-check study study-long study-gpu soak venv-locked docs clean locks

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch goes in first and alone: resolved together with timm, pip trades an installed CPU build for the CUDA stack.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# These very files, by their sha256, and no others; another platform or index is refused by pip, with both hashes.
venv-locked: ## create .venv from requirements-ci.lock: every file by its sha256 (Python 3.11, Linux, x86-64)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-ci.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $(STAMP)

venv: $(STAMP) ## create .venv and install the package with its tests

test: venv ## fetch the demo's weights and photos once, then run the tests
	$(BIN)/eupe-pipeline demo --fetch-only
	$(BIN)/python -m pytest -m 'not long' -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-long: venv ## also the tests that take minutes, and the fault table at its second figures: docs/results/faults-long.json (RESUME=1: go on after a stop)
	$(BIN)/eupe-pipeline demo --fetch-only
	$(BIN)/python tools/fault_table.py --long $(if $(RESUME),--resume)

test-faults: venv ## break the store in every way that is listed, print what was silent, detected, recovered
	$(BIN)/python tools/fault_table.py

# The peers go into an environment of their own, on top of .venv, where only what the figures hang on is pinned. Without them the figures of
# our side remain. mosaicml-streaming asks for a transformers below 5 and the clients of four clouds; reading MDS imports none of them.
$(BENCH)/.installed: $(STAMP)
	test -x $(BENCH)/bin/python || $(BIN)/python -m venv $(BENCH)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$($(BENCH)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	grep -E '^(torch|torchvision|timm|ray|pyarrow|zarr|fsspec|s3fs|aiobotocore|botocore|boto3|moto)==' constraints.txt > $(BENCH)/constraints.txt
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c $(BENCH)/constraints.txt -e '.[bench]' \
	  || echo "bench-store: the peers could not be installed; those that are missing are skipped"
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c $(BENCH)/constraints.txt Brotli python-snappy zstd catalogue \
	  && $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'mosaicml-streaming>=0.13' \
	  || echo "bench-store: without mosaicml-streaming"
	@touch $@

bench-store: $(BENCH)/.installed ## the store against raw system calls, against its peers, in Parquet, on S3, at 1.7e9 images
	$(BENCH)/bin/python -m benchmarks.bench_store
	$(BENCH)/bin/python -m benchmarks.bench_codec
	$(BENCH)/bin/python -m benchmarks.bench_parquet
	$(BENCH)/bin/python -m benchmarks.bench_s3
	$(BENCH)/bin/python -m benchmarks.bench_scale

bench-cli: venv ## cold start, and a listing of 100 feature sets: docs/results/bench-cli.json
	$(BIN)/python -m benchmarks.bench_cli

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# EXTERNAL=1 also asks the servers of links to other sites.
docs: $(VENV)/.docs ## the documents as a static site: build/site; a warning or a broken link fails (EXTERNAL=1: other sites' links, too)
	$(BIN)/python -m tools.build_site $(if $(EXTERNAL),--external)

check: venv ## style, types (source and tests), layer rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/house.py
	$(BIN)/python tools/layers.py

format: venv ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pins: venv ## write constraints.txt anew from what is installed
	$(BIN)/python tools/pins.py > constraints.txt.new && mv constraints.txt.new constraints.txt

locks: venv ## write requirements-ci.lock and docker/*.lock anew: versions of constraints.txt, each with the sha256 of its files
	$(BIN)/python tools/locks.py

# As root, with Debian's buildah, podman, debootstrap, runc, netavark, aardvark-dns, iptables and catatonit.
test-docker: venv ## build the images on a base made by debootstrap, run them, bring up docker/compose.yaml (CUDA=1: that image, too)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r docker/compose.lock
	PYTHON=$(BIN)/python tools/test_docker.sh

package: venv ## the sdist, and the wheel built from it: dist/
	$(BIN)/python tools/package.py

pythons: venv ## what Python 3.11 to 3.14 would install, by the resolver alone; only wheels count
	$(BIN)/python tools/pythons.py

demo: venv ## photos to report, on two cores in minutes: runs/demo/report.html
	$(BIN)/eupe-pipeline demo --out $(DEMO) --store $(DEMO)/store

# One compute thread, so that the readers have a core as they have beside a GPU; what they cost without one is step_cpu.
bench-train: $(BENCH)/.installed ## streaming against memory, against DataLoaders, cached against live: docs/results/bench-train.json
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BENCH)/bin/python -m benchmarks.bench_train
	$(BENCH)/bin/python -m benchmarks.bench_host_memory
	$(BENCH)/bin/python -m benchmarks.bench_patch_loss

study: venv ## what codecs, tokens and views do to students, in pairs (hours on two cores, resumable): docs/results/study.md
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nice -n 10 $(BIN)/python -m benchmarks.study --seeds $(or $(SEEDS),4)

study-long: venv ## the whole study: 16 pairs, also of several teachers and of stages (a night on two cores, resumable)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nice -n 10 $(BIN)/python -m benchmarks.study --all --seeds $(or $(SEEDS),16)

# Feature sets of all arms, in both draws of views, take some 430 GB; STUDY="--arms fp32 int8 live" is a part of it, in 65 GB.
study-gpu: venv ## on a CUDA machine: the same study on all of CIFAR-10 and at 224 px (hours, resumable): docs/results/study-gpu.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study --images 50000 --size-px 224 --teacher-px 224 --batch-size 256 --seeds $(or $(SEEDS),16) \
	  --folder runs/study-gpu --out docs/results/study-gpu.md $(or $(STUDY),--all)

bench-extract: venv ## extraction against a bare forward loop, and what five kills cost: docs/results/bench-extract.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_extract

bench-pixels: $(BENCH)/.installed ## decoders and resizers side by side, views a core, streams against peers: docs/results/bench-rendering.json, bench-pixel-streams.json
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c $(BENCH)/constraints.txt -e '.[dali]' || echo "bench-pixels: without DALI"
	OMP_NUM_THREADS=1 $(BENCH)/bin/python -m benchmarks.bench_rendering
	OMP_NUM_THREADS=1 $(BENCH)/bin/python -m benchmarks.bench_pixel_streams

bench-curate: venv ## near duplicates and balance of 60,000 images: docs/results/bench-curate.json
	$(BIN)/python -m benchmarks.bench_curate

bench-rules: venv ## recipes by rule against eight tuned ones on three sets (resumable): docs/results/bench-rules.json
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nice -n 5 $(BIN)/python -m benchmarks.bench_rules --jobs $(WORKERS)

bench-students: venv ## which of timm's backbones are accepted as students (half an hour of a core, resumable): docs/results/students.md
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m benchmarks.bench_students

bench-quantised: venv ## kNN of fp32, of int8 by measured ranges and of an int8-aware last phase (an hour, resumable): docs/results/quantised.md
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nice -n 10 $(BIN)/python -m benchmarks.bench_quantised

# lightly-train pins much; it goes into an environment of its own on top of .venv, with our torch.
DAY := .venv-day
$(DAY)/.installed: $(STAMP)
	test -x $(DAY)/bin/python || $(BIN)/python -m venv $(DAY)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$($(DAY)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	grep -E '^(torch|torchvision|timm|numpy|pillow|transformers|huggingface-hub)==' constraints.txt > $(DAY)/constraints.txt
	$(DAY)/bin/python -m pip install --quiet --disable-pip-version-check -c $(DAY)/constraints.txt -e '.[day]' \
	  || echo "bench-day: lightly-train could not be installed; the plain loop and the ideal remain"
	@touch $@

bench-day: $(DAY)/.installed ## photos to three students, everything counted, against lightly-train and a plain loop: docs/results/bench-day.json
	$(DAY)/bin/python -m benchmarks.bench_day

soak: venv ## half an hour of every command on one store, with kills, on a machine that does nothing else (MINUTES=30): docs/results/soak.json and soak.md
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

bench-gpu: venv ## on a CUDA machine: extraction at full size, stage 2 from cached targets: docs/results/bench-gpu.json
	$(BIN)/python -m benchmarks.bench_gpu

# On a machine without network the wheels are made beforehand (`make gpu-wheels`) and PYTHON is one that has torch; no .venv is made.
gpu-wheels: ## the wheels that such a machine lacks, for its Python: .wheels (make gpu-wheels GPU_PYTHON=3.12)
	$(PYTHON) tools/gpu_wheels.py --python $(GPU_PYTHON)

gpu-check: ## on a CUDA machine, in under ten minutes: equivalence tests, figures, trace: docs/results/gpu-check.{json,md}
	$(PYTHON) -m benchmarks.gpu_check $(if $(wildcard .wheels/*.whl),--wheels .wheels)

clean: ## remove what the targets above made, except runs/
	rm -rf $(VENV) $(BENCH) $(DAY) .wheels build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
