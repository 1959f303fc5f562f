# What a remote step runs in. ZenML builds it (settings.docker of configs/nightly_*.yaml); by hand: docker build -t posttrain .
# The project's code is not in it: ZenML brings that to each run, so an edit of the code needs no new image. Nothing secret either:
# .dockerignore lets in two files.
#   BASE            with Python 3.11 and its venv module
#   TORCH_BACKEND   cu130: CUDA 13 (NVIDIA), cpu: a fifth of the size; auto: torch as the package index has it
ARG BASE=python:3.11-slim
FROM $BASE
ARG TORCH_BACKEND=auto
COPY pyproject.toml constraints.txt /build/
RUN python3 -m venv /opt/posttrain \
    && /opt/posttrain/bin/python -m pip install --no-cache-dir --constraint /build/constraints.txt pip uv \
    && case $TORCH_BACKEND in auto) ;; *) export UV_TORCH_BACKEND=$TORCH_BACKEND ;; esac \
    && VIRTUAL_ENV=/opt/posttrain /opt/posttrain/bin/uv pip install --no-cache --constraint /build/constraints.txt \
        --requirement /build/pyproject.toml --extra aws --extra gpu --extra kubernetes --extra sagemaker \
    && useradd --create-home --uid 1000 posttrain \
    && install --directory --owner posttrain /app
ENV PATH=/opt/posttrain/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true ZENML_ANALYTICS_OPT_IN=false
USER 1000
WORKDIR /app
