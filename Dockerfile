FROM python:3.11-slim-bookworm AS build

# pip stays outside, so that the environment to be copied holds the program and nothing to build with.
RUN python -m venv --without-pip /opt/venv
COPY requirements/runtime.txt /src/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary :all: \
        -r /src/requirements/runtime.txt

WORKDIR /src
COPY pyproject.toml README.md ./
COPY schemas schemas
COPY worker worker
COPY migrations migrations
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps .


FROM python:3.11-slim-bookworm

# The operating system's certificates are the ones that connections are verified with.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /var/lib/openai-worker --shell /usr/sbin/nologin worker \
    && install --directory --owner worker --group worker /var/lib/openai-worker

COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WORKER_HTTP_HOST=0.0.0.0

# Where worker.toml is looked for, and where the default SQLite database goes.
WORKDIR /var/lib/openai-worker
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
port = int(os.environ.get('WORKER_HTTP_PORT') or 8080); \
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=4); \
connection.request('GET', '/healthz'); \
sys.exit(connection.getresponse().status != 200)"]

ENTRYPOINT ["openai-worker"]
CMD ["run"]
