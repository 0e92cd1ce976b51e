# edge-cl for Thor boards with JetPack 7. Commands: docs/boards.md. Not built by the project's own tests.
#
# Base: NVIDIA's tensorrt of the NGC catalogue, tag 25.08-py3: Thor runs the images of Arm servers, and has no
# l4t-jetpack. It has Ubuntu 24.04 with Python 3.12, CUDA 13.0 and TensorRT 10.13 (unconfirmed: edge-cl doctor prints what is
# there). The driver library comes from the board when a container starts: docker run --runtime nvidia.
#
# Build arguments:
#   REGISTRY     NVIDIA's container registry, as the page of the base image names it
#   TAG          of the base image
#   TORCH_WHEEL  addresses of the wheels of torch and torchvision for this JetPack, with a blank between them; or
#   TORCH_INDEX  address of a package index that has both
#   PACKAGES     further Ubuntu packages, such as libraries that these wheels need
ARG REGISTRY
ARG TAG=25.08-py3
FROM ${REGISTRY}/nvidia/tensorrt:${TAG}

ARG TORCH_WHEEL=""
ARG TORCH_INDEX=""
ARG PACKAGES=""

# PyCUDA is compiled against the base's CUDA.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ libopenblas0 python3-dev python3-pip python3-venv ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

# The base's TensorRT module lies among the system's packages.
ENV PATH=/opt/edge-cl/bin:/usr/local/cuda/bin:${PATH}
RUN python3 -m venv --system-site-packages /opt/edge-cl

# torch comes first and is held fast: what follows would else replace it by one that cannot use this GPU. What it needs
# comes with the last pip install.
RUN if [ -n "${TORCH_INDEX}" ]; then \
        pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" torch torchvision; \
    elif [ -n "${TORCH_WHEEL}" ]; then \
        pip install --no-cache-dir --no-deps ${TORCH_WHEEL}; \
    else \
        echo "Pass --build-arg TORCH_WHEEL=... or --build-arg TORCH_INDEX=..." >&2; exit 1; \
    fi \
    && python -c 'import importlib.metadata as m; [print(f"{n}=={m.version(n)}") for n in ("torch", "torchvision")]' \
        > /opt/edge-cl/held.txt

COPY pyproject.toml README.md LICENSE /src/
COPY edge_cl /src/edge_cl
COPY export /src/export
COPY devices /src/devices
RUN pip install --no-cache-dir --constraint /opt/edge-cl/held.txt "/src[jetson]" && rm -rf /src

WORKDIR /robot
ENTRYPOINT ["edge-cl"]
CMD ["doctor"]
