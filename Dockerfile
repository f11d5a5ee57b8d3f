# syntax=docker/dockerfile:1
# The command jax-mtlser in an image, for CPU and for NVIDIA GPUs:
#
#     docker build --target cpu -t jax-mtlser:cpu .
#     docker build --target gpu -t jax-mtlser:gpu .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/mtlser/runs" -v mtlser-cache:/mtlser/cache \
#         jax-mtlser:cpu train --config configs/demo.py --workdir runs/demo
#
# With --gpus all, the second runs on a GPU; the host needs NVIDIA's container toolkit and a driver for CUDA 13 (580 or
# newer) and no CUDA: the Python packages bring it. Recordings are mounted read-only, such as -v /data:/data:ro. ffmpeg is
# not in the image, as it would double the smaller one; WAV, FLAC, MP3 and Ogg are read without it.

FROM python:3.12-slim-bookworm AS base
# Whoever runs it with --user has no name and no home of its own here: both are given.
ENV HOME=/mtlser \
    USER=mtlser \
    XDG_CACHE_HOME=/mtlser/cache \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1
# Readable by everyone, and writable where runs, corpora, compiled programs and checkpoints go.
RUN useradd --uid 1000 --home-dir /mtlser --shell /usr/sbin/nologin mtlser \
    && install -d -o mtlser -m 755 /mtlser \
    && install -d -o mtlser -m 1777 /mtlser/runs /mtlser/cache
WORKDIR /src
# Versions are pyproject.toml's, so the rule that each pip install pins its own (DL3013) is not followed below.
COPY pyproject.toml README.md LICENSE ./
COPY jax_mtlser ./jax_mtlser
COPY configs /mtlser/configs

FROM base AS gpu
# hadolint ignore=DL3013
RUN pip install ".[demo,formats,cuda]"
# What the container toolkit is to bring in from the host.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /mtlser
VOLUME ["/mtlser/runs", "/mtlser/cache"]
USER 1000
ENTRYPOINT ["jax-mtlser"]
CMD ["--help"]

# Last, so it is what a build without --target makes.
FROM base AS cpu
# hadolint ignore=DL3013
RUN pip install ".[demo,formats]"
WORKDIR /mtlser
VOLUME ["/mtlser/runs", "/mtlser/cache"]
USER 1000
ENTRYPOINT ["jax-mtlser"]
CMD ["--help"]
