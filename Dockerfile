# One image for every pipeline step and for the server: what was tested is what runs.
#
#   make image                       for processors          cyto-dl:<version>
#   make image ACCELERATOR=cu130     for NVIDIA's GPUs       cyto-dl:<version>-cu130
#
# A server:   docker run --rm -p 8080:8080 -p 8081:8081 -v $PWD/bundle:/mnt/models:ro cyto-dl:<version>
# A command:  docker run --rm cyto-dl:<version> cyto-dl doctor
#
# Runs with a read-only root file system, without capabilities and under any user id: it writes to /tmp alone.
# The same image twice: --build-arg PYTHON_IMAGE=docker.io/library/python@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# Libraries: a stage and a layer of their own, because they are 99 % of the image and seldom change.
FROM ${PYTHON_IMAGE} AS libraries
# The end of torch's version: cpu, cu126, cu130, ... Its own index has them; 2.13.0+cpu satisfies the pin torch==2.13.0,
# and is newer than PyPI's 2.13.0 to pip.
ARG ACCELERATOR=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${ACCELERATOR}
WORKDIR /build
# The last pins what pip fetches to build a package with.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BUILD_CONSTRAINT=/build/constraints.txt
RUN python -m venv /opt/cyto-dl
ENV PATH=/opt/cyto-dl/bin:$PATH
COPY constraints.txt ./
# The secret is pip's configuration where packages come from an index of one's own; no layer keeps it.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --constraint constraints.txt --upgrade pip setuptools
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" torch
# An index that does not answer is a mere warning to pip, and PyPI's torch brings gigabytes of CUDA.
RUN found=$(python -c "import torch; print(torch.__version__)") && test "${found#*+}" = "${ACCELERATOR}" \
    || { echo "torch ${found} is not a build for ${ACCELERATOR}. Does ${TORCH_INDEX} answer, and have one?"; exit 1; }
# A step needs of kfp only what its own command imports; kfp's dependencies would fight with those of the model.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip install --constraint constraints.txt --no-deps kfp
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; \
    print(*project['dependencies'], *extras['serving'], *extras['openvino'], sep='\n')" > requirements.txt
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --constraint constraints.txt --requirement requirements.txt

FROM libraries AS code
COPY README.md LICENSE ./
COPY configs ./configs
COPY cyto_dl ./cyto_dl
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --constraint constraints.txt --no-deps --target /app .
WORKDIR /app
COPY components ./components
COPY serving ./serving
COPY examples ./examples
# The user of the last stage cannot write .pyc files, and without them every start takes seconds longer.
# A checkout with a strict umask would be unreadable to it.
RUN python -m compileall -q components serving examples && chmod -R a+rX /app

FROM ${PYTHON_IMAGE}
# Group 0: OpenShift runs images under a user id of its own choice, always in this group.
RUN useradd --uid 1000 --gid 0 --no-create-home --home-dir /tmp cyto
COPY --from=libraries /opt/cyto-dl /opt/cyto-dl
COPY --from=code /app /app
# USER: an id of the cluster's choice has no name in /etc/passwd, and torch asks for one to name its cache.
# HOME, and where commands start: the one folder that everybody may write to.
# GIT_PYTHON_REFRESH: MLflow looks for a git command, and prints a page at each start where there is none.
ENV PATH=/app/bin:/opt/cyto-dl/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GIT_PYTHON_REFRESH=quiet \
    USER=cyto \
    HOME=/tmp \
    TMPDIR=/tmp
WORKDIR /tmp
# A number, so that Kubernetes can check runAsNonRoot.
USER 1000
EXPOSE 8080 8081
# No entry point: Kubeflow and KServe bring their own commands. KServe puts a model in /mnt/models.
CMD ["python", "-m", "serving", "--bundle", "/mnt/models"]
# What changes with every commit comes last: the layers before are pushed and pulled once.
ARG PYTHON_IMAGE
ARG ACCELERATOR=cpu
ARG VERSION=dev
ARG REVISION=unknown
ENV CYTO_DL_GIT_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="CytoDL" \
      org.opencontainers.image.description="From a table of microscope images to a trusted prediction service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      io.cyto-dl.accelerator="${ACCELERATOR}"
