# lynx_exp in a container, for a CPU or a CUDA GPU. Target cpu has been built and run with buildah, with what target
# artifact adds, on a base that stood for python:3.11-slim (Debian 12 and its own Python 3.11): no registry of images
# could be reached. So the names of base images are not verified, and target cuda has not been built.
#
#   docker build --target cpu -t lynx-exp:cpu .
#   docker build --target cuda -t lynx-exp:cuda .
#   docker run --rm -v "$PWD/results:/work/results" lynx-exp:cpu +study=demo
#   docker run --rm --gpus all -v "$PWD/results:/work/results" -v "$HOME/.cache/huggingface:/hub" lynx-exp:cuda \
#       -m model=mixtral_8x7b_instruct policy=lynx,vanilla model.device_map=auto
#
# Versions are those that the tests ran with (constraints.txt). Generated code is run in a sandbox that wants namespaces:
# `--security-opt seccomp=unconfined`, or landlock or nothing in its place (docs/howto/sandbox.md).

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HOME=/hub
WORKDIR /opt/lynx_exp
COPY pyproject.toml constraints.txt README.md LICENSE lynx_exp_lm_eval.pth ./
COPY lynx_exp lynx_exp
COPY analysis analysis
COPY conf conf
COPY sweeps sweeps

# torch comes from an index of builds for CPUs: a gibibyte less
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt --index-url "$TORCH_INDEX" torch && pip install -c constraints.txt '.[cpu,math]'
WORKDIR /work
ENTRYPOINT ["lynx-exp"]

# the claims of README and docs, repeated and compared: docker run --rm -v "$PWD/artifact:/work/artifact" lynx-exp:artifact
FROM cpu AS artifact
WORKDIR /opt/lynx_exp
COPY benchmarks benchmarks
COPY docs docs
ENTRYPOINT ["python", "-m", "benchmarks.artifact", "--out", "/work/artifact"]

# the default build of torch for Linux brings its own CUDA libraries; the host has the driver. Triton wants a C compiler
FROM base AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install -c constraints.txt '.[cpu,math,multi]'
WORKDIR /work
ENTRYPOINT ["lynx-exp"]
