# AgentCore's command line: `docker build -t agentcore .`, then `docker run --rm agentcore --help`.
# Installs the versions in requirements.lock, checked by hash. For Ray: `--build-arg EXTRAS="api alerts ray"`.
FROM python:3.12-slim AS build
RUN python3 -m pip install --quiet --no-cache-dir uv==0.13.8
WORKDIR /src
ARG EXTRAS="api alerts"
# The lock has more than this image needs: as a constraint, it only pins versions and checks hashes.
# Dependencies come first, so that code changes don't invalidate their layer.
COPY pyproject.toml requirements.lock ./
# hadolint ignore=SC2046
RUN uv venv --quiet /opt/venv \
    && uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
      --constraint requirements.lock --requirements pyproject.toml $(for extra in $EXTRAS; do echo "--extra $extra"; done)
COPY README.md LICENSE ./
COPY agentcore ./agentcore
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
      --no-deps --build-constraint requirements.lock .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="agentcore" \
      org.opencontainers.image.description="Optimize DSPy programs, prove the gain, track it in your own MLflow" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
# The root file system may be read-only: only /tmp and the journal's directory are written to.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    AGENTCORE_STATE_DIR=/var/lib/agentcore \
    DSPY_CACHEDIR=/tmp/dspy \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN install -d -m 750 -o 10001 -g 10001 /var/lib/agentcore
USER 10001:10001
WORKDIR /tmp
VOLUME /var/lib/agentcore
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["agentcore", "doctor", "--only", "journal"]
ENTRYPOINT ["agentcore"]
CMD ["--help"]
