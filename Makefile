# make run    sets up .venv where it is missing, then runs the demo: zenml pipeline run dpo_pipeline
# make test   the same set-up, then the tests
# Both stay inside this folder: ZenML's store is .zenml/ and MLflow's .mlflow/. Your own ZenML configuration is neither read nor
# written; set ZENML_CONFIG_PATH to use it.

PYTHON ?= python3
TORCH ?= 2.13.0
N ?= 2
FUZZ_S ?= 300
VENV := .venv
BIN := $(VENV)/bin

export ZENML_CONFIG_PATH ?= $(CURDIR)/.zenml
export ZENML_ANALYTICS_OPT_IN ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

# Where `make bench-peer` installs LLaMA-Factory, which needs other versions of the same packages.
export BENCH_PEER ?= $(or $(POSTTRAIN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/posttrain)/benchmarks/llamafactory-0.9.5

.PHONY: run test test-fast test-soak fuzz test-services test-remote wheel-test compat lint docs lock audit setup clean \
    bench bench-quick bench-peer bench-table gpu-check gpu-wheels screenshots

run: setup
	$(BIN)/zenml pipeline run dpo_pipeline

# In two processes: more take memory (about 2 GB each) and their own set-up. `make test N=4` on a larger machine.
test: setup
	$(BIN)/python -m pytest -n $(N) --dist worksteal -m 'not soak'

# For every edit: without tests that take more than about five seconds, and modules that run pipelines or fill registries.
test-fast: setup
	$(BIN)/python -m pytest -n $(N) --dist worksteal -m 'not soak and not slow'

# The tests that take minutes: trainings that are killed again and again, pipelines that run at the same time, a simulated AWS.
# They need DeepSpeed. The others do without it: where it is installed, every training spends seconds importing it.
test-soak: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deepspeed]'
	$(BIN)/python -m pytest -n $(N) --dist worksteal -m soak

# Random files and rows for five minutes, others than the last time. A failure is kept in .hypothesis and found again by `make test`.
fuzz: setup
	end=$$(( $$(date +%s) + $(FUZZ_S) )); \
	while [ $$(date +%s) -lt $$end ]; do $(BIN)/python -m pytest -q -x -m fuzz tests/test_fuzz.py tests/data || exit 1; done

# Against real servers: S3, PostgreSQL, MLflow, ZenML. `tests/remote/with_servers make test-services` starts them.
test-services: setup
	$(BIN)/python -m pytest tests/remote/test_services.py

# The same, then a Kubernetes cluster with real or simulated GPUs: tests/remote/README.md lists the variables to set.
test-remote: setup
	$(BIN)/python -m pytest tests/remote --capture=no --exitfirst

# Builds the wheel, installs it outside of this folder, makes a project there and trains in it.
wheel-test: setup
	tests/wheel/try_wheel.sh $(BIN)/python

# The contract tests of posttrain/compat with the oldest and the newest releases of TRL, transformers, PEFT and ZenML that
# pyproject.toml allows. `make compat COMPAT=trl==1.15.0` tests one combination.
compat: setup
	$(BIN)/python tests/compat/environments.py $(COMPAT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Generates the reference pages from the code and builds the site into site/.
docs: setup
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Writes constraints.txt from pyproject.toml. Versions that still fit stay; `make lock LOCK=--upgrade` takes the newest that do.
# torch keeps its version, and what only its CUDA builds need is left out: it differs from build to build, and torch pins it itself.
lock: setup
	printf 'torch==$(TORCH)\n' | $(BIN)/uv pip compile --quiet --all-extras --python-version 3.11 --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links $(LOCK) --output-file constraints.txt pyproject.toml -
	{ echo '# The versions that were tested, of every package. `make lock` writes this file. Use: pip install -c constraints.txt ...'; \
	    grep -Ev '^(cuda-|nvidia-|triton==)' constraints.txt; } > constraints.new
	mv constraints.new constraints.txt

# Looks up known vulnerabilities of every pinned package on PyPI. A package that cannot be looked up is a failure too.
audit: setup
	$(BIN)/uv tool run pip-audit@2.10.1 --requirement constraints.txt --no-deps --disable-pip --strict

# Compares the speed with TRL and LLaMA-Factory on this machine's CPU. `make bench` takes hours; run again, it continues.
bench: setup
	$(BIN)/python -m benchmarks.bench $(BENCH)
	$(BIN)/python -m benchmarks.table

bench-quick: setup
	$(BIN)/python -m benchmarks.bench --quick
	$(BIN)/python -m benchmarks.table

bench-table: setup
	$(BIN)/python -m benchmarks.table

# Checks the training path on this machine's GPU and compares its speed with TRL's, in at most eight minutes. On a CPU it
# rehearses every check at a small scale. `make gpu-wheels` fetches what a GPU machine without network needs: docs/performance.md.
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu $(GPU)

gpu-wheels: setup
	$(BIN)/python -m benchmarks.gpu_wheels

# torchvision and torchaudio come as CUDA builds, which cannot be imported with a CPU torch; LLaMA-Factory only needs torchaudio to exist.
# With transformers 5, which pip would choose, its TRL 0.24 cannot import DPOTrainer.
bench-peer: setup
	$(PYTHON) -m venv $(BENCH_PEER)
	$(BENCH_PEER)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH)
	$(BENCH_PEER)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) llamafactory==0.9.5 'transformers<5'
	$(BENCH_PEER)/bin/python -m pip uninstall --yes torchvision torchaudio
	touch "$$($(BENCH_PEER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchaudio.py"

# The pictures in docs/, from the last `make run`; needs Chromium.
screenshots: setup
	$(BIN)/python docs/screenshots.py

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "Setting up $(VENV): about 200 packages, a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch==$(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[aws,benchmarks,kubernetes,sagemaker,serve,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .zenml .mlflow .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist site
