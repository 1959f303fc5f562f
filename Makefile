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

.PHONY: run test lint setup clean

run: setup
	$(BIN)/zenml pipeline run dpo_pipeline

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy posttrain pipelines steps materializers dpo_pipeline.py sweep_pipeline.py posttrain_cli.py

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "Setting up $(VENV): about 200 packages, a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[aws,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .zenml .mlflow .pytest_cache .mypy_cache .ruff_cache
