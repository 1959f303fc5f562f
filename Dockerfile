# What a remote step runs in. ZenML builds it (settings.docker of configs/nightly_*.yaml); by hand: docker build -t posttrain .
# The code is its last layer, so an edit of it is built and pushed in seconds. ZenML could bring the code to each pod instead, but
# not to the one that starts the others: that one would find nothing in the cache, and start a pod with a GPU to be told so.
# Packages are compiled in it: a pod could not keep what it compiles, and would spend four tenths of its start on it, each time.
# Nothing secret is in it: .dockerignore lets in the pins and the code.
#   BASE            with Python 3.11 and its venv module
#   TORCH_BACKEND   cu130: CUDA 13 (NVIDIA), cpu: a fifth of the size; auto: torch as the package index has it
ARG BASE=python:3.11-slim
FROM $BASE
ARG TORCH_BACKEND=auto
COPY pyproject.toml constraints.txt /build/
RUN python3 -m venv /opt/posttrain \
    && /opt/posttrain/bin/python -m pip install --no-cache-dir --constraint /build/constraints.txt pip uv \
    && case $TORCH_BACKEND in auto) ;; *) export UV_TORCH_BACKEND=$TORCH_BACKEND ;; esac \
    && VIRTUAL_ENV=/opt/posttrain /opt/posttrain/bin/uv pip install --no-cache --compile-bytecode --constraint /build/constraints.txt \
        --requirement /build/pyproject.toml --extra aws --extra deepspeed --extra gpu --extra kubernetes --extra sagemaker \
    && useradd --create-home --uid 1000 posttrain \
    && install --directory --owner posttrain /app /app/.zen
ENV PATH=/opt/posttrain/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true ZENML_ANALYTICS_OPT_IN=false
WORKDIR /app
COPY --chown=posttrain posttrain posttrain
COPY --chown=posttrain pipelines pipelines
COPY --chown=posttrain steps steps
COPY --chown=posttrain materializers materializers
COPY --chown=posttrain *.py ./
USER 1000
