# make run    sets up .venv where it is missing, then runs the demo: zenml pipeline run dpo_pipeline
# make test   the same set-up, then the tests
# Both keep to this folder: ZenML's and MLflow's stores lie in .zenml/ and .mlflow/, and a configuration that you have
# elsewhere is neither read nor written. Set ZENML_CONFIG_PATH to use your own.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

export ZENML_CONFIG_PATH ?= $(CURDIR)/.zenml
export ZENML_ANALYTICS_OPT_IN ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

# Where make bench-peer puts LLaMA-Factory, which needs other versions of the same packages.
export BENCH_PEER ?= $(or $(POSTTRAIN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/posttrain)/benchmarks/llamafactory-0.9.5

.PHONY: run test test-soak test-services test-remote lint audit setup clean bench bench-quick bench-peer bench-table screenshots

run: setup
	$(BIN)/zenml pipeline run dpo_pipeline

test: setup
	$(BIN)/python -m pytest -m 'not soak'

# What takes minutes: trainings killed again and again, pipelines side by side, a stand-in for AWS.
# With DeepSpeed, which the others do without: where it is installed, every training imports it, for seconds.
test-soak: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deepspeed]'
	$(BIN)/python -m pytest -m soak

# Against real servers: S3, PostgreSQL, MLflow, ZenML. `tests/remote/with_servers make test-services` starts them.
test-services: setup
	$(BIN)/python -m pytest tests/remote/test_services.py

# The same, then a Kubernetes cluster with GPUs, real or pretended: tests/remote/README.md says what to set.
test-remote: setup
	$(BIN)/python -m pytest tests/remote --capture=no --exitfirst

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy posttrain pipelines steps materializers dpo_pipeline.py sweep_pipeline.py

# Known vulnerabilities of every pinned package, asked of PyPI; one that could not be asked about is a failure too.
audit: setup
	$(BIN)/uv tool run pip-audit@2.10.1 --requirement constraints.txt --no-deps --disable-pip --strict

# Speed against TRL and LLaMA-Factory on this machine's CPU; bench takes hours and goes on where it stopped.
bench: setup
	$(BIN)/python -m benchmarks.bench $(BENCH)
	$(BIN)/python -m benchmarks.table

bench-quick: setup
	$(BIN)/python -m benchmarks.bench --quick
	$(BIN)/python -m benchmarks.table

bench-table: setup
	$(BIN)/python -m benchmarks.table

# torchvision and torchaudio come as CUDA builds that do not import beside a CPU torch; LLaMA-Factory wants torchaudio to be there.
# Its TRL 0.24 cannot import DPOTrainer beside transformers 5, which pip would take.
bench-peer: setup
	$(PYTHON) -m venv $(BENCH_PEER)
	$(BENCH_PEER)/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	$(BENCH_PEER)/bin/python -m pip install --disable-pip-version-check torch==2.13.0 llamafactory==0.9.5 'transformers<5'
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
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[aws,kubernetes,sagemaker,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .zenml .mlflow .pytest_cache .mypy_cache .ruff_cache
