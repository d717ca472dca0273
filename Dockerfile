# dataflow: gateway, worker and deploy in one image; the command says which.
FROM python:3.11-slim AS build
WORKDIR /src
RUN pip install --no-cache-dir "uv>=0.5"
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY dataflow dataflow
COPY nodes nodes
COPY topics topics
COPY pipelines pipelines
# The wheel, and the versions that the lock says: the image does not depend on the day it is built.
RUN uv build --quiet --wheel --out-dir /dist \
    && uv export --quiet --frozen --no-hashes --no-emit-project --no-default-groups --group examples --extra cpu --extra grpc --extra image \
       > /dist/constraints.txt

FROM python:3.11-slim
# libgomp: onnxruntime's thread pool.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /dist /dist
# What the project's code and model builds import, e.g. "pandas scikit-learn".
ARG PACKAGES=""
RUN wheel="$(ls /dist/*.whl)" \
    && pip install --no-cache-dir --constraint /dist/constraints.txt "${wheel}[cpu,grpc,image]" ${PACKAGES} \
    && rm -rf /dist
RUN useradd --create-home --uid 1000 dataflow \
    && mkdir /project \
    && chown dataflow /project
USER dataflow
WORKDIR /project
ENV PYTHONUNBUFFERED=1 DATAFLOW_LOG=json
EXPOSE 8080 8081 9000
# The gateway's address by default; a worker's service says another.
ENV DATAFLOW_HEALTH=http://127.0.0.1:8080/readyz
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['DATAFLOW_HEALTH'], timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dataflow"]
CMD ["gateway", "--host", "0.0.0.0", "--port", "8080", "--grpc-port", "8081"]
