# The image that remote steps run in. ZenML builds it (settings.docker in configs/nightly_*.yaml); by hand: docker build -t posttrain .
# The code is the last layer, so after an edit the image is built and pushed in seconds. ZenML could send the code to each pod instead,
# but not to the orchestrator's pod. Without the code that pod finds no step in the cache and starts a GPU pod for each.
# Python files are compiled at build time: pods do not keep compiled files, and compiling takes 40 % of their start-up time.
# The image holds no secrets: .dockerignore admits only the pins and the code.
#   BASE            an image with Python 3.11 and its venv module
#   TORCH_BACKEND   cu130: CUDA 13 (NVIDIA); cpu: a fifth of the size; auto: the build that the package index offers
ARG BASE=python:3.11-slim

# The code: posttrain, pipelines, steps and materializers in this repository; the last three in a project made by `posttrain init`.
# ZenML adds .zen, which names the stack that is active on this machine.
FROM $BASE AS code
COPY . /code
RUN rm -rf /code/.zen /code/Dockerfile /code/wheels

FROM $BASE
ARG TORCH_BACKEND=auto
# Triton compiles C against Python's headers when it starts, so an image for GPUs needs a compiler. The last line shows that it works.
RUN if [ "$TORCH_BACKEND" != cpu ]; then \
        command -v cc > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
            && rm -rf /var/lib/apt/lists/*; } \
        && echo '#include <Python.h>' \
            | cc -fsyntax-only -I "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" -x c -; \
    fi
# In a project made by `posttrain init`, pyproject.toml names posttrain itself, and wheels/ may hold its wheel.
# wheel[s] is a pattern, so that the folder may be missing.
COPY pyproject.toml constraints.txt wheel[s] /build/
RUN python3 -m venv /opt/posttrain \
    && /opt/posttrain/bin/python -m pip install --no-cache-dir --constraint /build/constraints.txt uv \
    && case $TORCH_BACKEND in auto) ;; *) export UV_TORCH_BACKEND=$TORCH_BACKEND ;; esac \
    && VIRTUAL_ENV=/opt/posttrain /opt/posttrain/bin/uv pip install --no-cache --compile-bytecode --constraint /build/constraints.txt \
        --find-links /build --requirement /build/pyproject.toml \
        --extra aws --extra benchmarks --extra deepspeed --extra gpu --extra kubernetes --extra sagemaker \
    && useradd --create-home --uid 1000 posttrain \
    && install --directory --owner posttrain /app /app/.zen
ENV PATH=/opt/posttrain/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true ZENML_ANALYTICS_OPT_IN=false
WORKDIR /app
COPY --from=code --chown=posttrain /code ./
USER 1000
