# The project with its environment, for one of the two stacks (BUILD.md):
#   docker build -t retinanet_tf:3.13 .
#   docker build -t retinanet_tf:3.11 --build-arg PYTHON=3.11 --build-arg ACCELERATOR=cuda .
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# cpu or cuda. The driver comes from the host (nvidia-container-toolkit), CUDA's libraries from TensorFlow's packages.
ARG ACCELERATOR=cpu

# What the libraries keep beside the work; any --user may write there.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/app/.cache/matplotlib \
    KERAS_HOME=/app/.cache/keras

WORKDIR /app
RUN mkdir -p .cache/matplotlib .cache/keras && chmod -R a+rwX .cache

# The environment is a layer of its own: a change of the code doesn't install it again.
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
RUN if [ "$ACCELERATOR" = cuda ]; then \
      version=$(python -c 'from importlib.metadata import version; print(version("tensorflow"))') && \
      pip install --no-cache-dir "tensorflow[and-cuda]==$version"; \
    fi

COPY README.md LICENSE pyproject.toml ./
COPY retinanet_tf ./retinanet_tf
RUN pip install --no-cache-dir --no-deps .
COPY experiments ./experiments
# experiments/random_resnet50.py writes a file in a publisher's layout with it.
COPY tests/published.py ./tests/

CMD ["retinanet", "--help"]
