# One image with the four services, nats-server and what they load. Not proven yet: no test builds or runs it; a later
# issue does. `--build-arg CUDA=1` adds the CUDA libraries (several GiB).

FROM rust:1.95-bookworm AS build
ARG CUDA=
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential pkg-config python3-venv libvpx-dev nasm \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo xtask setup ${CUDA:+--cuda}
RUN cargo build --locked --release \
      --package gateway --package stage0 --package mesh-leader --package tp-worker --package xtask
# Binaries look for libraries in ../lib, and the libraries for one another beside themselves.
RUN mkdir -p /opt/kinemesh/bin /opt/kinemesh/lib \
 && cp target/release/gateway target/release/stage0 target/release/mesh-leader target/release/tp-worker \
       target/release/xtask .kinemesh/site/bin/nats-server /opt/kinemesh/bin/ \
 && cp .kinemesh/site/torch/lib/libtorch_cpu.so .kinemesh/site/torch/lib/libc10.so \
       .kinemesh/site/torch/lib/libgomp.so.1 .kinemesh/site/nvidia/cu13/lib/libcudart.so.13 \
       .kinemesh/site/nvidia/cu13/lib/libcupti.so.13 /opt/kinemesh/lib/ \
 && if [ -n "$CUDA" ]; then \
      cp .kinemesh/site/torch/lib/*.so* /opt/kinemesh/lib/ \
      && find .kinemesh/site/nvidia -name '*.so*' -path '*/lib/*' -exec cp -n {} /opt/kinemesh/lib/ \; ; \
    fi \
 && cp -r nats models /opt/kinemesh/

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libstdc++6 libvpx7 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --home-dir /opt/kinemesh --shell /usr/sbin/nologin kinemesh
COPY --from=build /opt/kinemesh /opt/kinemesh
# Volumes of compose take their owner from these folders.
RUN mkdir -p /opt/kinemesh/.kinemesh/nats /opt/kinemesh/jetstream \
 && chown -R kinemesh /opt/kinemesh/.kinemesh /opt/kinemesh/jetstream
USER kinemesh
WORKDIR /opt/kinemesh
ENV PATH=/opt/kinemesh/bin:$PATH
