# For CPUs:           docker build --tag gendd .
# For NVIDIA's GPUs:  docker build --tag gendd --build-arg TORCH=cu126 .    (docker run --gpus all …)
#
#   docker run --rm --volume "$PWD":/data gendd distill --out runs/demo
#
# PyTorch's wheels bring CUDA's libraries along, so both begin with the same image.
ARG BASE=python:3.12-slim
FROM ${BASE}

# of https://download.pytorch.org/whl/: cpu, cu126, …
ARG TORCH=cpu
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/${TORCH}

WORKDIR /gendd
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir '.[export,parquet,webdataset]'

# trained teachers are kept beside the runs
ENV GENDD_CACHE=/data/.cache MPLCONFIGDIR=/tmp HOME=/tmp
WORKDIR /data
ENTRYPOINT ["gendd"]
CMD ["--help"]
