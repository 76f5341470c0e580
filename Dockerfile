# One image for every pipeline step and for the server: what was tested is what runs.
#
#   docker build --tag cyto-dl .                                                                    CPU
#   docker build --tag cyto-dl:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .  GPU
#
# A server:   docker run --rm -p 8080:8080 -p 8081:8081 -v $PWD/bundle:/mnt/models:ro cyto-dl
# A command:  docker run --rm cyto-dl cyto-dl doctor
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# torch's own index. Its 2.13.0+cpu is newer than PyPI's 2.13.0 to pip, and satisfies the pin torch==2.13.0.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/cyto-dl
ENV PATH=/opt/cyto-dl/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" torch
# A step needs of kfp only what its own command imports; kfp's dependencies would fight with those of the model.
RUN pip install --constraint constraints.txt --no-deps kfp
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY cyto_dl ./cyto_dl
RUN pip install --constraint constraints.txt ".[serving]"
WORKDIR /app
COPY components ./components
COPY pipelines ./pipelines
COPY serving ./serving
COPY examples ./examples
# The user of the last stage cannot write .pyc files, and without them every start takes seconds longer.
# A checkout with a strict umask would be unreadable to it.
RUN python -m compileall -q components pipelines serving examples && chmod -R a+rX /app

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="CytoDL" \
      org.opencontainers.image.description="From a table of microscope images to a trusted prediction service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Group 0 owns the home folder: OpenShift runs images under a user id of its own choice, always in group 0.
RUN useradd --uid 1000 --gid 0 --create-home --home-dir /home/cyto cyto && chmod -R g=u /home/cyto
COPY --from=build /opt/cyto-dl /opt/cyto-dl
COPY --from=build /app /app
ENV PATH=/opt/cyto-dl/bin:$PATH \
    PYTHONPATH=/app \
    CYTO_DL_GIT_COMMIT=${REVISION} \
    PYTHONUNBUFFERED=1 \
    HOME=/home/cyto \
    TMPDIR=/tmp
WORKDIR /app
# A number, so that Kubernetes can check runAsNonRoot.
USER 1000
EXPOSE 8080 8081
# No entry point: Kubeflow and KServe bring their own commands. KServe puts a model in /mnt/models.
CMD ["python", "-m", "serving", "--bundle", "/mnt/models"]
